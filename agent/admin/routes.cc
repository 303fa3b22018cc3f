#include "admin/routes.h"

#include <memory>

#include <nlohmann/json.hpp>

#include "admin/rows.h"
#include "base/duration.h"
#include "base/log.h"
#include "telemetry/denials.h"

namespace nodemesh::admin {
namespace {

constexpr const char* kJson = "application/json";
constexpr milliseconds kMaxFor = std::chrono::hours(24);

// Never throws on bytes that are not UTF-8: they are replaced.
std::string dump(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

Response problem(int status, std::string text) {
  return {status, "text/plain; charset=utf-8", std::move(text) + "\n"};
}

Response not_found(std::string_view path) {
  return problem(404, "nothing is served at " + log::escape(path) + "; GET / lists what is");
}

// A web page can make a browser on the node send requests to loopback; its Host or Origin gives it away.
bool from_web_page(const Request& request) {
  if (request.has_origin) return true;
  std::string_view host = request.host;
  auto colon = host.rfind(':');
  if (colon != host.npos && host.find(']', colon) == host.npos) host = host.substr(0, colon);
  return !(host.empty() || host == "localhost" || host == "127.0.0.1" || host == "[::1]");
}

nlohmann::json levels() {
  nlohmann::json all = nlohmann::json::object();
  for (int c = 0; c < static_cast<int>(log::Component::count); ++c) {
    auto component = static_cast<log::Component>(c);
    all[std::string(log::name(component))] = log::name(log::level(component));
  }
  return all;
}

std::string_view phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 417:
      return "Expectation Failed";
    case 431:
      return "Request Header Fields Too Large";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Error";
  }
}

}  // namespace

struct Routes::Revert {
  log::Component component;
  log::Level level;
  io::Timer timer;
  explicit Revert(log::Component c, log::Level l)
      : component(c), level(l), timer([this] { log::set_level(component, level); }) {}
};

Routes::Routes(Sources sources, io::Reactor& reactor) : sources_(std::move(sources)), reactor_(reactor) {}
Routes::~Routes() = default;

void Routes::handle(Surface surface, const Request& request, Respond respond) {
  const auto& path = request.path;
  bool everything = surface == Surface::admin;
  if (everything && from_web_page(request)) {
    return respond(
        problem(403, "the admin port serves local tools only: use localhost as the host and send no Origin"));
  }
  bool post = request.method == "POST";
  if (everything && path == "/logging") return respond(logging(request));
  if (post) return respond(problem(405, "POST is served at /logging of the admin port only"));
  if (surface != Surface::health && (path == "/metrics" || path == "/stats/prometheus") && sources_.metrics) {
    return respond({200, "text/plain; version=0.0.4; charset=utf-8", sources_.metrics()});
  }
  if (surface != Surface::metrics && path == "/healthz/ready") return respond(ready());
  if (surface == Surface::process && path == "/readyz") return respond(ready());
  if (surface == Surface::process && path == "/healthz") return respond({.body = "ok\n"});
  if (!everything) return respond(not_found(path));
  if (path == "/") return respond(index());
  if (path == "/version") return respond(version());
  const std::pair<std::string_view, const Source*> lists[] = {
      {"/workloads", &sources_.workloads},     {"/services", &sources_.services},
      {"/policies", &sources_.policies},       {"/certs", &sources_.certs},
      {"/connections", &sources_.connections}, {"/listeners", &sources_.listeners},
      {"/status", &sources_.status},           {"/config_dump", &sources_.config_dump}};
  for (const auto& [name, source] : lists) {
    if (path == name && *source) return rows(*source, std::string(name.substr(1)), std::move(respond));
  }
  respond(not_found(path));
}

