#include <doctest/doctest.h>

#include "app/ca_options.h"

using namespace nodemesh;
using app::ca_settings;
using app::CaOptions;

TEST_CASE(
    "the authority is a socket of this machine, or a host that is known by its roots and that knows us") {
  CHECK(ca_settings({})->target.unix_path == "/run/nodemesh/ca/ca.sock");
  CaOptions options{.address = "istiod.istio-system.svc:15012", .root_file = "/r", .token_file = "/t"};
  auto settings = ca_settings(options);
  REQUIRE(settings);
  CHECK(settings->target.host == "istiod.istio-system.svc");
  CHECK(settings->target.port == 15012);
  CHECK(settings->target.tls->server_name == "istiod.istio-system.svc");
  CHECK(settings->target.tls->roots_file == "/r");
  CHECK(settings->token_file == "/t");
  options.server_name = "other";
  options.address = "[fd00::1]:15012";
  CHECK(ca_settings(options)->target.host == "fd00::1");
  CHECK(ca_settings(options)->target.tls->server_name == "other");
}

TEST_CASE(
    "a command line that would leave the authority unchecked, or us unknown, is refused with the option") {
  auto error = [](const CaOptions& options) {
    auto settings = ca_settings(options);
    return settings ? "" : settings.error().message;
  };
  CHECK(error({.socket = "/run/ca.sock"}).find("--ca /run/ca.sock") != std::string::npos);
  CHECK(error({.address = "h:1", .token_file = "/t"}).find("--ca-root") != std::string::npos);
  CHECK(error({.address = "h:1", .root_file = "/r"}).find("--ca-token-file") != std::string::npos);
  for (const char* address : {"host", "host:", ":15012", "host:0", "host:99999", "host:x", "host:1x"}) {
    CAPTURE(address);
    CHECK(error({.address = address, .root_file = "/r", .token_file = "/t"}).find("must be host:port") !=
          std::string::npos);
  }
}
