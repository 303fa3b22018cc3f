#include "kube/cluster.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "kube/json.h"
#include "tls/openssl.h"

namespace nodemesh::kube {
namespace {

WatchOptions options_of(const Kind& kind, const ClusterOptions& cluster) {
  WatchOptions options{.resource = resource_of(kind),
                       .metadata_only = kind.metadata_only,
                       .optional = !is_builtin_group(kind.group)};
  if (kind.group.empty() && kind.name == "Pod") options.field_selector = "spec.nodeName=" + cluster.node;
  if (kind.group.empty() && kind.name == "ConfigMap") {
    options.ns = cluster.root_namespace;
    options.field_selector = "metadata.name=istio";
  }
  return options;
}

const char* state_text(WatchProgress::State state) {
  static constexpr const char* kTexts[] = {"being listed", "watched",   "waiting",
                                           "absent",       "forbidden", "stopped"};
  return kTexts[static_cast<size_t>(state)];
}

// Every record can be read, and they are a whole state.
Result<> check_records(SnapshotReader& reader) {
  bool complete = false;
  for (;;) {
    auto frame = reader.next();
    if (!frame) return std::unexpected(frame.error());
    if (!*frame) break;
    for (std::string_view payload = **frame; !payload.empty();) {
      auto record = take_record(payload);
      if (!record) return std::unexpected(record.error());
      complete = complete || record->type == SnapshotRecord::Type::complete;
      if (record->type != SnapshotRecord::Type::upsert) continue;
      auto object = parse_json(record->body);
      if (!object || object->type != Node::Type::map)
        return fail(fmt::format("{} {}/{} in it cannot be read", record->kind, record->ns, record->name));
    }
  }
  if (complete) return {};
  return fail(reader.cut() ? "it is cut off before its end" : "it is not complete");
}

}  // namespace

// One kind's watch, and its way into the store.
class Cluster::Mirror final : private WatchSink {
 public:
  Mirror(Cluster& cluster, const Kind& kind)
      : cluster_(cluster),
        kind_(kind),
        watch_(cluster.reactor_, cluster.client_, static_cast<WatchSink&>(*this),
               options_of(kind, cluster.options_), cluster.options_.watch_times) {}

  Watch& watch() { return watch_; }
  const Watch& watch() const { return watch_; }

 private:
  void on_upsert(std::shared_ptr<Object> object) override {
    if (cluster_.options_.on_object) cluster_.options_.on_object(*object);
    if (cluster_.journal_) {
      std::string json;
      write_json(object->root, kind_.fields, json);
      cluster_.journal_->upsert(*object, json);
    }
    if (cluster_.store_.upsert(std::move(object))) cluster_.note_change();
  }
  void on_remove(const ObjectKey& key) override {
    if (cluster_.options_.on_gone) cluster_.options_.on_gone(key);
    if (cluster_.journal_) cluster_.journal_->remove(key);
    if (cluster_.store_.remove(key)) cluster_.note_change();
  }
  void on_synced() override { cluster_.note_synced(); }
  void on_caught_up() override { cluster_.note_caught_up(); }

  Cluster& cluster_;
  const Kind& kind_;
  Watch watch_;
};

// The names of the CRDs there are, so that a new one is not waited for.
class Cluster::Crds final : private WatchSink {
 public:
  explicit Crds(Cluster& cluster)
      : cluster_(cluster),
        watch_(cluster.reactor_, cluster.client_, static_cast<WatchSink&>(*this),
               {.resource =
                    {"apiextensions.k8s.io", {"v1"}, "customresourcedefinitions", "CustomResourceDefinition"},
                .metadata_only = true},
               cluster.options_.watch_times) {}
  Watch& watch() { return watch_; }

 private:
  void on_upsert(std::shared_ptr<Object> object) override {
    for (auto& mirror : cluster_.mirrors_) {
      if (mirror->watch().options().resource.full_name() == object->key.name) mirror->watch().poke();
    }
  }
  void on_remove(const ObjectKey&) override {}  // its watch notices
  void on_synced() override {}

