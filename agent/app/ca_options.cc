#include "app/ca_options.h"

#include <charconv>

namespace nodemesh::app {

Result<identity::CaClient::Settings> ca_settings(const CaOptions& options) {
  identity::CaClient::Settings out{.token_file = options.token_file, .cluster_id = options.cluster_id};
  if (options.address.empty()) {
    if (!options.socket.starts_with("unix:/"))
      return fail("--ca " + options.socket + " must be unix:/path; a host and port go to --ca-address");
    out.target.unix_path = options.socket.substr(5);
    return out;
  }
  const std::string& text = options.address;
  size_t colon = text.rfind(':');
  uint16_t port = 0;
  if (colon != text.npos) {
    auto [end, bad] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), port);
    if (bad != std::errc() || end != text.data() + text.size()) port = 0;
  }
  std::string host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  if (port == 0 || host.empty())
    return fail("--ca-address " + text +
                " must be host:port, as nodemesh-controller.nodemesh-system.svc:15012");
  if (options.root_file.empty()) {
    return fail(
        "--ca-address needs --ca-root, the file of the roots that vouch for it: without them anyone could "
        "pose as the authority");
  }
  if (options.token_file.empty())
    return fail("--ca-address needs --ca-token-file: the authority knows callers by their tokens");
  out.target.tls = {.roots_file = options.root_file,
                    .server_name = options.server_name.empty() ? host : options.server_name};
  out.target.host = std::move(host);
  out.target.port = port;
  return out;
}

}  // namespace nodemesh::app
