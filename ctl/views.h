// How each kind of row is shown as a table. Rows come from an agent that may be of another version: a field
// that is missing or of another type is shown as "-", never an error.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "ctl/table.h"

namespace nodemesh::ctl {

// What `meshctl get` takes; "cert" and "certs" mean the same.
std::vector<std::string> row_kinds();
// "workload" → "workloads"; "" if there is no such kind.
std::string plural_kind(std::string_view kind);

// `rows` is an array of objects with a "reported_by" (the node) each.
Table rows_table(std::string_view kind, const nlohmann::json& rows, bool wide);
Table denials_table(const nlohmann::json& denials);

// The value at a JSON pointer (RFC 6901) as text: strings as they are, arrays joined by commas, "" for what
// is not there.
std::string text_at(const nlohmann::json& row, std::string_view pointer);
int64_t number_at(const nlohmann::json& row, std::string_view pointer, int64_t otherwise = 0);

}  // namespace nodemesh::ctl
