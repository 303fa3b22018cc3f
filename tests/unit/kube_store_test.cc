#include <doctest/doctest.h>

#include "kube/store.h"

using namespace nodemesh::kube;

namespace {

struct Number : Decoded {
  int64_t value = 0;
};

// A kind "Number" with one required field, spec.value from 1 to 9.
std::shared_ptr<const Decoded> read_number(const Object&, Fields& fields, Problems& problems) {
  Fields spec(fields.map("spec"), problems);
  auto number = std::make_shared<Number>();
  number->value = spec.integer("value", 1, 9).value_or(0);
  return number;
}

const Kind kKinds[] = {{"", "Number", {"v1"}, true, read_number}};

std::string number(const std::string& name, const std::string& value) {
  return "---\napiVersion: v1\nkind: Number\nmetadata: {name: " + name +
         ", namespace: a}\nspec: {value: " + value + "}\n";
}

struct Fixture {
  Store store{kKinds};
  bool set(const std::string& file, const std::string& text) {
    return store.set_file(file, parse_manifest(text, file));
  }
  int64_t value(const std::string& name) {
    auto* entry = store.find("Number", "a", name);
    return entry ? static_cast<const Number*>(entry->decoded.get())->value : 0;
  }
  Status::State state(const std::string& name) {
    for (const auto& status : store.statuses()) {
      if (status.name == name) return status.state;
    }
    return Status::State::ignored;
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture,
                  "an object whose new version is bad keeps its last good one, until a good one comes") {
  set("f", number("x", "1"));
  CHECK(value("x") == 1);
  CHECK(set("f", number("x", "99")));
  CHECK(value("x") == 1);
  CHECK(state("x") == Status::State::stale);
  CHECK(set("f", number("x", "98")));
  CHECK(value("x") == 1);
  set("f", number("x", "2"));
  CHECK(value("x") == 2);
  CHECK(state("x") == Status::State::accepted);
}

TEST_CASE_FIXTURE(Fixture, "a bad object refuses nobody else") {
  set("f", number("x", "99") + number("y", "2"));
  CHECK(value("x") == 0);
  CHECK(state("x") == Status::State::refused);
  CHECK(value("y") == 2);
}

TEST_CASE_FIXTURE(Fixture, "a file with an unreadable document keeps what cannot be found in it any more") {
  set("f", number("x", "1") + number("y", "1"));
  set("f", "---\nkind: [\n" + number("y", "2"));
  CHECK(value("x") == 1);
  CHECK(value("y") == 2);
  CHECK(state("x") == Status::State::stale);
  set("f", number("y", "2"));
  CHECK(value("x") == 0);
}

TEST_CASE_FIXTURE(Fixture, "a file that cannot be opened keeps its objects, a removed one takes them along") {
  set("f", number("x", "1"));
  CHECK(store.fail_file("f", {.message = "cannot be opened", .fix = "chmod"}));
  CHECK_FALSE(store.fail_file("f", {.message = "cannot be opened", .fix = "chmod"}));
  CHECK(value("x") == 1);
  CHECK(store.statuses().size() == 2);
  CHECK(set("f", number("x", "1")));
  CHECK(store.statuses().size() == 1);
  CHECK(store.remove_file("f"));
  CHECK(value("x") == 0);
  CHECK_FALSE(store.remove_file("f"));
}

TEST_CASE_FIXTURE(Fixture, "an unchanged file changes nothing and keeps the decoded objects") {
  set("f", number("x", "1") + number("y", "1"));
  auto before = store.find("Number", "a", "x")->decoded;
  auto generation = store.generation();
  CHECK_FALSE(set("f", number("x", "1") + number("y", "1")));
  CHECK(store.generation() == generation);
  CHECK(set("f", number("x", "1") + number("y", "2")));
  CHECK(store.find("Number", "a", "x")->decoded == before);
}

TEST_CASE_FIXTURE(Fixture,
                  "of one object in two files the first file's counts, whichever came first in time") {
  set("b", number("x", "2"));
  CHECK(value("x") == 2);
  set("a", number("x", "1"));
  CHECK(value("x") == 1);
  store.remove_file("a");
  CHECK(value("x") == 2);
}

TEST_CASE_FIXTURE(Fixture, "objects are found by kind, namespace and name") {
  set("f", number("b", "1") + number("a", "2") + number("c", "3"));
  auto all = store.objects("Number");
  REQUIRE(all.size() == 3);
  CHECK(all[0].object->key.name == "a");
  CHECK(store.find("Number", "a", "d") == nullptr);
  CHECK(store.find("Number", "b", "a") == nullptr);
  CHECK(store.objects("Letter").empty());
}

namespace {

std::shared_ptr<Object> single(const std::string& name, const std::string& value) {
  auto manifest = parse_manifest(number(name, value), "");
  return std::const_pointer_cast<Object>(manifest.objects.at(0));
}
const ObjectKey kX{"", "Number", "a", "x"};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "single objects come, change, keep their last good version, and go") {
  CHECK(store.upsert(single("x", "1")));
  CHECK(store.upsert(single("y", "2")));
  CHECK(value("x") == 1);
  CHECK(store.objects("Number").size() == 2);
  store.upsert(single("x", "99"));
  CHECK(value("x") == 1);
  CHECK(state("x") == Status::State::stale);
  store.upsert(single("x", "3"));
  CHECK(value("x") == 3);
  CHECK(state("x") == Status::State::accepted);
  CHECK(store.remove(kX));
  CHECK_FALSE(store.remove(kX));
  CHECK(store.find("Number", "a", "x") == nullptr);
  REQUIRE(store.objects("Number").size() == 1);
  CHECK(store.objects("Number")[0].object->key.name == "y");
  CHECK(store.size() == 1);
  CHECK(store.statuses().size() == 1);
  store.upsert(single("z", "99"));
  CHECK(store.size() == 1);
  CHECK(state("z") == Status::State::refused);
}

TEST_CASE_FIXTURE(Fixture, "a single object goes before one of a file, which returns when it goes") {
  set("f", number("x", "1"));
  store.upsert(single("x", "2"));
  CHECK(value("x") == 2);
  store.remove(kX);
  CHECK(value("x") == 1);
}

TEST_CASE_FIXTURE(Fixture, "a single object is kept without its tree") {
  store.upsert(single("x", "1"));
  CHECK(store.find("Number", "a", "x")->object->root.children.empty());
}
