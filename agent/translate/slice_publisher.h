// Keeps this node's WorkloadSlices at the API server equal to its pods: the first change is written at once,
// those of the next 250 ms together. One request at a time, in plan_slices' order. What somebody else changed
// meanwhile (409) is read again and planned again; what fails is tried again after 0.5 s, doubling, at most
// 30 s. Lives on the control thread's reactor; knows nothing of HTTP but status codes.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "io/reactor.h"
#include "kube/api_client.h"
#include "translate/slice_plan.h"

namespace nodemesh::translate {

// The way to /apis/nodemesh.dev/v1alpha1/workloadslices.
class SliceApi {
 public:
  enum class Verb : uint8_t { get, create, replace, remove };
  struct Reply {
    int status = 0;    // HTTP; 0: there was no answer
    std::string body;  // the object, or why there was no answer
  };
  using Done = std::move_only_function<void(Reply)>;
  // `body` is JSON, empty for get. `done` runs once on the reactor, never before this returns.
  virtual void call(Verb verb, const std::string& name, std::string body, Done done) = 0;

 protected:
  ~SliceApi() = default;
};

// The request that a call is to the API server.
kube::ApiRequest slice_request(SliceApi::Verb verb, const std::string& name, std::string body);

class SlicePublisher {
 public:
  // Both are borrowed and outlive the publisher.
  SlicePublisher(io::Reactor& reactor, SliceApi& api, std::string node);
  SlicePublisher(const SlicePublisher&) = delete;
  SlicePublisher& operator=(const SlicePublisher&) = delete;

  // What the API server has, from the store, after each change there; late news of our own writes are known
  // as such. Nothing is written before the store has this node's Node, which is to own the slices.
  void observe(const kube::Store& store);
  // The node's pods, all of them. First called when the list of pods is complete: from then on the slices say
  // so.
  void set_pods(std::vector<model::Shared<model::Workload>> pods);

  // True when nothing is left to write.
  bool settled() const;
  // Why slices are not what they should be; empty when they are, or will be soon.
  const std::string& problem() const { return problem_; }
  uint64_t writes() const { return writes_; }
  uint64_t bytes() const { return bytes_; }  // of bodies, for the measure of what a change costs

 private:
  struct Known {
    HeldSlice held;
    std::set<std::string> past;  // resourceVersions that it had before; their late news say nothing
    bool seen = false;           // the store has shown it once
  };

  void schedule();
  void flush();
  void next();
  void on_reply(const SliceChange& change, SliceApi::Reply reply);
  void read_again(uint32_t number);
  void on_read(uint32_t number, const SliceApi::Reply& reply);
  void adopt(uint32_t number, HeldSlice held);
  // It is not there any more; late news of it say nothing.
  void bury(uint32_t number);
  void fail(const std::string& why);
  HeldSlices held() const;

  io::Reactor& reactor_;
  SliceApi& api_;
  const std::string node_;
  std::string node_uid_;
  std::map<uint32_t, Known> known_;
  std::map<uint32_t, std::set<std::string>> buried_;  // resourceVersions of slices that were there before
  std::vector<model::Shared<model::Workload>> pods_;
  std::vector<SliceChange> queue_;
  bool sourced_ = false, busy_ = false, dirty_ = false;
  milliseconds back_off_{0};
  std::string problem_;
  uint64_t writes_ = 0, bytes_ = 0;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);  // replies may come when we are gone
  io::Timer timer_;
};

}  // namespace nodemesh::translate
