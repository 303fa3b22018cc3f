#include <ostream>

#include <nlohmann/json.hpp>

#include "ctl/commands.h"
#include "ctl/nodes.h"
#include "ctl/structured.h"
#include "ctl/views.h"

namespace nodemesh::ctl {
namespace {

void append_rows(nlohmann::json& to, const nlohmann::json& body, const char* key, const std::string& node) {
  auto found = body.find(key);
  if (found == body.end() || !found->is_array()) return;
  for (auto row : *found) {
    if (!row.is_object()) continue;
    row["reported_by"] = node;
    to.push_back(std::move(row));
  }
}

void print_tables(Context& context, const std::string& kind, const nlohmann::json& all) {
  auto table = rows_table(kind, all["items"], context.format == Format::wide);
  if (table.empty()) {
    context.err << "no " << kind << "\n";
  } else {
    context.out << table.render(context.colour);
  }
  if (kind != "connections" || all["denials"].empty()) return;
  context.out << "\nRecently denied:\n" << denials_table(all["denials"]).render(context.colour);
}

}  // namespace

int get(Context& context, const std::string& kind) {
  auto answers = ask(context, "GET", "/" + kind);
  if (answers.list.empty()) return answers.exit;
  nlohmann::json all = {{"schema", 1}, {"kind", kind}, {"items", nlohmann::json::array()}};
  if (kind == "connections") all["denials"] = nlohmann::json::array();
  for (const auto& answer : answers.list) {
    append_rows(all["items"], answer.body, "items", answer.node);
    if (kind == "connections") append_rows(all["denials"], answer.body, "denials", answer.node);
  }
  switch (context.format) {
    case Format::json:
      context.out << to_json_text(all);
      break;
    case Format::yaml:
      context.out << to_yaml_text(all);
      break;
    default:
      print_tables(context, kind, all);
  }
  return answers.exit ? answers.exit : context.finish();
}

}  // namespace nodemesh::ctl
