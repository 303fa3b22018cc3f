// `meshctl uninstall`: agents first, so that they let their pods go while they may still speak with the API
// server; then the rest, and what the controller made at run time. With --verify it looks for what is left.
#include <poll.h>

#include <algorithm>
#include <ostream>

#include <fmt/format.h>

#include "ctl/apply.h"
#include "ctl/helm.h"
#include "ctl/install.h"
#include "ctl/manifests.h"
#include "ctl/rollout.h"

namespace nodemesh::ctl {
namespace {

constexpr int kBetweenLooks = 500;  // ms
constexpr seconds kSettle{30};

Result<> remove_agents(ClusterApi& api, Applier& applier, const std::string& ns) {
  auto there = find_own(api, ns);
  if (!there) return std::unexpected(there.error());
  for (const auto& object : *there) {
    // The budget would hold the controllers' pods back; it serves nobody any more.
    bool first = object.kind->kind == std::string_view("DaemonSet") ||
                 object.kind->kind == std::string_view("Deployment") ||
                 object.kind->kind == std::string_view("PodDisruptionBudget");
    if (!first) continue;
    if (auto done = applier.remove(object); !done) return done;
  }
  return {};
}

Result<> remove_rest(ClusterApi& api, Applier& applier, const std::string& ns) {
  auto there = find_own(api, ns);
  if (!there) return std::unexpected(there.error());
  for (const auto& object : *there) {
    if (auto done = applier.remove(object); !done) return done;
  }
  return {};
}

int remove_release(Context& context, const std::string& helm) {
  std::vector<std::string> words{"uninstall", std::string(kRelease), "--ignore-not-found"};
  for (auto& flag : helm_flags(context)) words.push_back(flag);
  context.out << fmt::format("by Helm: {} {}\n", helm, fmt::join(words, " ")) << std::flush;
  auto code = run_program(helm, words, "");
  if (!code) return context.failed(kFailure, code.error().message, "look at --helm");
  return *code == 0 ? kOk
                    : context.failed(kFailure, fmt::format("Helm ended with code {}", *code),
                                     "its words stand above");
}

// CRDs go a moment after they were deleted.
Result<std::vector<OwnObject>> settled(ClusterApi& api, const std::string& ns, seconds at_most) {
  auto until = Monotonic::now() + at_most;
  while (true) {
    auto left = find_own(api, ns);
    if (!left || left->empty() || Monotonic::now() > until) return left;
    ::poll(nullptr, 0, kBetweenLooks);
  }
}

int verify(Context& context, ClusterApi& api, const std::vector<NodeEnd>& ends, seconds at_most) {
  auto left = settled(api, context.ns, at_most);
  if (!left)
    return context.failed(kFailure, "what is left could not be seen: " + left.error().message,
                          "run `meshctl uninstall --verify` again");
  size_t found = left->size();
  for (const auto& object : *left)
    context.out << fmt::format("left: {}\n  remove: {}\n", printable(object.text()),
                               printable(object.removal()));
  for (const auto& end : ends) {
    if (end.doubt.empty()) continue;
    ++found;
    context.out << fmt::format(
        "in doubt: Node {}: {}\n  look there: ls -d /sys/fs/bpf/nodemesh; what is pinned there is removed by "
        "`rm -r` of it, "
        "or by a restart of the node\n",
        printable(end.node), printable(end.doubt));
  }
  if (found > 0)
    return context.failed(kFailure, fmt::format("{} things of nodemesh may be left", found),
                          "the commands stand above");
  context.out << fmt::format(
      "verified: nothing of nodemesh is left in the API; {} agents ended by themselves\n", ends.size());
  return kOk;
}

}  // namespace

int uninstall(Context& context, const InstallOptions& options) {
  auto found = find_installation(context);
  if (!found) return cluster_failed(context, found.error());
  auto& [api, installed] = *found;
  Applier applier(*api, context.out, options.dry_run);
  const seconds at_most(std::max(options.wait_seconds, 1));
  auto helm = find_program(options.helm);
  if (installed == Manner::helm && helm.empty())
    return context.failed(kFailure, "Helm has installed this, and there is no program " + options.helm,
                          "name it: --helm PATH");
  auto stopped = remove_agents(*api, applier, context.ns);
  std::vector<NodeEnd> ends;
  if (stopped && !options.dry_run) {
    auto gone = wait_gone(context, *api, at_most);
    if (!gone) stopped = std::unexpected(gone.error());
    if (gone) ends = std::move(*gone);
  }
  if (!stopped)
    return context.failed(kFailure, stopped.error().message,
                          fmt::format("kubectl get pods -n {} -o wide", context.ns));
  if (installed == Manner::helm && !options.dry_run) {
    if (int code = remove_release(context, helm); code != kOk) return code;
  }
  if (auto done = remove_rest(*api, applier, context.ns); !done)
    return context.failed(kFailure, done.error().message,
                          "run `meshctl uninstall` again: it goes on where it stopped");
  return options.verify && !options.dry_run ? verify(context, *api, ends, std::min(kSettle, at_most)) : kOk;
}

}  // namespace nodemesh::ctl
