// The messages between warden and proxy: fixed-size structs behind one header, one per SEQPACKET datagram,
// descriptors beside them by SCM_RIGHTS. Pure codec: values in, values out, any thread. Both ends check
// everything, since the proxy may be compromised and the warden must survive any bytes; a message that does
// not pass ends the channel.
//
// The order of a session: proxy HELLO, RETURN_LISTENERS per pod it still serves (after a warden restart),
// RETURN_DONE; warden WELCOME, KEYS if it holds them, POD_ADD per pod, SNAPSHOT_SENT; then both as things
// happen.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "base/reason.h"
#include "bpf/abi.h"
#include "model/workload.h"

namespace nodemesh::warden {

inline constexpr uint32_t kChannelVersion = 3;
inline constexpr uint32_t kMaxWorkers = NM_MAX_WORKERS;
inline constexpr uint32_t kMaxSocketBatch = 64;
inline constexpr size_t kMaxDescriptors = 253;  // SCM_MAX_FD
static_assert(kMaxWorkers * NM_LISTENER_COUNT <= kMaxDescriptors);

enum class MessageType : uint16_t {
  // proxy to warden
  hello = 1,
  return_listeners,
  return_done,
  want_sockets,
  takeover_ready,
  pod_gone_ack,
  store_keys,
  want_kernel_stats = 9,
  // warden to proxy
  welcome = 64,
  pod_add,
  pod_update,
  pod_gone,
  sockets,
  keys,
  kernel_stats,
  snapshot_sent,
  superseded,
};

// What a socket made by the opener is for: `out` towards anything, `in` towards the pod's own application,
// able to bind the client's address (marked, transparent).
enum class SocketKind : uint32_t { out = 0, in = 1 };
inline constexpr size_t kSocketKinds = 2;

struct Header {
  uint16_t type;      // MessageType
  uint16_t size;      // of header and body
  uint32_t sequence;  // counts per sender from 1; a gap or repeat ends the channel
};

struct Hello {
  static constexpr auto kType = MessageType::hello;
  uint32_t version = kChannelVersion;
  static constexpr uint32_t kDraining = 1;  // it has no listeners any more and takes none
  uint32_t workers = 1;                     // 1..kMaxWorkers: listeners per pod and kind
  uint32_t flags = 0;
};

struct ReturnListeners {  // + NM_LISTENER_COUNT × workers descriptors, ordered by kind, then worker
  static constexpr auto kType = MessageType::return_listeners;
  uint64_t cookie = 0;
};

struct ReturnDone {
  static constexpr auto kType = MessageType::return_done;
};

struct WantSockets {
  static constexpr auto kType = MessageType::want_sockets;
  uint64_t cookie = 0;
  uint32_t kind = 0;   // SocketKind
  uint32_t count = 0;  // 1..kMaxSocketBatch
};

struct TakeoverReady {  // the proxy accepts on this pod's listeners: publish them in the kernel
  static constexpr auto kType = MessageType::takeover_ready;
  uint64_t cookie = 0;
};

struct PodGoneAck {  // no descriptor of the pod's namespace is left in the proxy
  static constexpr auto kType = MessageType::pod_gone_ack;
  uint64_t cookie = 0;
};

struct StoreKeys {  // + one sealed memfd, which replaces the one the warden held
  static constexpr auto kType = MessageType::store_keys;
};

struct WantKernelStats {
  static constexpr auto kType = MessageType::want_kernel_stats;
};

struct Welcome {
  static constexpr auto kType = MessageType::welcome;
  static constexpr uint32_t kFailOpen = 1, kStrict = 2;
  static constexpr uint32_t kStandby =
      4;  // another warden serves the node: nothing else comes here until it ends
  static constexpr uint32_t kHandsOver = 8;  // SUPERSEDED may come when this agent is told to end
  uint64_t generation = 0;                   // of the warden's process, rising
  uint32_t version = kChannelVersion;
  uint32_t flags = 0;
};

struct PodRecord {
  static constexpr uint32_t kEnrolled = 1;    // captured; without it listeners close and sessions run out
  static constexpr uint32_t kSourceKept = 2;  // `in` sockets may bind the client's address
  static constexpr uint32_t kIpv6 = 4;        // sockets are AF_INET6 with V6ONLY off; otherwise AF_INET
  uint64_t cookie = 0;                        // of the network namespace
  uint32_t flags = 0;
  uint32_t address_count = 0;  // 1..NM_POD_ADDRESSES
  uint8_t addresses[NM_POD_ADDRESSES][16] = {};
  char uid[64] = {};  // NUL-terminated, the rest zero; so the next two
  char ns[64] = {};
  char name[256] = {};
};
static_assert(sizeof(PodRecord::uid) == model::kMaxUid + 1);

struct PodAdd {  // + NM_LISTENER_COUNT × workers descriptors as above, or none: keep those that were returned
  static constexpr auto kType = MessageType::pod_add;
  PodRecord pod;
};

struct PodUpdate {
  static constexpr auto kType = MessageType::pod_update;
  PodRecord pod;
};

struct PodGone {  // close every descriptor of the namespace within a second, then PodGoneAck
  static constexpr auto kType = MessageType::pod_gone;
  uint64_t cookie = 0;
};

struct Sockets {  // + `count` descriptors
  static constexpr auto kType = MessageType::sockets;
  uint64_t cookie = 0;
  uint32_t kind = 0;     // SocketKind
  uint32_t count = 0;    // 0 with a reason
  uint32_t reason = 0;   // enum nm_reason
  uint32_t request = 0;  // sequence of the WantSockets it answers
};

struct Keys {  // + one sealed memfd, or none when the warden holds none
  static constexpr auto kType = MessageType::keys;
};

struct KernelStats {
  static constexpr auto kType = MessageType::kernel_stats;
  static constexpr size_t kReasons = 96, kCounters = 32;
  uint64_t drops[kReasons] = {};      // by enum nm_reason
  uint64_t counters[kCounters] = {};  // by enum nm_counter
};
static_assert(NM_REASON_COUNT <= KernelStats::kReasons && NM_COUNT_COUNTERS <= KernelStats::kCounters);

struct SnapshotSent {
  static constexpr auto kType = MessageType::snapshot_sent;
};

struct Superseded {  // another agent of this node has the pods: drain, without limit while this channel lives
  static constexpr auto kType = MessageType::superseded;
};

using ProxyMessage = std::variant<Hello, ReturnListeners, ReturnDone, WantSockets, TakeoverReady, PodGoneAck,
                                  StoreKeys, WantKernelStats>;
using WardenMessage =
    std::variant<Welcome, PodAdd, PodUpdate, PodGone, Sockets, Keys, KernelStats, SnapshotSent, Superseded>;

// Both sides' largest message, header included.
inline constexpr size_t kMaxMessage = sizeof(Header) + sizeof(KernelStats);

// Bytes of header and body; the reverse of decode.
template <class Message>
std::vector<std::byte> encode(const Message& message, uint32_t sequence) {
  static_assert(std::is_trivially_copyable_v<Message>);
  constexpr size_t body = std::is_empty_v<Message> ? 0 : sizeof(Message);
  Header header{static_cast<uint16_t>(Message::kType), static_cast<uint16_t>(sizeof(Header) + body),
                sequence};
  std::vector<std::byte> out(sizeof(Header) + body);
  std::memcpy(out.data(), &header, sizeof header);
  if constexpr (body != 0) std::memcpy(out.data() + sizeof header, &message, body);
  return out;
}

// One datagram that came with `descriptors` descriptors, checked in full: type of that direction, exact size,
// the expected sequence, ranges, terminated strings, descriptor count. Errors say which field.
Result<ProxyMessage> decode_from_proxy(std::span<const std::byte> datagram, size_t descriptors,
                                       uint32_t sequence);
Result<WardenMessage> decode_from_warden(std::span<const std::byte> datagram, size_t descriptors,
                                         uint32_t sequence);

// Copies with truncation refused: false when `text` does not fit.
[[nodiscard]] bool copy_text(std::span<char> field, std::string_view text);

}  // namespace nodemesh::warden
