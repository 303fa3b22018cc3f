// Addresses, socket addresses and prefixes: what is accepted, what is refused, and what a prefix holds.
#include <doctest/doctest.h>

#include "base/addr.h"

using namespace nodemesh;

TEST_CASE("an address reads back as it was written, without the v4-mapped spelling") {
  for (std::string_view text :
       {"10.0.0.1", "0.0.0.0", "255.255.255.255", "fd00::1", "::", "::1", "2001:db8::a:0:0:1"}) {
    auto addr = Addr::parse(text);
    REQUIRE(addr);
    CHECK(addr->to_string() == text);
  }
  CHECK(Addr::parse("::ffff:10.0.0.1")->to_string() == "10.0.0.1");
  CHECK(*Addr::parse("::ffff:10.0.0.1") == Addr::v4(10, 0, 0, 1));
}

TEST_CASE("what is not exactly one address is refused") {
  using std::string_view_literals::operator""sv;
  for (auto text :
       {""sv, "10.0.0"sv, "10.0.0.256"sv, "010.0.0.1"sv, "10.0.0.1 "sv, " 10.0.0.1"sv, "10.0.0.1\0"sv,
        "10.0.0.1\0.example"sv, "fe80::1%eth0"sv, "[::1]"sv, "::1::"sv, "0x7f.1"sv, "localhost"sv,
        "10.0.0.1/8"sv, "1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc"sv}) {
    CAPTURE(text);
    CHECK(!Addr::parse(text));
  }
}

TEST_CASE("loopback and unspecified are known in both families") {
  CHECK(Addr::parse("127.0.0.1")->is_loopback());
  CHECK(Addr::parse("127.255.0.9")->is_loopback());
  CHECK(Addr::parse("::1")->is_loopback());
  CHECK(!Addr::parse("128.0.0.1")->is_loopback());
  CHECK(!Addr::parse("::2")->is_loopback());
  CHECK(Addr::parse("0.0.0.0")->is_unspecified());
  CHECK(Addr::parse("::")->is_unspecified());
  CHECK(!Addr::parse("0.0.0.1")->is_unspecified());
}

TEST_CASE("a socket address needs brackets for IPv6 and only for IPv6") {
  CHECK(SockAddr::parse("10.0.0.1:80")->to_string() == "10.0.0.1:80");
  CHECK(SockAddr::parse("[fd00::1]:65535")->to_string() == "[fd00::1]:65535");
  CHECK(SockAddr::parse("10.0.0.1:0")->port == 0);
  for (std::string_view text :
       {"", ":", ":80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:65536", "10.0.0.1:-1", "10.0.0.1:+80",
        "10.0.0.1:8 0", "fd00::1:80", "[10.0.0.1]:80", "[fd00::1]", "[fd00::1]80", "[]:80",
        "[fd00::1]:", "10.0.0.1:80:90", "10.0.0.1:99999999999999999999"}) {
    CAPTURE(text);
    CHECK(!SockAddr::parse(text));
  }
}

TEST_CASE("a socket address survives the kernel's form of either family") {
  for (std::string_view text : {"10.1.2.3:4567", "[fd00::5]:1"}) {
    auto addr = *SockAddr::parse(text);
    sockaddr_storage native{};
    CHECK(addr.to_native(native, AF_INET6) > 0);
    CHECK(SockAddr::from_native(native) == addr);
  }
  auto v4 = *SockAddr::parse("10.1.2.3:4567");
  sockaddr_storage native{};
  v4.to_native(native, AF_INET);
  CHECK(native.ss_family == AF_INET);
  CHECK(SockAddr::from_native(native) == v4);
}

TEST_CASE("a prefix holds its own addresses and no others") {
  struct Case {
    std::string_view cidr, addr;
    bool inside;
  };
  for (auto [cidr, addr, inside] :
       {Case{"10.0.0.0/8", "10.255.255.255", true}, Case{"10.0.0.0/8", "11.0.0.0", false},
        Case{"10.1.2.3", "10.1.2.3", true}, Case{"10.1.2.3", "10.1.2.4", false},
        Case{"10.1.2.3/31", "10.1.2.2", true}, Case{"10.1.2.3/31", "10.1.2.4", false},
        Case{"0.0.0.0/0", "203.0.113.9", true}, Case{"0.0.0.0/0", "fd00::1", false},
        Case{"fd00::/13", "fd07:ffff::1", true}, Case{"fd00::/13", "fd08::1", false},
        Case{"fd00::1/128", "fd00::1", true}, Case{"fd00::1/128", "fd00::2", false},
        Case{"::/0", "fd00::1", true}}) {
    CAPTURE(cidr);
    CAPTURE(addr);
    CHECK(Cidr::parse(cidr)->contains(*Addr::parse(addr)) == inside);
  }
}

TEST_CASE("an IPv6 prefix never holds an IPv4 address, however short it is") {
  for (std::string_view cidr : {"::/0", "::/64", "::/80", "::/95"}) {
    CAPTURE(cidr);
    CHECK(!Cidr::parse(cidr)->contains(*Addr::parse("10.0.0.1")));
    CHECK(Cidr::parse(cidr)->contains(*Addr::parse("::1")));
  }
}

TEST_CASE("a prefix clears its host bits and refuses lengths that its family does not have") {
  CHECK(Cidr::parse("10.1.2.3/8")->to_string() == "10.0.0.0/8");
  CHECK(Cidr::parse("fd00::ffff/64")->to_string() == "fd00::/64");
  CHECK(Cidr::parse("10.1.2.3")->to_string() == "10.1.2.3/32");
  for (std::string_view text :
       {"", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/129", "10.0.0.0/8/8", "10.0.0.0/8 "}) {
    CAPTURE(text);
    CHECK(!Cidr::parse(text));
  }
}
