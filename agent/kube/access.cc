#include "kube/access.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "base/addr.h"
#include "base/fd.h"
#include "kube/fields.h"
#include "kube/yaml.h"

namespace nodemesh::kube {
namespace {

constexpr size_t kMaxMaterial = 1 << 20;
constexpr auto kTokenAge = seconds(60);

std::optional<std::string> environment(const AccessPlaces& places, const std::string& name) {
  if (places.variable) return places.variable(name);
  const char* value = std::getenv(name.c_str());
  return value != nullptr ? std::optional<std::string>(value) : std::nullopt;
}

Result<std::string> read_file(const std::string& path, std::string_view what, size_t limit) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return fail(fmt::format("{}: cannot open {}: {}", what, path, std::strerror(errno)));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode))
    return fail(fmt::format("{}: {} is not a regular file", what, path));
  std::string text(std::min(static_cast<size_t>(info.st_size), limit) + 1, '\0');
  size_t filled = 0;
  while (filled < text.size()) {
    ssize_t count = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (count < 0) return fail(fmt::format("{}: cannot read {}: {}", what, path, std::strerror(errno)));
    if (count == 0) break;
    filled += static_cast<size_t>(count);
    if (filled == text.size() && filled <= limit) text.resize(std::min(filled * 2, limit + 1));
  }
  if (filled > limit) return fail(fmt::format("{}: {} is larger than {} bytes", what, path, limit));
  text.resize(filled);
  return text;
}

std::string trimmed(std::string text) {
  auto space = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  while (!text.empty() && space(text.back())) text.pop_back();
  size_t begin = 0;
  while (begin < text.size() && space(text[begin])) ++begin;
  return text.substr(begin);
}

// Host and port, a prefix of the path: what a server URL may have.
Result<> parse_server(std::string_view url, Access& access) {
  constexpr std::string_view kScheme = "https://";
  if (!url.starts_with(kScheme))
    return fail("the server must be an https:// URL: a token is never sent unencrypted");
  std::string_view rest = url.substr(kScheme.size());
  size_t slash = std::min(rest.find('/'), rest.size());
  std::string_view authority = rest.substr(0, slash), path = rest.substr(slash);
  while (path.ends_with('/')) path.remove_suffix(1);
  auto printable = [](unsigned char c) { return c > 0x20 && c < 0x7f; };
  if (!std::ranges::all_of(rest, printable) || rest.find_first_of("?#@%\\") != rest.npos)
    return fail("the server's URL may hold a host, a port and a path only");
  std::string_view host = authority, port;
  if (authority.starts_with('[')) {
    size_t end = authority.find(']');
    if (end == authority.npos) return fail("the server's address lacks its closing bracket");
    host = authority.substr(1, end - 1);
    port = authority.substr(end + 1);
    if (!Addr::parse(host)) return fail("the server's URL has no IPv6 address in its brackets");
  } else if (size_t colon = authority.find(':'); colon != authority.npos) {
    host = authority.substr(0, colon);
    port = authority.substr(colon);
  }
  access.port = 443;
  if (!port.empty()) {
    auto [end, bad] = std::from_chars(port.data() + 1, port.data() + port.size(), access.port);
    if (port.front() != ':' || bad != std::errc() || end != port.data() + port.size() || access.port == 0)
      return fail("the server's port must be a number from 1 to 65535");
  }
  std::string lower(host);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  if (!Addr::parse(lower) && !is_dns_subdomain(lower)) return fail("the server's URL has no valid host name");
  access.host = lower;
  access.path_prefix = path;
  access.server_name = access.host;
  return {};
}

std::optional<std::string> decode_base64(std::string_view text) {
  std::string out;
  uint32_t bits = 0;
  int held = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (char c : text) {
    int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                : c >= 'a' && c <= 'z' ? c - 'a' + 26
                : c >= '0' && c <= '9' ? c - '0' + 52
                : c == '+'             ? 62
                : c == '/'             ? 63
                : c == '\n'            ? -2
                                       : -1;
    if (value == -2) continue;
    if (value == -1) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    held += 6;
    if (held < 8) continue;
    held -= 8;
    out += static_cast<char>(bits >> held & 0xff);
  }
  return out;
}

// One kubeconfig file while it is read. Every message names it.
class Kubeconfig {
 public:
  Kubeconfig(const Node& root, const std::string& path) : root_(root), path_(path) {}

