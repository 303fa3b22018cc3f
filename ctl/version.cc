#include <ostream>

#include <nlohmann/json.hpp>

#include "ctl/client.h"
#include "ctl/commands.h"
#include "ctl/nodes.h"
#include "ctl/structured.h"
#include "ctl/views.h"

namespace nodemesh::ctl {

// An agent that does not answer is no failure here: the client's version was asked for first of all.
int version(Context& context, bool client_only) {
  nlohmann::json all = {
      {"schema", 1}, {"kind", "version"}, {"client", NODEMESH_VERSION}, {"items", nlohmann::json::array()}};
  auto targets = client_only ? std::vector<Target>{} : find_targets(context);
  for (const auto& target : targets) {
    auto response = http(target.address, "GET", "/version", seconds(2));
    if (!response || response->status != 200) {
      context.warn(response ? "node " + target.name + " does not tell its version"
                            : response.error().message);
      continue;
    }
    auto body = nlohmann::json::parse(response->body, nullptr, false);
    auto node = text_at(body, "/node"), agent = text_at(body, "/version");
    all["items"].push_back({{"node", node.empty() ? target.name : node}, {"version", agent}});
    if (agent != NODEMESH_VERSION)
      context.warn("node " + target.name + " runs " + agent + ", this is meshctl " NODEMESH_VERSION);
  }
  if (context.format == Format::json) {
    context.out << to_json_text(all);
  } else if (context.format == Format::yaml) {
    context.out << to_yaml_text(all);
  } else {
    context.out << "meshctl " NODEMESH_VERSION "\n";
    for (const auto& item : all["items"]) {
      context.out << "agent   " << printable(text_at(item, "/version")) << " on "
                  << printable(text_at(item, "/node")) << "\n";
    }
  }
  return context.finish();
}

}  // namespace nodemesh::ctl
