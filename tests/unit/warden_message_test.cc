#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "warden/channel.h"
#include "warden/message.h"

using namespace nodemesh;
using namespace nodemesh::warden;

namespace {

Pod sample_pod() {
  return {.cookie = 77,
          .uid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
          .ns = "shop",
          .name = "web-0",
          .addresses = {Addr::v4(10, 0, 0, 1), *Addr::parse("fd00::1")},
          .enrolled = true,
          .source_kept = true,
          .ipv6 = true};
}

// The whole datagram with one byte of the header or body replaced.
template <class Message>
std::vector<std::byte> spoiled(const Message& message, size_t offset, uint8_t value) {
  auto bytes = encode(message, 1);
  bytes[offset] = std::byte{value};
  return bytes;
}

}  // namespace

TEST_CASE("a message of each direction survives encoding and decoding") {
  auto want = decode_from_proxy(encode(WantSockets{.cookie = 5, .kind = 1, .count = 64}, 9), 0, 9);
  REQUIRE(want);
  CHECK(std::get<WantSockets>(*want).count == 64);
  auto add = decode_from_warden(encode(PodAdd{to_record(sample_pod())}, 1), 6, 1);
  REQUIRE(add);
  CHECK(from_record(std::get<PodAdd>(*add).pod) == sample_pod());
}

TEST_CASE("a datagram shorter than a header, empty or longer than its type is refused") {
  CHECK_FALSE(decode_from_proxy({}, 0, 1));
  auto bytes = encode(TakeoverReady{.cookie = 1}, 1);
  for (size_t length = 0; length < bytes.size(); ++length) {
    CHECK_FALSE(decode_from_proxy(std::span(bytes).first(length), 0, 1));
  }
  bytes.push_back(std::byte{0});
  CHECK_FALSE(decode_from_proxy(bytes, 0, 1));
}

TEST_CASE("a header whose size does not match the datagram is refused") {
  CHECK_FALSE(decode_from_proxy(spoiled(Hello{}, offsetof(Header, size), 200), 0, 1));
}

TEST_CASE("a body longer or shorter than its type's is refused even if the header agrees") {
  for (size_t length : {15, 17, 24, 200}) {
    auto bytes = encode(TakeoverReady{.cookie = 1}, 1);
    bytes.resize(length);
    auto size = static_cast<uint16_t>(length);
    std::memcpy(bytes.data() + offsetof(Header, size), &size, sizeof size);
    CHECK_FALSE(decode_from_proxy(bytes, 0, 1));
  }
}

TEST_CASE("a sequence number that is not the next one is refused") {
  CHECK(decode_from_proxy(encode(ReturnDone{}, 4), 0, 4));
  CHECK_FALSE(decode_from_proxy(encode(ReturnDone{}, 4), 0, 3));
  CHECK_FALSE(decode_from_proxy(encode(ReturnDone{}, 4), 0, 5));
}

TEST_CASE("a message of the other direction is refused as unknown") {
  CHECK_FALSE(decode_from_proxy(encode(PodGone{.cookie = 1}, 1), 0, 1));
  CHECK_FALSE(decode_from_warden(encode(PodGoneAck{.cookie = 1}, 1), 0, 1));
}

TEST_CASE("descriptors that a message does not take are refused, and so are missing ones") {
  CHECK_FALSE(decode_from_proxy(encode(TakeoverReady{.cookie = 1}, 1), 1, 1));
  CHECK_FALSE(decode_from_proxy(encode(StoreKeys{}, 1), 0, 1));
  CHECK_FALSE(decode_from_proxy(encode(StoreKeys{}, 1), 2, 1));
  CHECK(decode_from_proxy(encode(StoreKeys{}, 1), 1, 1));
  for (size_t wrong : {0, 1, 2, 4, 193, 195}) {
    CHECK_FALSE(decode_from_proxy(encode(ReturnListeners{.cookie = 1}, 1), wrong, 1));
  }
  CHECK(decode_from_proxy(encode(ReturnListeners{.cookie = 1}, 1), 192, 1));
  CHECK_FALSE(decode_from_warden(encode(Sockets{.cookie = 1, .count = 4}, 1), 3, 1));
  CHECK(decode_from_warden(encode(PodAdd{to_record(sample_pod())}, 1), 0, 1));
}

TEST_CASE("numbers outside their range are refused with the field's name") {
  auto refused = [](const auto& message) {
    auto out = decode_from_proxy(encode(message, 1), 0, 1);
    return out ? std::string("accepted") : out.error().message;
  };
  CHECK(refused(Hello{.workers = 0}).find("workers") != std::string::npos);
  CHECK(refused(Hello{.workers = 65}).find("workers") != std::string::npos);
  CHECK(refused(Hello{.version = kChannelVersion - 1}).find("version") != std::string::npos);
  CHECK(refused(Hello{.flags = 2}).find("flags") != std::string::npos);
  CHECK(refused(WantSockets{.cookie = 1, .kind = 2, .count = 1}).find("kind") != std::string::npos);
  CHECK(refused(WantSockets{.cookie = 1, .kind = 0, .count = 0}).find("count") != std::string::npos);
  CHECK(refused(WantSockets{.cookie = 1, .kind = 0, .count = 65}).find("count") != std::string::npos);
}

TEST_CASE("a pod record with an unterminated name, unknown flags or too many addresses is refused") {
  PodAdd good{to_record(sample_pod())};
  auto refused = [](PodAdd message) { return !decode_from_warden(encode(message, 1), 0, 1); };
  CHECK_FALSE(refused(good));
  PodAdd bad = good;
  std::ranges::fill(bad.pod.name, 'x');
  CHECK(refused(bad));
  bad = good;
  bad.pod.ns[60] = 'x';  // after the terminator
  CHECK(refused(bad));
  bad = good;
  bad.pod.flags = 8;
  CHECK(refused(bad));
  bad = good;
  bad.pod.address_count = NM_POD_ADDRESSES + 1;
  CHECK(refused(bad));
  bad.pod.address_count = 0;
  CHECK(refused(bad));
  bad = good;
  bad.pod.cookie = 0;
  CHECK(refused(bad));
}

TEST_CASE("text that does not fit its field, or holds a NUL, is not copied") {
  char field[4] = {'a', 'b', 'c', 'd'};
  CHECK_FALSE(copy_text(field, "1234"));
  CHECK_FALSE(copy_text(field, std::string_view("a\0b", 3)));
  CHECK(field[0] == 'a');
  CHECK(copy_text(field, "1"));
  CHECK((field[0] == '1' && field[1] == 0 && field[3] == 0));
}

TEST_CASE("random bytes are never accepted as anything but what they are") {
  std::mt19937 random(1);  // a fixed seed: a failure repeats
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes(random() % (kMaxMessage + 8));
    for (auto& byte : bytes) byte = static_cast<std::byte>(random());
    if (bytes.size() >= sizeof(Header) && random() % 2 == 0) {
      Header header{static_cast<uint16_t>(1 + random() % 72), static_cast<uint16_t>(bytes.size()), 1};
      std::memcpy(bytes.data(), &header, sizeof header);
    }
    size_t descriptors = random() % 200;
    if (auto message = decode_from_proxy(bytes, descriptors, 1)) {
      if (auto* want = std::get_if<WantSockets>(&*message)) CHECK(want->count <= kMaxSocketBatch);
    }
    (void)decode_from_warden(bytes, descriptors, 1);
  }
}
