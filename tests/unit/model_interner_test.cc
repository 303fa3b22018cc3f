#include <doctest/doctest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/interner.h"

using namespace nodemesh;
using model::Interner;

TEST_CASE("equal words and values are held once") {
  Interner interner;
  auto one = interner.text("node1"), two = interner.text(std::string("node1"));
  CHECK(&one.str() == &two.str());
  CHECK(one == "node1");
  CHECK(interner.text("node2") == "node2");
  CHECK(interner.text("").empty());
  using Labels = std::map<std::string, std::string>;
  auto labels = interner.one(Labels{{"app", "web"}});
  CHECK(interner.one(Labels{{"app", "web"}}).get() == labels.get());
  CHECK(interner.one(Labels{{"app", "api"}}).get() != labels.get());
}

TEST_CASE("what nobody holds any more is not kept for ever, and what somebody holds stays") {
  Interner interner;
  auto held = interner.text("held");
  auto value = interner.one(std::vector{1});
  std::weak_ptr<const std::vector<int>> gone = interner.one(std::vector{2});
  for (int i = 0; i < 1000; ++i) {
    interner.text("passing" + std::to_string(i));
    interner.one(std::vector{i, i});
  }
  CHECK(gone.expired());
  CHECK(&interner.text("held").str() == &held.str());
  CHECK(interner.one(std::vector{1}).get() == value.get());
}

TEST_CASE("a text that was copied, moved and assigned says the same until its last holder is gone") {
  Text first("a text that is too long for its object"), copy = first, moved = std::move(first);
  CHECK_FALSE(copy.alone());
  CHECK(&copy.str() == &moved.str());
  copy = "another";
  CHECK(moved.alone());
  CHECK(moved == "a text that is too long for its object");
  copy = std::as_const(copy);
  CHECK(copy == "another");
  copy = moved = {};
  CHECK(copy.empty());
}
