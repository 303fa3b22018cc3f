#include <functional>
#include <optional>
#include <ostream>
#include <string_view>

#include <CLI/CLI.hpp>

#include "ctl/commands.h"
#include "ctl/enroll.h"
#include "ctl/install.h"
#include "ctl/manifests.h"
#include "ctl/sysdump.h"
#include "ctl/views.h"

namespace nodemesh::ctl {
namespace {

constexpr const char* kFooter =
    "\nExit codes: 0 ok, 1 failure, 2 wrong usage, 3 warnings (with --strict), 4 no agent or no API server "
    "could be reached.";

std::optional<Format> parse_format(std::string_view name) {
  if (name == "table") return Format::table;
  if (name == "wide") return Format::wide;
  if (name == "json") return Format::json;
  if (name == "yaml") return Format::yaml;
  return std::nullopt;
}

void add_global_flags(CLI::App& app, Context& context) {
  app.add_option_function<std::string>(
         "-o,--output",
         [&context](const std::string& name) { context.format = parse_format(name).value_or(Format::table); },
         "table, json, yaml or wide")
      ->check([](const std::string& name) {
        return parse_format(name) ? "" : "there is no output '" + name + "'; use table, json, yaml or wide";
      })
      ->type_name("FORMAT");
  app.add_option("--node", context.nodes, "a node to ask; may be repeated (default: all)")
      ->allow_extra_args(false)  // one name each, so that a command may follow
      ->type_name("NAME");
  app.add_option("--run-dir", context.run_dir, "where standalone nodes keep <node>/admin.sock")
      ->envname("NODEMESH_RUN_DIR")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--admin", context.admin, "one agent's admin address: unix:/path or host:port")
      ->type_name("ADDRESS");
  app.add_option("--kubeconfig", context.kubeconfig, "of the cluster (default: $KUBECONFIG, ~/.kube/config)")
      ->type_name("FILE");
  app.add_option("--context", context.kube_context, "of the kubeconfig (default: its current one)")
      ->type_name("NAME");
  app.add_option("-n,--namespace", context.ns, "where nodemesh is installed")
      ->capture_default_str()
      ->type_name("NAME");
  app.add_flag("--strict", context.strict, "exit with 3 if there were warnings");
}

CLI::App* add_command(CLI::App& parent, const char* name, const char* text) {
  auto* command = parent.add_subcommand(name, text);
  command->fallthrough();  // global flags are taken after the command too
  return command;
}

// What the user typed, bound while parsing; `chosen` is the command to run after it.
struct Parsed {
  std::string kind, component, level, duration, shell, explain;
  bool client_only = false, pre = false;
  EnrolOptions enrol;
  SysdumpOptions sysdump;
  int wait_seconds = 0;
  InstallOptions install;
  std::vector<std::string> words, urls;
  std::function<int()> chosen;
};

void add_enrolment(CLI::App& app, Context& context, Parsed& parsed, bool enrol) {
  auto* command = add_command(app, enrol ? "enroll" : "unenroll",
                              enrol ? "put a namespace or a workload of a cluster into the mesh, by its label"
                                    : "take a namespace or a workload out of the mesh");
  command
      ->add_option("WHAT", parsed.words,
                   "namespace NAME, deployment/NAME, statefulset/NAME, daemonset/NAME or pod/NAME")
      ->required()
      ->expected(1, 2)
      ->type_name("");
  command->add_option("--in", parsed.enrol.ns, "the workload's namespace (default: the kubeconfig's)")
      ->type_name("NAMESPACE");
  command->add_flag("--dry-run", parsed.enrol.dry_run, "say what would change; the API server checks it");
  command->add_flag("--wait", parsed.enrol.wait, "until the agents have followed");
  command->add_option("--timeout", parsed.enrol.timeout_s, "how long to wait")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str()
      ->type_name("SECONDS");
  command->callback([&, enrol] {
    parsed.enrol.enrol = enrol;
    parsed.chosen = [&] { return enroll(context, parsed.enrol, parsed.words); };
  });
}

void add_sysdump(CLI::App& app, Context& context, Parsed& parsed) {
  auto* command = add_command(
      app, "sysdump", "collect what an error report needs in a .tar.gz; keys, tokens and Secrets left out");
  command->add_option("-o,--file", parsed.sysdump.file, "default: nodemesh-sysdump-TIME.tar.gz")
      ->type_name("FILE");
  command->add_option("--max-mib", parsed.sysdump.max_mib, "of all that is collected, before compression")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->type_name("MIB");
  command->callback([&] { parsed.chosen = [&] { return sysdump(context, parsed.sysdump); }; });
}

void add_install_flags(CLI::App& command, InstallOptions& options) {
  command.add_option("--helm", options.helm, "the Helm program, by name or path")
      ->capture_default_str()
      ->type_name("PATH");
  command.add_flag("--dry-run", options.dry_run, "say what would be done, change nothing");
  command.add_option("--wait", options.wait_seconds, "how long to wait for pods; 0: not at all")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str()
      ->type_name("SECONDS");
}

// install and upgrade: by Helm where it and the chart are there, else by the manifests in the program.
void add_install_command(CLI::App& app, Context& context, InstallOptions& options, const char* name,
                         const char* text, int (*run)(Context&, const InstallOptions&),
                         std::function<int()>& chosen) {
  auto* command = add_command(app, name, text);
  add_install_flags(*command, options);
  command->add_option("--profile", options.profile, "default, minimal, strict, monitoring or test")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--set", options.set, "NAME=VALUE of the chart; may be repeated; needs Helm")
      ->allow_extra_args(false)
      ->type_name("VALUE");
  command
      ->add_option("--chart", options.chart, "the chart for Helm (default: ../share/nodemesh beside meshctl)")
      ->envname("NODEMESH_CHART")
      ->type_name("PATH");
  command
      ->add_option("--crds", options.crds,
                   "Istio's CRDs, installed where absent (Helm has them in the chart)")
      ->type_name("FILE");
  command->add_flag("--no-helm", options.no_helm, "apply the manifests in meshctl although there is Helm");
  command->callback([&context, &options, &chosen, run] {
    chosen = [&context, &options, run] { return run(context, options); };
  });
}

void add_commands(CLI::App& app, Context& context, Parsed& parsed) {
  auto* status_command = add_command(app, "status", "whether each node is ready, and what is wrong");
  status_command->callback([&] { parsed.chosen = [&] { return status(context); }; });

  auto* get_command = add_command(
      app, "get", "what an agent knows: workloads, services, policies, certs, connections, listeners");
  get_command->add_option("kind", parsed.kind, "one of these, singular or plural")
      ->required()
      ->check([](const std::string& kind) {
        return plural_kind(kind).empty()
                   ? "there is no '" + kind +
                         "'; use workloads, services, policies, certs, connections or listeners"
                   : "";
      });
  get_command->callback([&] { parsed.chosen = [&] { return get(context, plural_kind(parsed.kind)); }; });

  auto* log_command = add_command(app, "log", "log levels of the agents");
  log_command->require_subcommand(1);
  add_command(*log_command, "get", "show them")->callback([&] {
    parsed.chosen = [&] { return log_get(context); };
  });
  auto* set_command = add_command(*log_command, "set", "change one");
  set_command->add_option("component", parsed.component, "a component of `log get`, or all")->required();
  set_command->add_option("level", parsed.level, "debug, info, warn, error or off")
      ->required()
      ->check(CLI::IsMember({"debug", "info", "warn", "error", "off"}));
  set_command->add_option("--for", parsed.duration, "go back after this time, for example 5m")
      ->type_name("TIME");
  set_command->callback([&] {
    parsed.chosen = [&] { return log_set(context, parsed.component, parsed.level, parsed.duration); };
  });

  auto* version_command = add_command(app, "version", "of meshctl and of the agents that answer");
  version_command->add_flag("--client", parsed.client_only, "of meshctl only");
  version_command->callback([&] { parsed.chosen = [&] { return version(context, parsed.client_only); }; });

  add_enrolment(app, context, parsed, true);
  add_enrolment(app, context, parsed, false);
  add_sysdump(app, context, parsed);
  add_install_command(app, context, parsed.install, "install", "bring nodemesh to a cluster", install,
                      parsed.chosen);
  add_install_command(app, context, parsed.install, "upgrade",
                      "bring an installation to this version or to another profile", upgrade, parsed.chosen);
  auto* uninstall_command =
      add_command(app, "uninstall", "take nodemesh from a cluster; its pods talk plainly then");
  add_install_flags(*uninstall_command, parsed.install);
  uninstall_command->add_flag("--verify", parsed.install.verify,
                              "look for what is left, and say how to remove it");
  uninstall_command->callback([&] { parsed.chosen = [&] { return uninstall(context, parsed.install); }; });

  auto* check_command =
      add_command(app, "check", "what is wrong with a cluster and with nodemesh on it, and what to do");
  check_command->add_flag("--pre", parsed.pre, "before an installation: whether it can work here");
  check_command->add_option("--explain", parsed.explain, "say what a check means; all: every one")
      ->type_name("ID");
  check_command->callback(
      [&] { parsed.chosen = [&] { return check(context, parsed.pre, parsed.explain); }; });

  auto* ready_command =
      add_command(app, "ready", "whether health ports say ready, at all addresses of a name");
  ready_command->add_option("url", parsed.urls, "http://HOST:PORT/PATH")->required();
  ready_command->add_option("--wait", parsed.wait_seconds, "how long to wait until they do")
      ->check(CLI::Range(0, 3600))
      ->type_name("SECONDS");
  ready_command->callback(
      [&] { parsed.chosen = [&] { return ready(context, parsed.urls, parsed.wait_seconds); }; });

  auto* completion_command =
      add_command(app, "completion", "print a completion script, e.g. `source <(meshctl completion bash)`");
  completion_command->add_option("shell", parsed.shell, "bash, zsh, fish, or kubectl for its plugin")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish", "kubectl"}));
  completion_command->callback([&] { parsed.chosen = [&] { return completion(context, parsed.shell); }; });

#ifdef NODEMESH_NODE_RUN
  // Only described here; main() hands the arguments over unparsed.
  auto* node_command = add_command(app, "node", "run a node on this machine");
  add_command(*node_command, "run",
              "start the warden and the proxy of one node: --config DIR --node NAME, see --help");
  node_command->require_subcommand(1);
#endif

  auto* complete_command = app.add_subcommand("__complete", "")->group("");
  complete_command->add_option("words", parsed.words);
  complete_command->callback([&] { parsed.chosen = [&] { return complete(context, app, parsed.words); }; });
}

// What is wrong with the words, and the command whose help says what would be right.
int wrong_usage(const Context& context, const CLI::App& app, const CLI::ParseError& error) {
  std::string called = "meshctl";
  const CLI::App* at = &app;
  for (auto chosen = at->get_subcommands(); !chosen.empty(); chosen = at->get_subcommands()) {
    at = chosen.front();
    called += " " + at->get_name();
  }
  auto left = app.remaining(true);
  // CLI11 misses the command before it looks at the word in its place.
  bool no_such = at->get_require_subcommand_min() > 0 && !left.empty();
  std::string why = error.what();
  if (no_such)
    why = "`" + called + "` has no " + (left.front().starts_with('-') ? "flag " : "command ") + left.front();
  return context.failed(kUsage, why, "see `" + called + " --help`");
}

// kubectl runs its plugin `kubectl mesh` as a program of this name.
std::string_view name_of(int argc, const char* const* argv) {
  std::string_view path = argc > 0 ? argv[0] : "";
  return path.substr(path.rfind('/') + 1) == "kubectl-mesh" ? "kubectl mesh" : "meshctl";
}

}  // namespace

int run(int argc, const char* const* argv, std::ostream& out, std::ostream& err, bool colour) {
  std::string program(name_of(argc, argv));
  CLI::App app("Observe and steer nodemesh.", program);
  app.footer(kFooter);
  app.require_subcommand(1);
  Context context{out, err, colour, program};
  Parsed parsed;
  add_global_flags(app, context);
  app.set_version_flag("--version", "meshctl " NODEMESH_VERSION);
  add_commands(app, context, parsed);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success, out, err) == 0 ? kOk : kFailure;
  } catch (const CLI::ParseError& error) {
    return wrong_usage(context, app, error);
  }
  context.run_dir_given = app.get_option("--run-dir")->count() > 0;
  return parsed.chosen ? parsed.chosen() : kOk;
}

}  // namespace nodemesh::ctl
