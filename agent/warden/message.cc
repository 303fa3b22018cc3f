#include "warden/message.h"

#include <fmt/format.h>

#include <algorithm>

namespace nodemesh::warden {
namespace {

using Checked = Result<>;

std::unexpected<Error> refuse(std::string_view message, std::string_view what) {
  return fail(fmt::format("channel message {}: {}", message, what));
}

bool terminated(std::span<const char> field) {
  auto end = std::find(field.begin(), field.end(), '\0');
  return end != field.end() && std::all_of(end, field.end(), [](char c) { return c == '\0'; });
}

Checked check_count(std::string_view message, std::string_view field, uint64_t value, uint64_t low,
                    uint64_t high) {
  if (value >= low && value <= high) return {};
  return refuse(message, fmt::format("{} is {}, must be {}..{}", field, value, low, high));
}

Checked check_descriptors(std::string_view message, size_t have, size_t low, size_t high) {
  return check_count(message, "the number of descriptors", have, low, high);
}

Checked check_listeners(std::string_view message, size_t descriptors) {
  if (auto ok = check_descriptors(message, descriptors, NM_LISTENER_COUNT, NM_LISTENER_COUNT * kMaxWorkers);
      !ok)
    return ok;
  if (descriptors % NM_LISTENER_COUNT == 0) return {};
  return refuse(message, fmt::format("{} descriptors are not a whole number of workers", descriptors));
}

Checked check_record(std::string_view message, const PodRecord& pod) {
  if (pod.cookie == 0) return refuse(message, "cookie is 0");
  if (pod.flags & ~(PodRecord::kEnrolled | PodRecord::kSourceKept | PodRecord::kIpv6)) {
    return refuse(message, "flags has unknown bits");
  }
  if (!terminated(pod.uid) || !terminated(pod.ns) || !terminated(pod.name)) {
    return refuse(message, "a name is not terminated");
  }
  return check_count(message, "address_count", pod.address_count, 1, NM_POD_ADDRESSES);
}

// One overload per message: ranges of its fields and the descriptors it must come with.
Checked check(const Hello& m, size_t n) {
  if (m.version != kChannelVersion) {
    return refuse("HELLO", fmt::format("version is {}, must be {}: run warden and proxy of one release",
                                       m.version, kChannelVersion));
  }
  if (auto ok = check_count("HELLO", "workers", m.workers, 1, kMaxWorkers); !ok) return ok;
  if (m.flags & ~Hello::kDraining) return refuse("HELLO", "flags has unknown bits");
  return check_descriptors("HELLO", n, 0, 0);
}
Checked check(const ReturnListeners&, size_t n) {
  return check_listeners("RETURN_LISTENERS", n);
}
Checked check(const ReturnDone&, size_t n) {
  return check_descriptors("RETURN_DONE", n, 0, 0);
}
Checked check(const WantSockets& m, size_t n) {
  if (auto ok = check_count("WANT_SOCKETS", "kind", m.kind, 0, kSocketKinds - 1); !ok) return ok;
  if (auto ok = check_count("WANT_SOCKETS", "count", m.count, 1, kMaxSocketBatch); !ok) return ok;
  return check_descriptors("WANT_SOCKETS", n, 0, 0);
}
Checked check(const TakeoverReady&, size_t n) {
  return check_descriptors("TAKEOVER_READY", n, 0, 0);
}
Checked check(const PodGoneAck&, size_t n) {
  return check_descriptors("POD_GONE_ACK", n, 0, 0);
}
Checked check(const StoreKeys&, size_t n) {
  return check_descriptors("STORE_KEYS", n, 1, 1);
}
Checked check(const WantKernelStats&, size_t n) {
  return check_descriptors("WANT_KERNEL_STATS", n, 0, 0);
}

Checked check(const Welcome& m, size_t n) {
  if (m.version != kChannelVersion) {
    return refuse("WELCOME", fmt::format("version is {}, must be {}: run warden and proxy of one release",
                                         m.version, kChannelVersion));
  }
  return check_descriptors("WELCOME", n, 0, 0);
}
Checked check(const PodAdd& m, size_t n) {
  if (auto ok = check_record("POD_ADD", m.pod); !ok) return ok;
  return n == 0 ? Checked{} : check_listeners("POD_ADD", n);
}
Checked check(const PodUpdate& m, size_t n) {
  if (auto ok = check_record("POD_UPDATE", m.pod); !ok) return ok;
  return check_descriptors("POD_UPDATE", n, 0, 0);
}
Checked check(const PodGone&, size_t n) {
  return check_descriptors("POD_GONE", n, 0, 0);
}
Checked check(const Sockets& m, size_t n) {
  if (auto ok = check_count("SOCKETS", "kind", m.kind, 0, kSocketKinds - 1); !ok) return ok;
  if (auto ok = check_count("SOCKETS", "count", m.count, 0, kMaxSocketBatch); !ok) return ok;
  if (auto ok = check_count("SOCKETS", "reason", m.reason, 0, NM_REASON_COUNT - 1); !ok) return ok;
  return check_descriptors("SOCKETS", n, m.count, m.count);
}
Checked check(const Keys&, size_t n) {
  return check_descriptors("KEYS", n, 0, 1);
}
Checked check(const KernelStats&, size_t n) {
  return check_descriptors("KERNEL_STATS", n, 0, 0);
}
Checked check(const SnapshotSent&, size_t n) {
  return check_descriptors("SNAPSHOT_SENT", n, 0, 0);
}
Checked check(const Superseded&, size_t n) {
  return check_descriptors("SUPERSEDED", n, 0, 0);
}

template <class Variant, class Message>
Result<Variant> read(std::span<const std::byte> datagram, size_t descriptors) {
  constexpr size_t body = std::is_empty_v<Message> ? 0 : sizeof(Message);
  if (datagram.size() != sizeof(Header) + body) {
    return fail(fmt::format("channel message of type {}: {} bytes, must be {}",
                            static_cast<int>(Message::kType), datagram.size(), sizeof(Header) + body));
  }
  Message message{};
  if constexpr (body != 0) std::memcpy(&message, datagram.data() + sizeof(Header), body);
  if (auto ok = check(message, descriptors); !ok) return std::unexpected(std::move(ok.error()));
  return Variant(message);
}

template <class Variant, size_t... I>
Result<Variant> read_any(uint16_t type, std::span<const std::byte> datagram, size_t descriptors,
                         std::index_sequence<I...>) {
  Result<Variant> out = fail(fmt::format("channel message of unknown type {}", type));
  (void)((static_cast<uint16_t>(std::variant_alternative_t<I, Variant>::kType) == type &&
          (out = read<Variant, std::variant_alternative_t<I, Variant>>(datagram, descriptors), true)) ||
         ...);
  return out;
}

template <class Variant>
Result<Variant> decode(std::span<const std::byte> datagram, size_t descriptors, uint32_t sequence) {
  Header header;
  if (datagram.size() < sizeof header) {
    return fail(fmt::format("channel message of {} bytes is shorter than a header", datagram.size()));
  }
  std::memcpy(&header, datagram.data(), sizeof header);
  if (header.size != datagram.size()) {
    return fail(fmt::format("channel message of type {} says {} bytes and has {}", header.type, header.size,
                            datagram.size()));
  }
  if (header.sequence != sequence) {
    return fail(fmt::format("channel message of type {} has sequence {}, expected {}", header.type,
                            header.sequence, sequence));
  }
  return read_any<Variant>(header.type, datagram, descriptors,
                           std::make_index_sequence<std::variant_size_v<Variant>>());
}

}  // namespace

Result<ProxyMessage> decode_from_proxy(std::span<const std::byte> datagram, size_t descriptors,
                                       uint32_t sequence) {
  return decode<ProxyMessage>(datagram, descriptors, sequence);
}

Result<WardenMessage> decode_from_warden(std::span<const std::byte> datagram, size_t descriptors,
                                         uint32_t sequence) {
  return decode<WardenMessage>(datagram, descriptors, sequence);
}

bool copy_text(std::span<char> field, std::string_view text) {
  if (text.size() >= field.size() || text.find('\0') != text.npos) return false;
  std::fill(field.begin(), field.end(), '\0');
  std::copy(text.begin(), text.end(), field.begin());
  return true;
}

}  // namespace nodemesh::warden
