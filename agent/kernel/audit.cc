#include "kernel/audit.h"

#include <bpf/bpf.h>
#include <fmt/format.h>
#include <linux/bpf.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "kernel/link.h"
#include "kernel/objects.h"

namespace nodemesh::kernel {
namespace {

using Severity = Finding::Severity;

// What is the same for both kinds of link.
void audit_link(const std::string& what, const Link& link, std::vector<Finding>& findings) {
  const Link::State now = link.state();
  if (now.program_id == 0 || now.target_id == 0) {
    findings.emplace_back(
        Severity::problem,
        what + ": our program is no longer attached; restart the warden to attach it again");
    return;
  }
  if (now.program_id != link.program_id())
    findings.emplace_back(
        Severity::problem,
        fmt::format("{}: program {} ({}) has taken the place of ours in our link; unless another "
                    "generation of the agent took over, restart the warden",
                    what, now.program_id, program_name(now.program_id)));
  if (!now.pinned)
    findings.emplace_back(
        Severity::problem,
        what + ": the link's pin is gone, so capture ends with this process; restart the warden");
}

}  // namespace

void audit_hook(const Hook& hook, const Link& link, int cgroup_fd, std::vector<Finding>& findings) {
  const std::string what = fmt::format("hook {}", hook.name);
  audit_link(what, link, findings);

  std::array<uint32_t, 64> programs{};
  uint32_t count = programs.size();
  uint32_t flags = 0;
  if (::bpf_prog_query(cgroup_fd, static_cast<bpf_attach_type>(hook.attach_type), BPF_F_QUERY_EFFECTIVE,
                       &flags, programs.data(), &count) != 0) {
    findings.emplace_back(Severity::problem,
                          fmt::format("{}: cannot be queried: {}", what, std::strerror(errno)));
    return;
  }
  for (uint32_t i = 0; i < count && i < programs.size(); i++)
    if (programs[i] != link.program_id())
      findings.emplace_back(Severity::info,
                            fmt::format("{}: program {} ({}) runs here too, {} ours", what, programs[i],
                                        program_name(programs[i]), i == 0 ? "before" : "beside"));
}

void audit_steering(uint64_t netns_cookie, const Link& link, std::vector<Finding>& findings) {
  audit_link(fmt::format("steering of the pod with namespace cookie {}", netns_cookie), link, findings);
}

}  // namespace nodemesh::kernel
