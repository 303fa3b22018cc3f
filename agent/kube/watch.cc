#include "kube/watch.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include "base/log.h"

namespace nodemesh::kube {
namespace {

constexpr seconds kMostRetryAfter{120};
// A watch that lasted so long was a good one, even if nothing happened meanwhile.
constexpr seconds kLasting{5};
constexpr uint64_t kAdopted = 0;  // the number of no list
constexpr size_t kMaxErrorBody = 64 * 1024;
constexpr uint64_t kRoundsAfterPoke = 7;  // half a minute
constexpr std::string_view kInitialEventsEnd = "k8s.io/initial-events-end";

std::string text_at(const Node* node, std::string_view name) {
  const Node* found = node != nullptr ? node->find(name) : nullptr;
  return found != nullptr ? found->text : std::string();
}

// Versions are numbers of one counter for the whole server (KEP-5504); what is none is not compared.
std::optional<uint64_t> number(const std::string& version) {
  uint64_t value = 0;
  auto [end, bad] = std::from_chars(version.data(), version.data() + version.size(), value);
  if (version.empty() || bad != std::errc() || end != version.data() + version.size()) return std::nullopt;
  return value;
}

bool is_older(const std::string& version, const std::string& than) {
  auto a = number(version), b = number(than);
  return a && b && *a < *b;
}

uint64_t seed_of(uint64_t given) {
  if (given != 0) return given;
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace

Watch::Watch(io::Reactor& reactor, ApiClient& client, WatchSink& sink, WatchOptions options, WatchTimes times)
    : reactor_(reactor),
      client_(client),
      sink_(sink),
      options_(std::move(options)),
      times_(times),
      random_(seed_of(times.seed)),
      page_limit_(times.page_limit),
      timer_([this] { begin(); }),
      silence_([this] {
        stop_stream();
        page_instead("the server sends no initial events");
      }) {}

Watch::~Watch() {
  client_.cancel(call_);
}

void Watch::start() {
  begin();
}

void Watch::adopt(Node object) {
  const Node* metadata = object.find("metadata");
  std::pair<std::string, std::string> place{text_at(metadata, "namespace"), text_at(metadata, "name")};
  std::string version = text_at(metadata, "resourceVersion");
  if (progress_.synced || place.second.empty() || version.empty()) return;
  auto [found, fresh] = known_.try_emplace(place);
  if (!fresh && found->second.list != kAdopted) return;
  std::string uid = text_at(metadata, "uid"), api_version = text_at(&object, "apiVersion");
  if (!fresh && found->second.uid != uid) sink_.on_remove(key_of(place));
  found->second = {std::move(uid), std::move(version), kAdopted};
  sink_.on_upsert(make_api_object(std::move(object), options_.resource.kind, api_version));
}

void Watch::adopt_removal(const std::string& ns, const std::string& name) {
  auto found = known_.find({ns, name});
  if (progress_.synced || found == known_.end() || found->second.list != kAdopted) return;
  ObjectKey key = key_of(found->first);
  known_.erase(found);
  sink_.on_remove(key);
}

void Watch::adopted(Monotonic::time_point as_of) {
  if (progress_.synced) return;
  progress_.adopted = as_of;
  sync();
}

bool Watch::knows(std::string_view ns, std::string_view name, std::string_view resource_version) const {
  auto found = known_.find({std::string(ns), std::string(name)});
  return found != known_.end() && found->second.resource_version == resource_version;
}

void Watch::poke() {
  using enum WatchProgress::State;
  if (!timer_.armed() || (progress_.state != absent && progress_.state != forbidden)) return;
  timer_.cancel();
  poked_ = true;
  failures_ = 0;
  absent_rounds_ = 0;
  begin();
}

WatchProgress Watch::progress() const {
  WatchProgress out = progress_;
  out.objects = known_.size();
  out.resource_version = resource_version_;
  // A connection that is not one yet counts for nothing, nor does one that brings refusals.
  bool watching = phase_ != Phase::page && status_ >= 200 && status_ < 300;
  if (auto contact = client_.last_contact(call_); contact && watching)
    out.contact = std::max(*contact, out.contact.value_or(*contact));
  return out;
}

void Watch::begin() {
  if (resource_version_.empty()) {
    list();
  } else {
    watch(false);
  }
}

void Watch::list() {
  ++list_;
  ++progress_.lists;
  list_started_ = reactor_.now();
  progress_.state = WatchProgress::State::listing;
  continue_.clear();
  if (watch_list_) return watch(true);
  ask_page();
}

void Watch::ask_page() {
  phase_ = Phase::page;
  std::string query = fmt::format("limit={}", page_limit_);
  if (!continue_.empty()) query += "&continue=" + percent_encode(continue_);
  ApiRequest request{
      .path = path(query), .accept = accept("List"), .timeout = seconds(60), .max_body = times_.page_bytes};
  call_ =
      client_.request(std::move(request), [this](Result<ApiAnswer> answer) { on_page(std::move(answer)); });
}

void Watch::on_page(Result<ApiAnswer> answer) {
  call_ = 0;
  phase_ = Phase::idle;
  if (!answer) {
    if (answer.error().reason == Reason::OVER_LIMIT) return smaller_pages(answer.error().message);
    return retry_later(answer.error().message);
  }
  if (!answer->ok()) {
    return refused(answer->status, failure_text(answer->status, answer->body), answer->retry_after);
  }
  progress_.contact = reactor_.now();
  auto page = parse_list_page(answer->body);
  if (!page)
    return page.error().broken ? retry_later(page.error().message) : smaller_pages(page.error().message);
  heard_well();
  if (page->left_out > 0) refuse_events(page->left_out, "an object is nested too deeply, or has a key twice");
  for (auto& item : page->items) take(std::move(item), true);
  continue_ = std::move(page->next);
  if (!continue_.empty()) return ask_page();
  finish_list(std::move(page->resource_version));
  watch(false);
}

void Watch::smaller_pages(const std::string& why) {
  if (page_limit_ <= 1) return retry_later(why);
  page_limit_ = std::max<uint64_t>(page_limit_ / 4, 1);
  list();
}

void Watch::watch(bool initial) {
  phase_ = initial ? Phase::initial_events : Phase::watch;
  status_ = 0;
  retry_after_.reset();
  error_body_.clear();
  lines_.clear();
  opened_ = reactor_.now();
  auto asked = std::chrono::ceil<seconds>(times_.watch_for);
  asked += seconds(random_() % static_cast<uint64_t>(asked.count() + 1));
  std::string query = fmt::format("watch=true&allowWatchBookmarks=true&timeoutSeconds={}", asked.count());
  if (initial) {
    query += "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    silence_.arm(reactor_, times_.initial_silence);
  } else {
    query += "&resourceVersion=" + percent_encode(resource_version_);
  }
  ++progress_.watches;
  ApiRequest request{.path = path(query), .accept = accept(""), .stream_limit = asked + times_.end_margin};
  call_ = client_.stream(std::move(request), *this);
}

void Watch::on_head(const ApiHead& head) {
  status_ = head.status;
  retry_after_ = head.retry_after;
  opened_ = reactor_.now();
  if (!head.ok()) return;
  progress_.contact = opened_;
  heard_well();
  if (phase_ == Phase::watch) now_watching();
}

void Watch::on_bytes(std::string_view bytes) {
  if (status_ < 200 || status_ >= 300) {
    error_body_.append(bytes.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, error_body_.size())));
    return;
  }
  progress_.contact = reactor_.now();
  lines_.feed(bytes, [this](std::string_view line) { return on_line(line); });
  if (size_t dropped = lines_.take_dropped()) refuse_events(dropped, "an event is larger than 4 MiB");
}

void Watch::on_end(Result<> how) {
  call_ = 0;
  silence_.cancel();
  Phase was = std::exchange(phase_, Phase::idle);
  bool lasted = status_ != 0 && reactor_.now() - opened_ >= kLasting;
  if (was == Phase::watch && lasted) failures_ = relists_ = 0;
  if (status_ != 0 && (status_ < 200 || status_ >= 300)) {
    if (was == Phase::initial_events && (status_ == 400 || status_ == 422))
      return page_instead(failure_text(status_, error_body_));
    return refused(status_, failure_text(status_, error_body_), retry_after_);
  }
  if (!how) return retry_later(how.error().message);
  if (was == Phase::initial_events) return retry_later("the server ended the list before it was complete");
  // Nothing to complain of: its time was over.
  if (lasted || failures_ == 0) {
    failures_ += lasted ? 0 : 1;
    return watch(false);
  }
  retry_later("the server ends watches at once");
}

bool Watch::on_line(std::string_view line) {
  auto event = parse_watch_event(line);
  if (event) return on_event(std::move(*event));
  if (!event.error().broken) {
    refuse_events(1, event.error().message);
    return true;
  }
  // What it was meant to say, a removal perhaps, would be missed for ever.
  stop_stream();
  relist("the server sent an event that cannot be read: " + event.error().message);
  return false;
}

bool Watch::on_event(WatchEvent event) {
  using enum WatchEvent::Type;
  if (phase_ == Phase::initial_events) silence_.arm(reactor_, times_.initial_silence);
  if (event.type == error) return on_error_event(event.object);
  if (event.type == bookmark) return on_bookmark(event.object);
  ++progress_.events;
  std::string version = text_at(event.object.find("metadata"), "resourceVersion");
  if (event.type == deleted) {
    drop(event.object);
  } else {
    take(std::move(event.object), phase_ == Phase::initial_events);
  }
  if (phase_ == Phase::watch) passed(version);
  return true;
}

void Watch::passed(const std::string& version) {
  failures_ = relists_ = 0;
  progress_.passed = reactor_.now();
  if (!version.empty() && !is_older(version, resource_version_)) resource_version_ = version;
}

bool Watch::on_bookmark(const Node& object) {
  const Node* metadata = object.find("metadata");
  std::string version = text_at(metadata, "resourceVersion");
  if (phase_ == Phase::watch) {
    passed(version);
    return true;
  }
  const Node* annotations = metadata != nullptr ? metadata->find("annotations") : nullptr;
  if (text_at(annotations, kInitialEventsEnd) != "true" || version.empty()) return true;
  silence_.cancel();
  phase_ = Phase::watch;
  finish_list(std::move(version));
  now_watching();
  return true;
}

// A metav1.Status in the stream, which ends with it.
bool Watch::on_error_event(const Node& status) {
  int code = 0;
  std::string text = text_at(&status, "code"), reason = text_at(&status, "reason"),
              message = text_at(&status, "message");
  std::from_chars(text.data(), text.data() + text.size(), code);
  if (reason == "Expired" || reason == "Gone") code = 410;
  std::string why = fmt::format("the server ended the watch: {} {}", code, message);
  bool initial = phase_ == Phase::initial_events;
  stop_stream();
  if (initial && (code == 400 || code == 422)) {
    page_instead(why);
  } else {
    refused(code, why, std::nullopt);
  }
  return false;
}

// The list is whole: what it did not have is gone.
void Watch::finish_list(std::string resource_version) {
  resource_version_ = std::move(resource_version);
  progress_.passed = list_started_;
  for (auto item = known_.begin(); item != known_.end();) {
    auto current = item++;
    if (current->second.list == list_) continue;
    ObjectKey key = key_of(current->first);
    known_.erase(current);
    sink_.on_remove(key);
  }
  caught_up();
}

void Watch::sync() {
  if (!std::exchange(progress_.synced, true)) sink_.on_synced();
}

void Watch::caught_up() {
  sync();
  if (std::exchange(progress_.adopted, std::nullopt)) sink_.on_caught_up();
}

ObjectKey Watch::key_of(const std::pair<std::string, std::string>& place) const {
  return {options_.resource.group, options_.resource.kind, place.first, place.second};
}

void Watch::take(Node object, bool listing) {
  const Node* metadata = object.find("metadata");
  std::pair<std::string, std::string> place{text_at(metadata, "namespace"), text_at(metadata, "name")};
  std::string uid = text_at(metadata, "uid"), version = text_at(metadata, "resourceVersion");
  if (place.second.empty() || version.empty())
    return refuse_events(1, "an object without metadata.name or metadata.resourceVersion");
  auto [found, fresh] = known_.try_emplace(place);
  Known& known = found->second;
  known.list = list_;
  bool same = !fresh && known.uid == uid;
  if (same && (known.resource_version == version || (!listing && is_older(version, known.resource_version))))
    return;
  if (!fresh && !same) sink_.on_remove(key_of(place));  // another object of the same name
  known.uid = std::move(uid);
  known.resource_version = std::move(version);
  sink_.on_upsert(
      make_api_object(std::move(object), options_.resource.kind, options_.resource.api_version(version_)));
}

void Watch::drop(const Node& object) {
  const Node* metadata = object.find("metadata");
  auto found = known_.find({text_at(metadata, "namespace"), text_at(metadata, "name")});
  if (found == known_.end()) return;
  if (is_older(text_at(metadata, "resourceVersion"), found->second.resource_version)) return;
  ObjectKey key = key_of(found->first);
  known_.erase(found);
  sink_.on_remove(key);
}

void Watch::refused(int status, const std::string& why, std::optional<seconds> retry_after) {
  switch (status) {
    case 404:
      return absent();
    case 403:
      return forbidden(why);
    case 410:
      return relist(why);
    default:
      return retry_later(why, retry_after);
  }
}

void Watch::absent() {
  resource_version_.clear();
  if (++versions_404_ < options_.resource.versions.size()) {
    version_ = (version_ + 1) % options_.resource.versions.size();
    return list();
  }
  versions_404_ = 0;
  std::string why = "the server does not have " + options_.resource.full_name();
  // Once may be a server that has just started and does not know its CRDs yet; and a CRD is seen before it is
  // served.
  bool hopeful = ++absent_rounds_ < (poked_ ? kRoundsAfterPoke : 2);
  if (!options_.optional || (hopeful && !known_.empty())) return retry_later(why);
  if (hopeful) return rest(backoff(failures_++), WatchProgress::State::absent, std::move(why));
  if (!known_.empty()) {
    log::warn(log::Component::config, "a resource is gone, and its objects with it",
              {{"resource", options_.resource.full_name()}, {"objects", known_.size()}});
  }
  for (const auto& [place, known] : std::exchange(known_, {})) sink_.on_remove(key_of(place));
  failures_ = 0;
  poked_ = false;
  caught_up();
  rest(jittered(times_.slow_retry), WatchProgress::State::absent, std::move(why));
}

void Watch::forbidden(const std::string& why) {
  if (!std::exchange(complained_, true)) {
    log::error(
        log::Component::config,
        "the API server refuses to show a resource; what is known of it stays in force; grant list and watch",
        {{"resource", options_.resource.full_name()}, {"error", why}});
  }
  std::string text = fmt::format("no right to list and watch {}; fix: grant both to {}: {}",
                                 options_.resource.full_name(), client_.access().origin, why);
  rest(jittered(times_.slow_retry), WatchProgress::State::forbidden, std::move(text));
}

void Watch::relist(const std::string& why) {
  resource_version_.clear();
  complain(why);
  // Every agent is told so at once when a server starts anew.
  milliseconds spread(random_() % static_cast<uint64_t>(times_.relist_spread.count() + 1));
  rest(backoff(relists_++) + spread, WatchProgress::State::waiting, why);
}

// The server does not do WatchList (or not well).
void Watch::page_instead(const std::string& why) {
  log::debug(log::Component::config, "listing in pages",
             {{"resource", options_.resource.full_name()}, {"why", why}});
  watch_list_ = false;
  list();
}

void Watch::complain(const std::string& why) {
  if (std::exchange(complained_, true)) return;
  log::warn(log::Component::config,
            "a resource cannot be watched for now; what is known of it stays in force",
            {{"resource", options_.resource.full_name()}, {"error", why}});
}

void Watch::retry_later(const std::string& why, std::optional<seconds> told) {
  complain(why);
  auto wait = backoff(failures_++);
  // As told, and a little later, since everybody was told the same.
  if (told)
    wait = std::max<milliseconds>(wait, std::min(*told, kMostRetryAfter)) + jittered(times_.first_retry);
  rest(wait, WatchProgress::State::waiting, why);
}

void Watch::rest(milliseconds wait, WatchProgress::State state, std::string why) {
  phase_ = Phase::idle;
  progress_.state = state;
  progress_.trouble = std::move(why);
  timer_.arm(reactor_, wait);
}

void Watch::heard_well() {
  versions_404_ = 0;
  absent_rounds_ = 0;
  poked_ = false;
}

void Watch::now_watching() {
  progress_.state = WatchProgress::State::watching;
  progress_.trouble.clear();
  if (std::exchange(complained_, false))
    log::info(log::Component::config, "watching again", {{"resource", options_.resource.full_name()}});
}

void Watch::stop_stream() {
  client_.cancel(std::exchange(call_, 0));
  silence_.cancel();
  phase_ = Phase::idle;
}

void Watch::refuse_events(size_t count, const std::string& why) {
  if (progress_.refused_events == 0) {
    log::warn(log::Component::config,
              "an object of the API server cannot be read, and keeps its last version",
              {{"resource", options_.resource.full_name()}, {"error", why}});
  }
  progress_.refused_events += count;
}

std::string Watch::path(std::string_view query) const {
  std::string out = options_.resource.path(options_.ns, version_) + "?" + std::string(query);
  if (!options_.field_selector.empty()) out += "&fieldSelector=" + percent_encode(options_.field_selector);
  if (!options_.label_selector.empty()) out += "&labelSelector=" + percent_encode(options_.label_selector);
  return out;
}

std::string Watch::accept(std::string_view list) const {
  if (!options_.metadata_only) return "application/json";
  return fmt::format("application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json", list);
}

milliseconds Watch::backoff(uint32_t failures) {
  return jittered(std::min(times_.max_retry, times_.first_retry * (1u << std::min(failures, 10u))));
}

milliseconds Watch::jittered(milliseconds about) {
  auto half = static_cast<uint64_t>(about.count() / 2);
  return milliseconds(half + random_() % (half + 1));
}

}  // namespace nodemesh::kube
