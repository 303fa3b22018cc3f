#include <doctest/doctest.h>

#include <array>

#include "app/config.h"
#include "app/node_run.h"

using namespace nodemesh;
using namespace nodemesh::app;

namespace {

constexpr std::array kRequired{
    "nodemesh-warden", "--config",       "/etc/mesh", "--node",         "node1",
    "--run-dir",       "/run/nm",        "--bpf-dir", "/sys/fs/bpf/nm", "--kubepods",
    "/cg/kubepods",    "--proxy-cgroup", "/cg/p"};

std::vector<std::string> argv_of(const std::vector<ChildSpec>& specs, const std::string& name) {
  for (const auto& spec : specs) {
    if (spec.name == name) return spec.argv;
  }
  return {};
}

bool has_pair(const std::vector<std::string>& argv, const std::string& flag, const std::string& value) {
  for (size_t i = 0; i + 1 < argv.size(); ++i) {
    if (argv[i] == flag && argv[i + 1] == value) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("the warden's command line fills its configuration") {
  std::vector<const char*> argv(kRequired.begin(), kRequired.end());
  for (const char* word :
       {"--fail-open", "--workers", "4", "--kubelet-cgroup", "/cg/kubelet", "--log-format", "json"})
    argv.push_back(word);
  auto parsed = parse_warden_command(static_cast<int>(argv.size()), argv.data());
  REQUIRE(parsed.exit_code == -1);
  CHECK(parsed.config.node == "node1");
  CHECK(parsed.config.fail_open);
  CHECK_FALSE(parsed.config.strict);
  CHECK(parsed.config.workers == 4);
  CHECK(parsed.config.kubelet_cgroup == "/cg/kubelet");
  CHECK(parsed.config.proxy_uid == 65532);
}

TEST_CASE("a missing, unknown or malformed flag ends with exit code 2") {
  std::vector<const char*> full(kRequired.begin(), kRequired.end());
  auto exit_with = [&](std::vector<const char*> extra) {
    std::vector<const char*> argv = full;
    argv.insert(argv.end(), extra.begin(), extra.end());
    return parse_warden_command(static_cast<int>(argv.size()), argv.data()).exit_code;
  };
  CHECK(exit_with({"--nonsense"}) == 2);
  CHECK(exit_with({"--workers", "0"}) == 2);
  CHECK(exit_with({"--workers", "65"}) == 2);
  CHECK(exit_with({"--log-format", "xml"}) == 2);
  full.resize(5);
  CHECK(exit_with({}) == 2);
}

TEST_CASE("cgroup v1 beside v2 needs a flag, and no cgroup2 at all is told with the command that mends it") {
  CHECK(check_cgroup_mode("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", false));
  const char* hybrid =
      "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"
      "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
  auto refused = check_cgroup_mode(hybrid, false);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("--allow-hybrid") != std::string::npos);
  CHECK(check_cgroup_mode(hybrid, true));
  auto none = check_cgroup_mode("proc /proc proc rw 0 0\n", true);
  REQUIRE_FALSE(none);
  CHECK(none.error().message.find("mount -t cgroup2") != std::string::npos);
}

TEST_CASE("a directory that is not in a cgroup2 file system is refused with the flag's name") {
  auto tmp = check_cgroup2_directory("/tmp", "--kubepods");
  REQUIRE_FALSE(tmp);
  CHECK(tmp.error().message.find("--kubepods /tmp") != std::string::npos);
  CHECK_FALSE(check_cgroup2_directory("/nonexistent", "--kubepods"));
}

TEST_CASE("a node's name must be safe as a path component") {
  for (std::string_view good : {"node1", "ip-10-0-0-1.eu-west-1.compute.internal"})
    CHECK(check_node_name(good));
  for (std::string_view bad : {"", "..", "a/b", "Node", "a b", ".hidden"}) CHECK_FALSE(check_node_name(bad));
  CHECK_FALSE(check_node_name(std::string(254, 'a')));
}

TEST_CASE("workers follow the CPUs: a quarter, at least two, at most eight") {
  CHECK(default_workers(0) == 2);
  CHECK(default_workers(2) == 2);
  CHECK(default_workers(16) == 4);
  CHECK(default_workers(128) == 8);
}

TEST_CASE("a node runs proxy and warden in their own cgroups below kubepods, and the proxy stops first") {
  NodeConfig config{
      .config_dir = "/m", .node = "node1", .run_dir = "/r", .cgroup = "/cg", .bpf_dir = "/b", .workers = 2};
  config.cert_lifetime = "30s";
  config.proxy_extra = {"--drain", "1s"};
  auto specs = children_of(config, [](const std::string& name) { return "/bin/" + name; });
  REQUIRE(specs.size() == 2);
  CHECK(specs[0].name == "nodemesh-proxy");
  CHECK(specs[0].program == "/bin/nodemesh-proxy");
  CHECK(specs[0].cgroup == config.agent_pod() + "/proxy");
  CHECK(specs[1].cgroup == config.agent_pod() + "/warden");
  CHECK(config.agent_pod().starts_with("/cg/kubepods/pod"));
  auto proxy = argv_of(specs, "nodemesh-proxy");
  CHECK(has_pair(proxy, "--cert-lifetime", "30s"));
  CHECK(has_pair(proxy, "--drain", "1s"));
  auto warden = argv_of(specs, "nodemesh-warden");
  CHECK(has_pair(warden, "--proxy-cgroup", specs[0].cgroup));
  std::vector<const char*> argv;
  for (const auto& word : warden) argv.push_back(word.c_str());
  CHECK(parse_warden_command(static_cast<int>(argv.size()), argv.data()).exit_code == -1);
}

TEST_CASE("two nodes of one machine have different agent pods") {
  NodeConfig one{.node = "node1", .cgroup = "/cg"}, two{.node = "node2", .cgroup = "/cg"};
  CHECK(one.agent_pod() != two.agent_pod());
  CHECK(one.agent_pod() == NodeConfig{.node = "node1", .cgroup = "/cg"}.agent_pod());
}

TEST_CASE("the certificate authority is started only when asked for") {
  NodeConfig config{.config_dir = "/m",
                    .node = "node1",
                    .run_dir = "/r",
                    .cgroup = "/cg",
                    .bpf_dir = "/b",
                    .with_ca = true};
  auto specs = children_of(config, [](const std::string& name) { return name; });
  REQUIRE(specs.size() == 3);
  CHECK(has_pair(specs[2].argv, "--listen", config.ca));
}
