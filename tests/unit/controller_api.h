// A Kubernetes API server in memory, behind the controller's seam: objects by path, with resourceVersions and
// the conflicts that they are for. Answers come when the test says so.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "controller/api.h"

namespace nodemesh::test {

struct FakeApi final : controller::Api {
  using Json = controller::Json;
  struct Asked {
    kube::Verb verb;
    std::string path, body;
    Done done;
    Patch kind = Patch::merge;
  };
  std::deque<Asked> asked;
  std::map<std::string, Json> objects;  // by path
  std::map<std::string, int> broken;    // answers with this status; 0: no answer at all
  int refuse_writes = 0;                // answers POST and PUT with this status
  std::vector<std::string> log;         // "GET /path"
  std::function<Json(const Json&)> review = [](const Json&) { return Json::object(); };
  int version = 1;

  void call(kube::Verb verb, std::string path, std::string body, Done done) override {
    log.push_back(std::string(kube::verb_name(verb)) + " " + path);
    asked.push_back({verb, std::move(path), std::move(body), std::move(done)});
  }
  void patch(Patch kind, std::string path, std::string body, Done done) override {
    log.push_back("PATCH " + path);
    asked.push_back({kube::Verb::patch, std::move(path), std::move(body), std::move(done), kind});
  }
  // Answers the oldest question.
  void answer() {
    Asked one = std::move(asked.front());
    asked.pop_front();
    one.done(reply(one));
  }
  void answer_all() {
    while (!asked.empty()) answer();
  }
  size_t count(const std::string& start) const {
    size_t out = 0;
    for (const auto& line : log) out += line.starts_with(start);
    return out;
  }
  void put(const std::string& path, Json object) {
    object["metadata"]["resourceVersion"] = std::to_string(++version);
    objects[path] = std::move(object);
  }

 private:
  controller::ApiReply reply(const Asked& one) {
    if (auto found = broken.find(one.path); found != broken.end())
      return {found->second, {}, "broken by the test"};
    Json body = controller::parse_object(one.body);
    if (refuse_writes != 0 && one.verb != kube::Verb::get) return {refuse_writes, {}, "broken by the test"};
    if (one.path.ends_with("/tokenreviews")) return {201, review(body).dump(), {}};
    std::string path = one.path;
    if (one.verb == kube::Verb::post) path += "/" + controller::text_at(body, {"metadata", "name"});
    auto found = objects.find(path);
    if (one.verb == kube::Verb::patch) return patched(one, std::move(body));
    if (one.verb == kube::Verb::get)
      return found == objects.end() ? controller::ApiReply{404, {}, "not found"}
                                    : controller::ApiReply{200, found->second.dump(), {}};
    if (one.verb == kube::Verb::post && found != objects.end()) return {409, {}, "already exists"};
    if (one.verb == kube::Verb::put) {
      if (found == objects.end()) return {404, {}, "not found"};
      if (controller::text_at(body, {"metadata", "resourceVersion"}) !=
          controller::text_at(found->second, {"metadata", "resourceVersion"}))
        return {409, {}, "the object has been modified"};
    }
    if (one.verb == kube::Verb::remove) {
      if (objects.erase(path) == 0) return {404, {}, "not found"};
      return {200, "{}", {}};
    }
    put(path, std::move(body));
    return {200, objects[path].dump(), {}};
  }

  // Of the status subresource. Of metadata uid and version are preconditions, and annotations are written.
  controller::ApiReply patched(const Asked& one, Json body) {
    CHECK(one.path.ends_with("/status"));
    auto found = objects.find(one.path.substr(0, one.path.size() - 7));
    if (found == objects.end()) return {404, {}, "not found"};
    for (const char* field : {"resourceVersion", "uid"}) {
      std::string wanted = controller::text_at(body, {"metadata", field});
      if (!wanted.empty() && wanted != controller::text_at(found->second, {"metadata", field}))
        return {409, {}, "the object has been modified"};
    }
    Json object = found->second;
    if (body["metadata"].contains("annotations"))
      object["metadata"]["annotations"].merge_patch(body["metadata"]["annotations"]);
    if (one.kind == Patch::merge) {
      object["status"].merge_patch(body["status"]);
    } else {
      Json& conditions = object["status"]["conditions"];
      for (const auto& fresh : body["status"]["conditions"]) {
        auto same =
            std::ranges::find_if(conditions, [&](const Json& c) { return c["type"] == fresh["type"]; });
        if (same == conditions.end())
          conditions.push_back(fresh);
        else
          same->merge_patch(fresh);
      }
    }
    put(found->first, std::move(object));
    return {200, objects[found->first].dump(), {}};
  }
};

}  // namespace nodemesh::test