  Result<Access> access(const KubeconfigChoice& choice) {
    Fields top(&root_, problems_);
    std::string context = choice.context.empty() ? top.text("current-context").value_or("") : choice.context;
    Access out;
    std::string cluster = choice.cluster, user = choice.user;
    const Node* chosen = named(top, "contexts", "context", context);
    if (chosen != nullptr) {
      Fields fields(chosen, problems_);
      if (cluster.empty()) cluster = fields.text("cluster").value_or("");
      if (user.empty()) user = fields.text("user").value_or("");
      out.ns = fields.text("namespace").value_or("default");
    } else if (cluster.empty()) {
      return failed(context.empty() ? "no context is chosen and current-context is empty"
                                    : "there is no context \"" + context + "\"",
                    "name one of its contexts");
    }
    out.origin = "kubeconfig " + path_ + (context.empty() ? "" : ", context " + context);
    const Node* server = named(top, "clusters", "cluster", cluster);
    if (server == nullptr)
      return failed("there is no cluster \"" + cluster + "\"", "name one of its clusters");
    if (auto read = read_cluster(*server, cluster, out); !read) return std::unexpected(read.error());
    const Node* person = named(top, "users", "user", user);
    if (person == nullptr && !user.empty())
      return failed("there is no user \"" + user + "\"", "name one of its users");
    if (person != nullptr) {
      if (auto read = read_user(*person, user, out); !read) return std::unexpected(read.error());
    }
    for (const auto& problem : problems_) {
      if (problem.severity == Severity::error)
        return failed(problem.field + ": " + problem.message, problem.fix);
    }
    return out;
  }

 private:
  std::unexpected<Error> failed(const std::string& what, const std::string& fix) const {
    return fail(fmt::format("kubeconfig {}: {}; fix: {}", path_, what, fix));
  }

  const Node* named(Fields& top, std::string_view list, std::string_view inner, const std::string& name) {
    const Node* found = nullptr;
    for (const auto& item : top.maps(list)) {
      Fields fields(&item, problems_);
      const Node* value = fields.map(inner);
      if (fields.text("name") == name && found == nullptr) found = value;
    }
    return name.empty() ? nullptr : found;
  }

  Result<> read_cluster(const Node& node, const std::string& name, Access& out) {
    Fields fields(&node, problems_);
    if (auto server = parse_server(fields.text("server").value_or(""), out); !server)
      return failed(fmt::format("cluster \"{}\": {}", name, server.error().message), "correct its server");
    if (auto server_name = fields.text("tls-server-name"); server_name && !server_name->empty())
      out.server_name = *server_name;
    if (fields.boolean("insecure-skip-tls-verify").value_or(false)) {
      return failed(
          fmt::format("cluster \"{}\" says insecure-skip-tls-verify, with which anybody on the path "
                      "could be the API server",
                      name),
          "write certificate-authority-data instead");
    }
    if (fields.text("proxy-url")) {
      return failed(fmt::format("cluster \"{}\" has a proxy-url, which is not supported", name),
                    "use a server that can be reached directly");
    }
    fields.ignore({"disable-compression", "extensions"});
    return read_material(fields, "certificate-authority", out.roots);
  }

  Result<> read_user(const Node& node, const std::string& name, Access& out) {
    Fields fields(&node, problems_);
    for (auto plugin : {"exec", "auth-provider"}) {
      if (fields.any(plugin) == nullptr) continue;
      return failed(
          fmt::format("user \"{}\" gets its credentials from a program ({}), which is not supported here",
                      name, plugin),
          "use a user with a token or a client certificate");
    }
    for (auto old : {"username", "as", "as-groups", "as-uid", "as-user-extra"}) {
      if (fields.any(old) == nullptr) continue;
      return failed(fmt::format("user \"{}\" has {}, which is not supported", name, old),
                    "use a user with a token or a client certificate");
    }
    out.token.text = fields.text("token").value_or("");
    if (auto file = fields.text("tokenFile"); file && !file->empty()) out.token.file = beside(*file);
    if (auto read = read_material(fields, "client-certificate", out.certificate); !read) return read;
    if (auto read = read_material(fields, "client-key", out.key); !read) return read;
    fields.ignore({"password", "extensions"});
    if (out.certificate.empty() != out.key.empty()) {
      return failed(fmt::format("user \"{}\" has only one of client certificate and client key", name),
                    "write both");
    }
    return {};
  }

