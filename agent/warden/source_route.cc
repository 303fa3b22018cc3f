#include "warden/source_route.h"

#include <fcntl.h>
#include <linux/fib_rules.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <vector>

#include "base/fd.h"
#include "bpf/abi.h"
#include "warden/namespaces.h"
#include "warden/netlink.h"

namespace nodemesh::warden {
namespace {

constexpr uint32_t kRulePriority = 50;  // before the main table (32766) and a CNI's own rules
constexpr std::array<const char*, 2> kIpv4Settings{"net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect"};
constexpr const char* kIpv6Setting = "net/ipv6/fwmark_reflect";
constexpr const char* kReservedPorts = "net/ipv4/ip_local_reserved_ports";

std::string capture_range() {
  return std::to_string(NM_CAPTURE_PORT_BASE) + "-" +
         std::to_string(NM_CAPTURE_PORT_BASE + NM_CAPTURE_PORT_COUNT - 1);
}

// /proc/sys/net shows the namespace of the task that opens the file.
Result<std::string> read_setting(const std::string& proc, const char* name) {
  Fd file(::open((proc + "/sys/" + name).c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return fail_errno(proc + "/sys/" + name);
  std::string out(65536, '\0');
  ssize_t length = ::read(file.get(), out.data(), out.size());
  if (length < 0) return fail_errno(name);
  out.resize(static_cast<size_t>(length));
  while (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

Result<> write_setting(const std::string& proc, const char* name, std::string value) {
  Fd file(::open((proc + "/sys/" + name).c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return fail_errno(proc + "/sys/" + name);
  value += '\n';
  if (::write(file.get(), value.data(), value.size()) < 0) return fail_errno(name);
  return {};
}

NetlinkRequest rule(uint8_t family, uint16_t type, uint16_t flags) {
  NetlinkRequest request(type, flags,
                         fib_rule_hdr{.family = family, .table = NM_ROUTE_TABLE, .action = FR_ACT_TO_TBL});
  request.add_u32(FRA_PRIORITY, kRulePriority);
  request.add_u32(FRA_FWMARK, NM_MARK);
  request.add_u32(FRA_FWMASK, 0xffffffff);
  request.add_u32(FRA_TABLE, NM_ROUTE_TABLE);
  return request;
}

NetlinkRequest everything_local(uint8_t family, uint16_t type, uint16_t flags) {
  // A deletion that leaves the protocol open also finds a route that someone else has made with the same
  // meaning.
  rtmsg message{.rtm_family = family,
                .rtm_table = NM_ROUTE_TABLE,
                .rtm_protocol = RTPROT_STATIC,
                .rtm_scope = static_cast<uint8_t>(family == AF_INET ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE),
                .rtm_type = RTN_LOCAL};
  NetlinkRequest request(type, flags, message);
  request.add_u32(RTA_TABLE, NM_ROUTE_TABLE);
  request.add_u32(RTA_OIF, ::if_nametoindex("lo"));
  return request;
}

Result<> expect(Result<int> answer, int tolerated, const char* what) {
  if (!answer) return std::unexpected(std::move(answer.error()));
  if (*answer == 0 || *answer == tolerated) return {};
  errno = *answer;
  return fail_errno(what);
}

Result<> add_routes(Netlink& netlink, uint8_t family) {
  auto route = netlink.acknowledge(everything_local(family, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE));
  if (route && *route == ENETDOWN)
    return fail("the pod's loopback interface is down: set lo up in its namespace");
  if (auto ok = expect(std::move(route), EEXIST, "local route in table 100"); !ok) return ok;
  return expect(netlink.acknowledge(rule(family, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)), EEXIST,
                "rule for marked packets");
}

Result<> install_family(Netlink& netlink, const std::string& proc, uint8_t family) {
  if (family == AF_INET) {
    for (const char* name : kIpv4Settings) {
      if (auto ok = write_setting(proc, name, "1"); !ok) return ok;
    }
  } else if (auto ok = write_setting(proc, kIpv6Setting, "1"); !ok) {
    return ok;
  }
  return add_routes(netlink, family);
}

std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> out;
  while (!list.empty()) {
    size_t comma = std::min(list.find(','), list.size());
    if (comma > 0) out.push_back(list.substr(0, comma));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return out;
}

// The kernel merges neighbouring ranges: "60999,61000-65095" comes back as "60999-65095".
struct PortRange {
  unsigned first = 0, last = 0;
};
PortRange parse_range(std::string_view text) {
  std::string copy(text);
  char* end = nullptr;
  PortRange range;
  range.first = range.last = static_cast<unsigned>(std::strtoul(copy.c_str(), &end, 10));
  if (*end == '-') range.last = static_cast<unsigned>(std::strtoul(end + 1, nullptr, 10));
  return range;
}

void append(std::string& list, unsigned first, unsigned last) {
  if (first > last) return;
  if (!list.empty()) list += ',';
  list += std::to_string(first);
  if (last != first) list += '-' + std::to_string(last);
}

}  // namespace

std::string without_capture_range(std::string_view list) {
  constexpr unsigned low = NM_CAPTURE_PORT_BASE, high = NM_CAPTURE_PORT_BASE + NM_CAPTURE_PORT_COUNT - 1;
  std::string out;
  for (std::string_view item : split(list)) {
    PortRange range = parse_range(item);
    if (range.last < low || range.first > high) {
      append(out, range.first, range.last);
      continue;
    }
    if (range.first < low) append(out, range.first, low - 1);
    if (range.last > high) append(out, high + 1, range.last);
  }
  return out;
}

std::string with_capture_range(std::string_view list) {
  std::string out = without_capture_range(list);
  if (!out.empty()) out += ',';
  return out + capture_range();
}

Result<SourceRoute> install_source_route(int netns, const std::string& proc, bool ipv6) {
  auto inside = InNamespace::enter(netns);
  if (!inside) return std::unexpected(std::move(inside.error()));
  SourceRoute out;
  auto note = [&](const Error& error) {
    if (!out.missing.empty()) out.missing += "; ";
    out.missing += error.message;
  };
  auto netlink = Netlink::open();
  if (!netlink) return std::unexpected(std::move(netlink.error()));
  if (auto ok = install_family(*netlink, proc, AF_INET); ok) {
    out.ipv4 = true;
  } else {
    note(ok.error());
  }
  if (ipv6) {
    if (auto ok = install_family(*netlink, proc, AF_INET6); ok) {
      out.ipv6 = true;
    } else {
      note(ok.error());
    }
  }
  auto reserved = read_setting(proc, kReservedPorts);
  auto ok = reserved ? write_setting(proc, kReservedPorts, with_capture_range(*reserved))
                     : Result<>(std::unexpected(reserved.error()));
  if (!ok) note(ok.error());
  return out;
}

Result<> remove_source_route(int netns, const std::string& proc) {
  auto inside = InNamespace::enter(netns);
  if (!inside) return std::unexpected(std::move(inside.error()));
  auto netlink = Netlink::open();
  if (!netlink) return std::unexpected(std::move(netlink.error()));
  for (uint8_t family : {uint8_t{AF_INET}, uint8_t{AF_INET6}}) {
    // Absent (never installed, or IPv6 off) is as good as removed.
    (void)netlink->acknowledge(rule(family, RTM_DELRULE, 0));
    (void)netlink->acknowledge(everything_local(family, RTM_DELROUTE, 0));
  }
  for (const char* name : kIpv4Settings) (void)write_setting(proc, name, "0");
  (void)write_setting(proc, kIpv6Setting, "0");
  if (auto reserved = read_setting(proc, kReservedPorts)) {
    return write_setting(proc, kReservedPorts, without_capture_range(*reserved));
  }
  return {};
}

}  // namespace nodemesh::warden
