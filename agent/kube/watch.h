// Keeps a mirror of one resource of the API server and tells a sink what changed: list (or WatchList), then
// watch, resumed by resourceVersion, for ever. Whatever the server does, what is known stays until the server
// says that it is gone: a new list is compared with what is known, objects of the same uid and
// resourceVersion cause no event, and removals come last, so the mirror is never empty in between. Lives on
// the reactor's thread; borrows client and sink.
//
// What the server says            what happens
// 410, as a status or an event    a new list within some seconds, compared
// 429, 503 with Retry-After       waits as told (at most 2 minutes)
// other 4xx/5xx, a lost stream    waits 0.5 s, doubling, at most 30 s, with jitter; then resumes
// 404                             the next version of the group; when none is there the resource is absent:
//                                 an optional one is then synced and empty, asked for once a minute or at
//                                 poke(). One that was there is taken for gone at the second 404 in a row.
// 403                             keeps what is known, says once what right is missing, asks once a minute
// 400, 422 to sendInitialEvents   pages instead of WatchList from then on
// an event that is no JSON        a new list; one that is too large or deep costs that object's update only
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "kube/api_client.h"
#include "kube/json.h"
#include "kube/objects.h"
#include "kube/resources.h"

namespace nodemesh::kube {

struct WatchOptions {
  Resource resource;
  std::string ns;              // empty: all
  std::string field_selector;  // "spec.nodeName=node1"
  std::string label_selector;
  bool metadata_only = false;  // as PartialObjectMetadata: no spec, no status
  bool optional = false;       // may be absent
};

struct WatchTimes {
  milliseconds first_retry{500}, max_retry{30'000};
  milliseconds relist_spread{5'000};     // before a new list after 410
  milliseconds slow_retry{60'000};       // where the resource is absent or forbidden
  milliseconds watch_for{300'000};       // asked of the server, up to twice that by jitter
  milliseconds end_margin{30'000};       // the server may take to end it
  milliseconds initial_silence{30'000};  // WatchList without a word for so long: pages instead
  uint64_t page_limit = 500;             // objects; fewer where a page is larger than page_bytes
  size_t page_bytes = 64 << 20;
  uint64_t seed = 0;  // of the jitter; 0: from the system
};

// Where a watch stands; for readiness, metrics and `passed`.
struct WatchProgress {
  enum class State : uint8_t { listing, watching, waiting, absent, forbidden, stopped };
  State state = State::stopped;
  bool synced = false;  // a complete list was seen once
  // Everything up to this version was told to the sink, as of `passed` at the latest (a bookmark, or an
  // event).
  std::string resource_version;
  std::optional<Monotonic::time_point> passed;
  // When the server last said something of the resource but that it may not be had.
  std::optional<Monotonic::time_point> contact;
  // What is known is an earlier process's word (adopt()) of this time; until the server's list is complete.
  std::optional<Monotonic::time_point> adopted;
  std::string trouble;  // why it does not watch; empty when it does
  size_t objects = 0;
  uint64_t lists = 0, watches = 0, events = 0, refused_events = 0;
};

class WatchSink {
 public:
  // New or changed. The object is the sink's.
  virtual void on_upsert(std::shared_ptr<Object> object) = 0;
  virtual void on_remove(const ObjectKey& key) = 0;
  // Everything has been told once. Once in a watch's life.
  virtual void on_synced() = 0;
  // A list has told how the server differs from what was adopted.
  virtual void on_caught_up() {}

 protected:
  ~WatchSink() = default;
};

class Watch final : private ApiStream {
 public:
  // `client` and `sink` outlive the watch. The sink may not destroy it within a call.
  Watch(io::Reactor& reactor, ApiClient& client, WatchSink& sink, WatchOptions options,
        WatchTimes times = {});
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  void start();
  // What an earlier process knew, an object or removal after the other in its order, then when it was known
  // to be current: the watch is synced with it, and the first list is compared with it. What the server has
  // told meanwhile counts for more. Nothing once synced.
  void adopt(Node object);
  void adopt_removal(const std::string& ns, const std::string& name);
  void adopted(Monotonic::time_point as_of);
  // What is known of an object is this version of it.
  bool knows(std::string_view ns, std::string_view name, std::string_view resource_version) const;
  // Asks at once where it waits because the resource is absent or forbidden.
  void poke();
  WatchProgress progress() const;
  const WatchOptions& options() const { return options_; }

 private:
  struct Known {
    std::string uid, resource_version;
    uint64_t list = 0;  // the last list that had it
  };
  enum class Phase : uint8_t { idle, page, initial_events, watch };

  void on_head(const ApiHead& head) override;
  void on_bytes(std::string_view bytes) override;
  void on_end(Result<> how) override;

  void begin();
  void list();
  void ask_page();
  void on_page(Result<ApiAnswer> answer);
  void smaller_pages(const std::string& why);
  void watch(bool initial);
  bool on_line(std::string_view line);
  bool on_event(WatchEvent event);
  bool on_bookmark(const Node& object);
  bool on_error_event(const Node& status);
  void passed(const std::string& version);
  void finish_list(std::string resource_version);
  void sync();
  void caught_up();
  ObjectKey key_of(const std::pair<std::string, std::string>& place) const;
  void take(Node object, bool listing);
  void drop(const Node& object);
  void refused(int status, const std::string& why, std::optional<seconds> retry_after);
  void absent();
  void forbidden(const std::string& why);
  void relist(const std::string& why);
  void page_instead(const std::string& why);
  void complain(const std::string& why);
  void retry_later(const std::string& why, std::optional<seconds> told = {});
  void rest(milliseconds wait, WatchProgress::State state, std::string why);
  void heard_well();
  void now_watching();
  void stop_stream();
  void refuse_events(size_t count, const std::string& why);
  std::string path(std::string_view query) const;
  std::string accept(std::string_view list) const;
  milliseconds backoff(uint32_t failures);
  milliseconds jittered(milliseconds about);

  io::Reactor& reactor_;
  ApiClient& client_;
  WatchSink& sink_;
  const WatchOptions options_;
  const WatchTimes times_;
  std::mt19937_64 random_;
  Phase phase_ = Phase::idle;
  std::map<std::pair<std::string, std::string>, Known> known_;  // by namespace and name
  std::string resource_version_;                                // to resume from; empty: list
  uint64_t list_ = 0;
  std::string continue_;  // of the next page
  Monotonic::time_point list_started_{};
  uint64_t page_limit_;
  size_t version_ = 0;       // of the resource's versions, the one in use
  size_t versions_404_ = 0;  // that said 404 in a row
  uint64_t absent_rounds_ = 0;
  bool watch_list_ = true;
  bool poked_ = false;
  uint32_t failures_ = 0;  // in a row
  uint32_t relists_ = 0;   // in a row
  ApiClient::CallId call_ = 0;
  int status_ = 0;  // of the stream
  std::optional<seconds> retry_after_;
  std::string error_body_;
  LineSplitter lines_{4 << 20};
  Monotonic::time_point opened_{};
  bool complained_ = false;
  WatchProgress progress_;
  io::Timer timer_;
  io::Timer silence_;
};

}  // namespace nodemesh::kube