  // `name` is a file, `name`-data the same in base64, which wins (as in client-go).
  Result<> read_material(Fields& fields, std::string_view name, Material& out) {
    auto file = fields.text(name);
    auto data = fields.text(std::string(name) + "-data");
    if (data && !data->empty()) {
      auto text = decode_base64(*data);
      if (!text) return failed(fmt::format("{}-data is not base64", name), "write the PEM text in base64");
      out.text = std::move(*text);
    } else if (file && !file->empty()) {
      out.file = beside(*file);
    }
    return {};
  }

  std::string beside(const std::string& file) const {
    size_t slash = path_.rfind('/');
    return file.starts_with('/') || slash == path_.npos ? file : path_.substr(0, slash + 1) + file;
  }

  const Node& root_;
  const std::string& path_;
  Problems problems_;
};

int64_t mtime_ns(const std::string& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return 0;
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

Result<std::string> Material::read(std::string_view what) const {
  return file.empty() ? Result<std::string>(text) : read_file(file, what, kMaxMaterial);
}

std::string Access::url() const {
  return "https://" + authority() + path_prefix;
}

std::string Access::authority() const {
  bool bracket = host.find(':') != host.npos;
  return fmt::format("{}{}{}:{}", bracket ? "[" : "", host, bracket ? "]" : "", port);
}

Result<Access> in_cluster_access(const AccessPlaces& places) {
  auto host = environment(places, "KUBERNETES_SERVICE_HOST");
  auto port = environment(places, "KUBERNETES_SERVICE_PORT");
  if (!host || host->empty() || !port || port->empty()) {
    return fail(
        "not in a Kubernetes pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; fix: run "
        "it in a pod, or name a kubeconfig");
  }
  Access access;
  bool bracket = host->find(':') != host->npos;
  auto server = parse_server("https://" + (bracket ? "[" + *host + "]" : *host) + ":" + *port, access);
  if (!server) {
    return fail(
        fmt::format("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT: {}", server.error().message));
  }
  access.origin = "the pod's service account";
  access.roots.file = places.service_account + "/ca.crt";
  access.token.file = places.service_account + "/token";
  if (auto ns = read_file(places.service_account + "/namespace", "the pod's namespace", 256))
    access.ns = trimmed(std::move(*ns));
  for (const auto* material : {&access.roots, &access.token}) {
    auto text = material->read("the pod's service account");
    if (!text)
      return fail(text.error().message +
                  "; fix: set automountServiceAccountToken, or mount a projected token");
  }
  return access;
}

Result<Access> parse_kubeconfig(std::string_view text, const std::string& path,
                                const KubeconfigChoice& choice) {
  auto documents = parse_yaml(text, path);
  if (!documents.problems.empty()) return fail("kubeconfig " + documents.problems.front().to_string());
  if (documents.roots.size() != 1 || documents.roots.front().type != Node::Type::map)
    return fail(fmt::format("kubeconfig {}: it must be one YAML mapping of kind Config", path));
  documents.roots.front().link();
  return Kubeconfig(documents.roots.front(), path).access(choice);
}

Result<Access> kubeconfig_access(const KubeconfigChoice& choice, const AccessPlaces& places) {
  std::string path = choice.path;
  if (path.empty()) path = environment(places, "KUBECONFIG").value_or("");
  if (path.find(':') != path.npos)
    return fail("KUBECONFIG names several files, which are not merged here; fix: name one file");
  if (path.empty()) path = environment(places, "HOME").value_or("/root") + "/.kube/config";
  auto text = read_file(path, "kubeconfig", kMaxFileBytes);
  if (!text) return std::unexpected(text.error());
  return parse_kubeconfig(*text, path, choice);
}

Result<std::string> TokenCache::token() {
  if (material_.file.empty()) return trimmed(material_.text);
  int64_t changed = mtime_ns(material_.file);
  auto now = clock_.now();
  if (read_ && changed == changed_ns_ && now - read_at_ < kTokenAge) return token_;
  auto text = material_.read("token");
  if (!text) {
    if (token_.empty()) return std::unexpected(text.error());
    return token_;
  }
  std::string token = trimmed(std::move(*text));
  // It goes into a header field.
  bool fine = std::ranges::all_of(token, [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (!fine || token.empty()) {
    if (token_.empty()) return fail(fmt::format("token: {} holds no token", material_.file));
    return token_;
  }
  token_ = std::move(token);
  read_at_ = now;
  changed_ns_ = changed;
  read_ = true;
  return token_;
}

bool TokenCache::expire() {
  read_ = false;
  return !material_.file.empty();
}

}  // namespace nodemesh::kube
