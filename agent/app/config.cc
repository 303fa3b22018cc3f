#include "app/config.h"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>

#include <CLI/CLI.hpp>

#include "app/supervisor.h"

namespace nodemesh::app {

ParsedCommand parse_warden_command(int argc, const char* const* argv) {
  ParsedCommand out;
  WardenConfig& config = out.config;
  CLI::App app(
      "The privileged half of a node's agent: finds pods, captures their connections, makes sockets in their "
      "namespaces for nodemesh-proxy.",
      "nodemesh-warden");
  app.add_option("--config", config.source.folder, "folder of manifests")->type_name("DIR");
  app.add_option("--kubeconfig", config.source.kubeconfig, "or the API server that this file names")
      ->type_name("FILE");
  app.add_option("--context", config.source.context, "of the kubeconfig, else its current one")
      ->type_name("NAME");
  app.add_flag("--in-cluster", config.source.in_cluster, "or the API server of the pod this runs in");
  app.add_option("--snapshot", config.snapshot,
                 "keep there what the API server says, for a start while it is away; a folder of ours alone")
      ->type_name("FILE");
  app.add_option("--node", config.node, "name of this node, as in spec.nodeName")
      ->required()
      ->type_name("NAME");
  app.add_option("--run-dir", config.run_dir, "where warden.sock lies, shared with the proxy")
      ->required()
      ->type_name("DIR");
  app.add_option("--bpf-dir", config.bpf_dir, "where to pin, in a BPF file system")
      ->required()
      ->type_name("DIR");
  app.add_option("--kubepods", config.kubepods,
                 "the pods' cgroup2 directory; by default that above our own pod")
      ->type_name("DIR");
  app.add_option("--host-cgroup", config.host_cgroup,
                 "where the root of the host's cgroup2 file system is mounted")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--proxy-cgroup", config.proxy_cgroup,
                 "the proxy's cgroup2 directory, below kubepods; by default its container's in our own pod")
      ->type_name("DIR");
  app.add_option("--kubelet-cgroup", config.kubelet_cgroup,
                 "kubelet's cgroup2 directory, to know its probes; by default looked for")
      ->type_name("DIR");
  app.add_option("--proc,--host-proc", config.proc, "the host's procfs; its sys/net must be writable")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_flag("--fail-open", config.fail_open, "pods' traffic passes untouched while there is no proxy");
  app.add_flag("--strict", config.strict, "unknown pods are denied even while no warden runs");
  app.add_flag("--allow-hybrid", config.allow_hybrid, "accept cgroup v1 hierarchies beside cgroup2 (tests)");
  app.add_flag("--clean-exit", config.clean_exit, "SIGTERM takes everything out of the kernel again");
  app.add_option("--daemonset", config.daemonset,
                 "that runs us; once it was deleted, SIGTERM takes everything out of the kernel")
      ->type_name("NAME");
  app.add_flag("--standby", config.standby,
               "wait while another warden serves the node, and give way to the next one at SIGTERM");
  app.add_flag("--no-supervisor", config.supervised, "do not restart this process when it dies");
  app.add_option("--workers", config.workers, "the most workers a proxy may have")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--proxy-uid", config.proxy_uid, "user the proxy runs as")->capture_default_str();
  app.add_option("--proxy-gid", config.proxy_gid, "group the proxy runs as")->capture_default_str();
  app.add_option("--log-format", config.log_format, "text or json")->check(CLI::IsMember({"text", "json"}));
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    out.exit_code = app.exit(help);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "nodemesh-warden: {}; see nodemesh-warden --help\n", error.what());
    out.exit_code = kWrongUsage;
  }
  return out;
}

Result<> check_cgroup_mode(std::string_view mounts, bool allow_hybrid) {
  bool unified = false, legacy = false;
  std::istringstream lines{std::string(mounts)};
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string device, path, kind;
    words >> device >> path >> kind;
    unified |= kind == "cgroup2";
    legacy |= kind == "cgroup";
  }
  if (!unified) return fail("no cgroup2 file system is mounted: run `mount -t cgroup2 none /sys/fs/cgroup`");
  if (legacy && !allow_hybrid) {
    return fail(
        "this machine mixes cgroup v1 with cgroup2: boot with systemd.unified_cgroup_hierarchy=1, or give "
        "--allow-hybrid on a test machine");
  }
  return {};
}

Result<> check_cgroup2_directory(const std::string& path, std::string_view flag) {
  struct stat directory{};
  struct statfs filesystem{};
  if (::stat(path.c_str(), &directory) < 0 || ::statfs(path.c_str(), &filesystem) < 0) {
    return fail(
        fmt::format("{} {}: {}; name an existing cgroup2 directory", flag, path, std::strerror(errno)));
  }
  if (!S_ISDIR(directory.st_mode) || filesystem.f_type != CGROUP2_SUPER_MAGIC) {
    return fail(
        fmt::format("{} {} is not a directory of a cgroup2 file system: name one below the mount that "
                    "`findmnt -t cgroup2` shows",
                    flag, path));
  }
  return {};
}

Result<> check_node_name(std::string_view name) {
  bool plain =
      !name.empty() && name.size() <= 253 && name.front() != '.' && std::ranges::all_of(name, [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
      });
  if (plain) return {};
  return fail(
      fmt::format("--node \"{}\" is not a node name: use lower-case letters, digits, '-' and '.'", name));
}

Result<std::string> read_text_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return fail_errno(path);
  return std::move(text).str();
}

}  // namespace nodemesh::app
