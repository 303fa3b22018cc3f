#include "ctl/views.h"

#include <algorithm>
#include <charconv>
#include <functional>

#include <nlohmann/json.hpp>

namespace nodemesh::ctl {
namespace {

using nlohmann::json;
using Show = std::function<Cell(const json&)>;

struct Column {
  std::string title;
  Show show;
  bool wide_only = false;
};

// "~1" stands for a slash in a key, "~0" for a tilde.
std::string unescaped(std::string_view token) {
  std::string key;
  for (size_t i = 0; i < token.size(); ++i) {
    bool escaped = token[i] == '~' && i + 1 < token.size();
    key += escaped ? (token[++i] == '1' ? '/' : '~') : token[i];
  }
  return key;
}

// RFC 6901.
const json* find(const json& row, std::string_view pointer) {
  const json* at = &row;
  while (!pointer.empty()) {
    pointer.remove_prefix(1);
    auto token = pointer.substr(0, pointer.find('/'));
    pointer.remove_prefix(token.size());
    if (at->is_object()) {
      auto found = at->find(unescaped(token));
      if (found == at->end()) return nullptr;
      at = &*found;
      continue;
    }
    size_t index = 0;
    auto [end, bad] = std::from_chars(token.data(), token.data() + token.size(), index);
    if (!at->is_array() || bad != std::errc() || end != token.data() + token.size() || index >= at->size())
      return nullptr;
    at = &(*at)[index];
  }
  return at;
}

std::string as_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "";
  if (value.is_array()) {
    std::string out;
    for (const auto& item : value) out += (out.empty() ? "" : ",") + as_text(item);
    return out;
  }
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

Show plain(std::string pointer) {
  return [pointer = std::move(pointer)](const json& row) { return Cell{text_at(row, pointer)}; };
}

Show yes_no(std::string pointer) {
  return [pointer = std::move(pointer)](const json& row) -> Cell {
    const auto* value = find(row, pointer);
    if (!value || !value->is_boolean()) return {};
    return value->get<bool>() ? Cell{"yes", Style::good} : Cell{"no", Style::doubtful};
  };
}

Show bytes(std::string pointer) {
  return [pointer = std::move(pointer)](const json& row) -> Cell {
    return find(row, pointer) ? Cell{human_bytes(static_cast<uint64_t>(number_at(row, pointer)))} : Cell{};
  };
}

// What is well is green, what is wrong red; an agent's other words stay as they are.
Show state(std::string pointer) {
  return [pointer = std::move(pointer)](const json& row) -> Cell {
    auto text = text_at(row, pointer);
    static const std::vector<std::string> kGood = {"ok", "ready", "valid", "accepted", "open", "enrolled"};
    return {text, std::ranges::find(kGood, text) != kGood.end() ? Style::good
                  : text.empty()                                ? Style::plain
                                                                : Style::doubtful};
  };
}

Show ports() {
  return [](const json& row) -> Cell {
    std::string out;
    const auto* list = find(row, "/ports");
    if (!list || !list->is_array()) return {};
    for (const auto& port : *list) {
      auto name = text_at(port, "/name"), number = text_at(port, "/port");
      if (!out.empty()) out += ",";
      out += (name.empty() ? number : name + ":" + number);
    }
    return {out};
  };
}

Show endpoints() {
  return [](const json& row) -> Cell {
    auto ready = text_at(row, "/ready"), all = text_at(row, "/endpoints");
    if (all.empty()) return {};
    return {ready + "/" + all, ready == all && all != "0" ? Style::good : Style::doubtful};
  };
}

Show expires() {
  return [](const json& row) -> Cell {
    if (!find(row, "/expires_in_s")) return {};
    auto left = number_at(row, "/expires_in_s");
    return {left <= 0 ? "expired" : human_seconds(left), left <= 0 ? Style::bad : Style::plain};
  };
}

// The identity if it is proven, else the workload, else the address.
Show party(std::string side) {
  return [side = std::move(side)](const json& row) -> Cell {
    auto identity = text_at(row, side + "/identity");
    if (!identity.empty()) return {identity};
    auto workload = text_at(row, side + "/workload");
    if (!workload.empty())
      return {text_at(row, side + "/namespace") + "/" + workload + " (unproven)", Style::doubtful};
    return {text_at(row, side + "/address"), Style::doubtful};
  };
}

Show tls() {
  return [](const json& row) -> Cell {
    auto version = text_at(row, "/tls/version");
    if (version.empty()) return {"plaintext", Style::doubtful};
    return {version + " " + text_at(row, "/tls/cipher"), Style::good};
  };
}

Show age() {
  return [](const json& row) -> Cell {
    return find(row, "/age_ms") ? Cell{human_seconds(number_at(row, "/age_ms") / 1000)} : Cell{};
  };
}

std::vector<Column> columns(std::string_view kind) {
  if (kind == "workloads") {
    return {{"NAMESPACE", plain("/namespace")}, {"NAME", plain("/name")},
            {"ADDRESSES", plain("/addresses")}, {"PROTOCOL", plain("/protocol")},
            {"ENROLLED", yes_no("/enrolled")},  {"STATUS", state("/status")},
            {"ON", plain("/node"), true},       {"IDENTITY", plain("/identity"), true},
            {"ORIGIN", plain("/origin"), true}};
  }
  if (kind == "services") {
    return {{"NAMESPACE", plain("/namespace")}, {"NAME", plain("/name")},
            {"ADDRESSES", plain("/addresses")}, {"PORTS", ports()},
            {"ENDPOINTS", endpoints()},         {"HOST", plain("/host"), true}};
  }
  if (kind == "policies") {
    return {{"KIND", plain("/kind")},
            {"NAMESPACE", plain("/namespace")},
            {"NAME", plain("/name")},
            {"SCOPE", plain("/scope")},
            {"ACTION", plain("/action")},
            {"STATUS", state("/status")},
            {"DRY-RUN", plain("/dry_run"), true},
            {"ORIGIN", plain("/origin"), true}};
  }
  if (kind == "certs") {
    return {{"IDENTITY", plain("/identity")},
            {"STATE", state("/state")},
            {"EXPIRES IN", expires()},
            {"NOT AFTER", plain("/not_after"), true},
            {"SERIAL", plain("/serial"), true}};
  }
  if (kind == "listeners") {
    return {{"NAMESPACE", plain("/namespace")},
            {"WORKLOAD", plain("/workload")},
            {"KIND", plain("/kind")},
            {"ADDRESS", plain("/address")},
            {"STATE", state("/state")}};
  }
  return {{"SOURCE", party("/source")},
          {"DESTINATION", party("/destination")},
          {"PORT", plain("/destination/port")},
          {"TLS", tls()},
          {"PATH", plain("/path")},
          {"RECEIVED", bytes("/bytes_received")},
          {"SENT", bytes("/bytes_sent")},
          {"AGE", age()},
          {"DIRECTION", plain("/direction"), true},
          {"FROM", plain("/source/address"), true},
          {"TO", plain("/destination/address"), true},
          {"SERVICE", plain("/destination/service"), true}};
}

Table make_table(const std::vector<Column>& all, const json& rows, bool wide, bool show_node) {
  std::vector<std::string> titles;
  if (show_node) titles.push_back("NODE");
  for (const auto& column : all) {
    if (wide || !column.wide_only) titles.push_back(column.title);
  }
  Table table(std::move(titles));
  for (const auto& row : rows) {
    std::vector<Cell> cells;
    if (show_node) cells.push_back({text_at(row, "/reported_by")});
    for (const auto& column : all) {
      if (wide || !column.wide_only) cells.push_back(column.show(row));
    }
    table.add(std::move(cells));
  }
  return table;
}

}  // namespace

std::vector<std::string> row_kinds() {
  return {"workloads", "services", "policies", "certs", "connections", "listeners"};
}

std::string plural_kind(std::string_view kind) {
  for (const auto& plural : row_kinds()) {
    bool singular = plural.size() == kind.size() + 1 && plural.starts_with(kind);
    if (plural == kind || singular || (plural == "policies" && kind == "policy")) return plural;
  }
  return "";
}

Table rows_table(std::string_view kind, const json& rows, bool wide) {
  std::string first;
  bool several = false;
  for (const auto& row : rows) {
    auto node = text_at(row, "/reported_by");
    if (first.empty()) first = node;
    several = several || node != first;
  }
  return make_table(columns(kind), rows, wide, several || wide);
}

Table denials_table(const json& denials) {
  static const std::vector<Column> kColumns = {
      {"TIME", plain("/time")},
      {"SOURCE", plain("/source")},
      {"DESTINATION", plain("/destination")},
      {"REASON", [](const json& row) { return Cell{text_at(row, "/reason"), Style::bad}; }},
      {"POLICY", plain("/policy")}};
  return make_table(kColumns, denials, false, false);
}

std::string text_at(const json& row, std::string_view pointer) {
  const auto* value = find(row, pointer);
  return value ? as_text(*value) : "";
}

int64_t number_at(const json& row, std::string_view pointer, int64_t otherwise) {
  const auto* value = find(row, pointer);
  if (!value) return otherwise;
  if (value->is_number_integer()) return value->get<int64_t>();
  return value->is_number_float() ? static_cast<int64_t>(value->get<double>()) : otherwise;
}

}  // namespace nodemesh::ctl