  Cluster& cluster_;
  Watch watch_;
};

Cluster::Cluster(io::Reactor& reactor, const Clock& clock, Access access, std::span<const Kind> kinds,
                 ClusterOptions options)
    : reactor_(reactor),
      clock_(clock),
      options_(std::move(options)),
      client_(reactor, clock, std::move(access), options_.api_times),
      store_(kinds),
      settle_timer_([this] { tell(); }),
      snapshot_timer_([this] { consider_snapshot(); }) {
  const auto& only = options_.only_kinds;
  bool crds = false;
  for (const auto& kind : kinds) {
    if (!only.empty() && std::ranges::find(only, kind.name) == only.end()) continue;
    mirrors_.push_back(std::make_unique<Mirror>(*this, kind));
    crds = crds || !is_builtin_group(kind.group);
  }
  unsynced_ = mirrors_.size();
  if (crds && options_.watch_crds) crds_ = std::make_unique<Crds>(*this);
}

Cluster::~Cluster() = default;

Result<> Cluster::start(Changed changed) {
  bool pods = std::ranges::any_of(
      mirrors_, [](const auto& mirror) { return mirror->watch().options().resource.kind == "Pod"; });
  if (pods && options_.node.empty()) return fail("the name of this node is not known; fix: give --node");
  changed_ = std::move(changed);
  log::info(log::Component::config, "reading the configuration from the API server",
            {{"server", client_.access().url()}, {"access", client_.access().origin}});
  started_ = reactor_.now();
  if (!options_.snapshot.path.empty()) start_journal();
  for (auto& mirror : mirrors_) mirror->watch().start();
  if (crds_) crds_->watch().start();
  return {};
}

std::vector<std::string> Cluster::troubles() const {
  std::vector<std::string> out;
  for (const auto& mirror : mirrors_) {
    auto progress = mirror->watch().progress();
    bool trouble = !progress.trouble.empty() && progress.state != WatchProgress::State::absent;
    if (progress.synced && !trouble && !progress.adopted) continue;
    const char* what = progress.adopted  ? "as an earlier process left it"
                       : progress.synced ? "may be stale"
                                         : "not read yet";
    out.push_back(fmt::format("{} {}{}{}", mirror->watch().options().resource.full_name(), what,
                              trouble ? ": " : ", ",
                              trouble ? progress.trouble : state_text(progress.state)));
  }
  return out;
}

std::optional<Monotonic::duration> Cluster::age() const {
  std::optional<Monotonic::duration> oldest;
  for (const auto& mirror : mirrors_) {
    auto progress = mirror->watch().progress();
    auto current = progress.adopted ? progress.adopted : progress.contact;
    if (!current || (progress.state == WatchProgress::State::absent && !progress.adopted)) continue;
    auto age = reactor_.now() - *current;
    oldest = std::max(oldest.value_or(age), age);
  }
  return oldest;
}

std::vector<std::pair<std::string, WatchProgress>> Cluster::progress() const {
  std::vector<std::pair<std::string, WatchProgress>> out;
  for (const auto& mirror : mirrors_)
    out.emplace_back(mirror->watch().options().resource.full_name(), mirror->watch().progress());
  return out;
}

bool Cluster::passed(std::string_view kind, Monotonic::time_point since) const {
  return std::ranges::all_of(mirrors_, [&](const auto& mirror) {
    if (mirror->watch().options().resource.kind != kind) return true;
    auto progress = mirror->watch().progress();
    return progress.synced && progress.passed && *progress.passed >= since;
  });
}

Result<> check_choice(const SourceChoice& choice) {
  if (!choice.folder.empty() + !choice.kubeconfig.empty() + choice.in_cluster == 1) return {};
  return fail("give one of --config DIR, --kubeconfig FILE and --in-cluster");
}

Result<std::unique_ptr<Source>> make_source(io::Reactor& reactor, const Clock& clock,
                                            const SourceChoice& choice, std::span<const Kind> kinds,
                                            ClusterOptions options) {
  if (auto one = check_choice(choice); !one) return std::unexpected(one.error());
  if (!choice.folder.empty()) return make_folder_source(reactor, choice.folder, kinds);
  auto access = choice.in_cluster ? in_cluster_access()
                                  : kubeconfig_access({.path = choice.kubeconfig, .context = choice.context});
  if (!access) return std::unexpected(access.error());
  return std::make_unique<Cluster>(reactor, clock, std::move(*access), kinds, std::move(options));
}

// Until everything was read once nobody is told: what is not there yet must not look like what is not there.
void Cluster::note_synced() {
  if (--unsynced_ > 0) return;
  snapshot_timer_.cancel();
  if (!serves_snapshot()) refused_.clear();
  if (journal_) journal_->complete(!serves_snapshot());
  dirty_ = true;
  dirty_since_ = reactor_.now();
  settle_timer_.arm(reactor_, milliseconds(0));
}

// Told even if nothing has changed: what is known is now the API server's own word.
void Cluster::note_caught_up() {
  if (serves_snapshot()) return;
  log::info(log::Component::config, "the API server is back, and all is as it says");
  if (journal_) journal_->complete(true);
  refused_.clear();
  note_change();
}

void Cluster::note_change() {
  if (!synced()) return;
  if (!std::exchange(dirty_, true)) dirty_since_ = reactor_.now();
  auto latest = dirty_since_ + options_.settle_at_most - reactor_.now();
  auto wait = std::min(options_.settle, std::chrono::ceil<milliseconds>(latest));
  settle_timer_.arm(reactor_, std::max(wait, milliseconds(0)));
}

void Cluster::tell() {
  dirty_ = false;
  changed_();
}

Source::Origin Cluster::origin() const {
  return serves_snapshot() ? Origin::snapshot : Origin::api;
}

bool Cluster::serves_snapshot() const {
  return std::ranges::any_of(
      mirrors_, [](const auto& mirror) { return mirror->watch().progress().adopted.has_value(); });
}

std::string Cluster::snapshot_problem() const {
  if (!refused_.empty()) return "the snapshot " + options_.snapshot.path + " was refused: " + refused_;
  return journal_ ? journal_->problem() : "";
}

SnapshotHeader Cluster::header() const {
  SnapshotHeader header{.node = options_.node, .root_namespace = options_.root_namespace};
  for (const auto& mirror : mirrors_) header.kinds.push_back(mirror->watch().options().resource.full_name());
  const Access& access = client_.access();
  auto pem = access.roots.empty() ? Result<std::string>("") : access.roots.read("the API server's roots");
  auto roots = tls::parse_certificates(pem.value_or(""));
  if (roots) {
    for (const auto& root : *roots)
      header.server.push_back(fmt::format("{:02x}", fmt::join(tls::sha256(tls::to_pem(root.get())), "")));
  }
  if (header.server.empty()) header.server.push_back(access.url());
  return header;
}

void Cluster::start_journal() {
  auto is_current = [this](const SnapshotRecord& record) {
    Mirror* mirror = mirror_of(record);
    return mirror != nullptr && mirror->watch().knows(record.ns, record.name, record.version);
  };
  auto as_of = [this] {
    auto known = age();
    return known ? clock_.wall() - std::chrono::duration_cast<WallClock::duration>(*known)
                 : WallClock::time_point();
  };
  journal_.emplace(reactor_, options_.snapshot, header(), is_current, as_of);
  snapshot_timer_.arm(reactor_, options_.snapshot_after);
}

Cluster::Mirror* Cluster::mirror_of(const SnapshotRecord& record) const {
  for (const auto& mirror : mirrors_) {
    const Resource& resource = mirror->watch().options().resource;
    if (resource.kind == record.kind && resource.group == record.group) return mirror.get();
  }
  return nullptr;
}

// A server that is in the midst of answering is waited for: its word is better.
void Cluster::consider_snapshot() {
  if (synced()) return;
  auto heard = started_ - options_.snapshot_after;
  for (const auto& mirror : mirrors_) {
    auto progress = mirror->watch().progress();
    heard = std::max(heard, progress.contact.value_or(heard));
  }
  auto now = reactor_.now();
  if (now - heard < options_.snapshot_after && now - started_ < options_.snapshot_latest)
    return snapshot_timer_.arm(reactor_, options_.snapshot_after / 4);
  auto loaded = load_snapshot();
  if (loaded) return;
  if (loaded.error().reason == Reason::NONE) {
    return log::warn(log::Component::config,
                     "the API server cannot be read, and there is no snapshot to start with",
                     {{"file", options_.snapshot.path}});
  }
  refused_ = loaded.error().message;
  log::error(log::Component::config, "the API server cannot be read, and the snapshot is refused",
             {{"file", options_.snapshot.path}, {"error", refused_}});
}

// All of it is read before any of it is believed.
Result<> Cluster::load_snapshot() {
  auto reader = SnapshotReader::open(options_.snapshot.path, 2 * options_.snapshot.max_size);
  if (!reader) return std::unexpected(reader.error());
  if (auto ok = check_header(reader->header(), header()); !ok) return ok;
  if (auto ok = check_records(*reader); !ok) return ok;
  auto age = std::max(clock_.wall() - reader->as_of(), WallClock::duration(0));
  bool cut = reader->cut();
  reader->rewind();
  for (;;) {
    auto frame = reader->next();
    if (!frame) return std::unexpected(frame.error());
    if (!*frame) break;
    adopt(**frame);
  }
  log::warn(log::Component::config, "the API server cannot be read: what was last read of it serves",
            {{"file", options_.snapshot.path},
             {"age_s", std::chrono::duration_cast<seconds>(age).count()},
             {"objects", store_.size()},
             {"end", cut ? "cut off, and left out" : "whole"}});
  for (auto& mirror : mirrors_) mirror->watch().adopted(reactor_.now() - age);
  return {};
}

// Records that were found good.
void Cluster::adopt(std::string_view payload) {
  while (!payload.empty()) {
    auto record = take_record(payload);
    if (!record) return;
    Mirror* mirror = mirror_of(*record);
    if (mirror == nullptr) continue;
    if (record->type == SnapshotRecord::Type::remove) {
      mirror->watch().adopt_removal(std::string(record->ns), std::string(record->name));
    } else if (auto object = parse_json(record->body)) {
      mirror->watch().adopt(std::move(*object));
    }
  }
}

}  // namespace nodemesh::kube