void Routes::rows(const Source& source, std::string kind, Respond respond) {
  source([this, kind = std::move(kind), respond = std::move(respond)](nlohmann::json&& rows) mutable {
    nlohmann::json body = {
        {"schema", 1}, {"node", sources_.node}, {"version", sources_.version}, {"kind", kind}};
    if (kind == "connections" && sources_.denials) {
      body["denials"] = nlohmann::json::array();
      for (const auto& denial : sources_.denials->recent()) body["denials"].push_back(denial_row(denial));
    }
    const std::string key = rows.is_array() ? "items" : kind;
    body[key] = std::move(rows);
    respond({200, kJson, dump(body)});
  });
}

Response Routes::ready() const {
  auto reasons = sources_.not_ready ? sources_.not_ready() : std::vector<std::string>{};
  if (reasons.empty()) return {200, "text/plain; charset=utf-8", "ready\n"};
  std::string text = "not ready:\n";
  for (const auto& reason : reasons) text += "- " + reason + "\n";
  return {503, "text/plain; charset=utf-8", text};
}

Response Routes::version() const {
  return {200, kJson,
          dump({{"schema", 1}, {"node", sources_.node}, {"kind", "version"}, {"version", sources_.version}})};
}

Response Routes::index() const {
  return {200, "text/plain; charset=utf-8",
          "/status /workloads /services /policies /certs /connections /listeners /config_dump /version\n"
          "/logging (GET; POST ?component=NAME&level=debug|info|warn|error|off[&for=5m])\n"
          "/metrics /healthz/ready\n"};
}

Response Routes::logging(const Request& request) {
  if (request.method == "POST") return set_level(request);
  return {200, kJson,
          dump({{"schema", 1}, {"node", sources_.node}, {"kind", "logging"}, {"levels", levels()}})};
}

Response Routes::set_level(const Request& request) {
  auto component_name = request.parameter("component"), level_name = request.parameter("level");
  auto component = component_name ? log::parse_component(*component_name) : std::nullopt;
  auto wanted = level_name ? log::parse_level(*level_name) : std::nullopt;
  bool all = component_name == "all";
  if (!component && !all) return problem(400, "component: unknown; use all, or one that GET /logging lists");
  if (!wanted) return problem(400, "level: unknown; use debug, info, warn, error or off");
  std::optional<milliseconds> limit;
  if (auto text = request.parameter("for")) {
    auto parsed = parse_duration(*text);
    if (!parsed) return problem(400, "for: " + log::escape(parsed.error().message));
    if (*parsed > kMaxFor) return problem(400, "for: at most 24h");
    limit = *parsed;
  }
  for (int c = 0; c < static_cast<int>(log::Component::count); ++c) {
    auto each = static_cast<log::Component>(c);
    if (!all && each != *component) continue;
    auto before = log::level(each);
    // A second change within the time returns to what was before the first, and a change for good cancels the
    // return.
    for (const auto& revert : reverts_) {
      if (revert->component == each && revert->timer.armed()) before = revert->level;
    }
    std::erase_if(reverts_, [each](const auto& revert) { return revert->component == each; });
    log::set_level(each, *wanted);
    if (limit) reverts_.emplace_back(std::make_unique<Revert>(each, before))->timer.arm(reactor_, *limit);
  }
  log::info(log::Component::admin, "log level changed",
            {{"for_component", *component_name},
             {"to", *level_name},
             {"for", limit ? *request.parameter("for") : "good"}});
  return {200, kJson,
          dump({{"schema", 1}, {"node", sources_.node}, {"kind", "logging"}, {"levels", levels()}})};
}

std::string serialise(const Response& response, bool keep_alive, bool head) {
  std::string out = "HTTP/1.1 " + std::to_string(response.status) + " ";
  out += phrase(response.status);
  out += "\r\ncontent-type: " + response.content_type;
  out += "\r\ncontent-length: " + std::to_string(response.body.size());
  out += "\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: ";
  out += keep_alive ? "keep-alive\r\n\r\n" : "close\r\n\r\n";
  if (!head) out += response.body;
  return out;
}

}  // namespace nodemesh::admin
