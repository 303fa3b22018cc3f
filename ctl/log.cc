#include <ostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "ctl/commands.h"
#include "ctl/nodes.h"
#include "ctl/structured.h"
#include "ctl/views.h"

namespace nodemesh::ctl {
namespace {

// Everything but unreserved characters (RFC 3986 2.3) as %XX.
std::string encode(const std::string& text) {
  std::string out;
  for (unsigned char c : text) {
    bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                 c == '.' || c == '_' || c == '~';
    out += plain ? std::string(1, static_cast<char>(c)) : fmt::format("%{:02X}", c);
  }
  return out;
}

int show(Context& context, const Answers& answers) {
  nlohmann::json items = nlohmann::json::array();
  Table table({"NODE", "COMPONENT", "LEVEL"});
  for (const auto& answer : answers.list) {
    auto levels = answer.body.find("levels");
    if (levels == answer.body.end() || !levels->is_object()) continue;
    items.push_back({{"node", answer.node}, {"levels", *levels}});
    for (const auto& [component, level] : levels->items())
      table.add({{answer.node}, {component}, {text_at(level, "")}});
  }
  nlohmann::json all = {{"schema", 1}, {"kind", "logging"}, {"items", items}};
  if (context.format == Format::json) {
    context.out << to_json_text(all);
  } else if (context.format == Format::yaml) {
    context.out << to_yaml_text(all);
  } else {
    context.out << table.render(context.colour);
  }
  return answers.exit ? answers.exit : context.finish();
}

}  // namespace

int log_get(Context& context) {
  auto answers = ask(context, "GET", "/logging");
  return answers.list.empty() ? answers.exit : show(context, answers);
}

int log_set(Context& context, const std::string& component, const std::string& level,
            const std::string& duration) {
  std::string path = "/logging?component=" + encode(component) + "&level=" + encode(level);
  if (!duration.empty()) path += "&for=" + encode(duration);
  auto answers = ask(context, "POST", path);
  if (answers.list.empty()) return answers.exit;
  if (context.format == Format::json || context.format == Format::yaml) return show(context, answers);
  for (const auto& answer : answers.list) {
    context.out << printable(answer.node) << ": " << component << " logs at " << level
                << (duration.empty() ? "" : " for " + duration) << "\n";
  }
  return answers.exit ? answers.exit : context.finish();
}

}  // namespace nodemesh::ctl
