#include "proxy/connect.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include <fmt/format.h>

#include "proxy/worker.h"

namespace nodemesh::proxy {
namespace {

int borrow_address(int socket, const Addr& client, int family, std::mt19937_64& random, int clashes) {
  std::uniform_int_distribution<uint16_t> any(kBorrowedPorts.first, kBorrowedPorts.last);
  for (;; ++clashes) {
    bool last = clashes >= kMostClashes;
    sockaddr_storage native;
    socklen_t size = SockAddr{client, last ? uint16_t{0} : any(random)}.to_native(native, family);
    if (::bind(socket, reinterpret_cast<sockaddr*>(&native), size) == 0) return 0;
    if (errno != EADDRINUSE || last) return errno;  // in use: the application listens there
  }
}

}  // namespace

std::shared_ptr<const std::string> identity_of(const model::Shared<model::Workload>& workload) {
  if (workload == nullptr) return nullptr;
  return {workload, &workload->identity.str()};
}

int connect_application(io::TcpEnd& end, Fd socket, const SockAddr& target, const Addr& client,
                        const PodState& pod, std::mt19937_64& random, int clashes) {
  // A pod that calls itself through a Service keeps its own address; binding it would clash with its sockets.
  bool borrow = pod.info.source_kept && client.is_v4() == target.ip.is_v4() && client != target.ip &&
                !client.is_loopback() && !client.is_unspecified();
  if (borrow) {
    if (int error = borrow_address(socket.get(), client, pod.family, random, clashes)) return error;
  }
  return end.connect(std::move(socket), target, pod.family);
}

bool is_own_listener(const PodState& pod, const SockAddr& target) {
  return target.port == NM_HBONE_PORT ||
         std::ranges::find(pod.listener_ports, target.port) != pod.listener_ports.end();
}

std::string make_traceparent(std::mt19937_64& random) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text = "00-00000000000000000000000000000000-0000000000000000-00";
  auto fill = [&](size_t at) {
    uint64_t bits = random() | 1;  // an id of all zeros is invalid
    for (size_t i = 0; i < 16; ++i) text[at + i] = kHex[(bits >> (4 * i)) & 15];
  };
  for (size_t at : {size_t{3}, size_t{19}, size_t{36}}) fill(at);
  return text;
}

std::string baggage_of(const model::Workload& workload) {
  std::string_view type = workload.workload_type;
  bool known = type == "deployment" || type == "job" || type == "cronjob";
  return fmt::format(
      "k8s.cluster.name=Kubernetes,k8s.namespace.name={},k8s.{}.name={},service.name={},service.version={}",
      workload.ns, known ? type : "pod", known ? workload.workload_name : workload.name,
      workload.canonical_name, workload.canonical_revision);
}

Result<> open_tunnel_stream(http::HboneConnection& connection, TunnelRelay& relay, const SockAddr& target,
                            const telemetry::Record& record, const PodState& source,
                            std::mt19937_64& random) {
  std::string authority = target.to_string();
  std::string forwarded = fmt::format("for=\"{}\"", record.src.to_string());
  if (record.service != nullptr) forwarded += ";host=" + record.service->host;
  std::string traceparent = make_traceparent(random);
  std::array<http::HeaderField, 5> headers = {{{":method", "CONNECT"},
                                               {":authority", authority},
                                               {"baggage", source.baggage},
                                               {"forwarded", forwarded, true},
                                               {"traceparent", traceparent, true}}};
  auto opened = connection.session().open(relay, headers);
  connection.schedule_flush();
  return opened;
}

}  // namespace nodemesh::proxy
