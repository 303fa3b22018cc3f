#include "kube/cluster.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"

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

}  // namespace

// One kind's watch, and its way into the store.
class Cluster::Mirror final : private WatchSink {
 public:
  Mirror(Cluster& cluster, const Kind& kind)
      : cluster_(cluster),
        watch_(cluster.reactor_, cluster.client_, static_cast<WatchSink&>(*this),
               options_of(kind, cluster.options_), cluster.options_.watch_times) {}

  Watch& watch() { return watch_; }
  const Watch& watch() const { return watch_; }

 private:
  void on_upsert(std::shared_ptr<Object> object) override {
    if (cluster_.options_.on_object) cluster_.options_.on_object(*object);
    if (cluster_.store_.upsert(std::move(object))) cluster_.note_change();
  }
  void on_remove(const ObjectKey& key) override {
    if (cluster_.options_.on_gone) cluster_.options_.on_gone(key);
    if (cluster_.store_.remove(key)) cluster_.note_change();
  }
  void on_synced() override { cluster_.note_synced(); }

  Cluster& cluster_;
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
      options_(std::move(options)),
      client_(reactor, clock, std::move(access), options_.api_times),
      store_(kinds),
      settle_timer_([this] { tell(); }) {
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
  for (auto& mirror : mirrors_) mirror->watch().start();
  if (crds_) crds_->watch().start();
  return {};
}

std::vector<std::string> Cluster::troubles() const {
  std::vector<std::string> out;
  for (const auto& mirror : mirrors_) {
    auto progress = mirror->watch().progress();
    bool trouble = !progress.trouble.empty() && progress.state != WatchProgress::State::absent;
    if (progress.synced && !trouble) continue;
    out.push_back(fmt::format("{} {}{}{}", mirror->watch().options().resource.full_name(),
                              progress.synced ? "may be stale" : "not read yet", trouble ? ": " : ", ",
                              trouble ? progress.trouble : state_text(progress.state)));
  }
  return out;
}

std::optional<Monotonic::duration> Cluster::age() const {
  std::optional<Monotonic::duration> oldest;
  for (const auto& mirror : mirrors_) {
    auto progress = mirror->watch().progress();
    if (!progress.contact || progress.state == WatchProgress::State::absent) continue;
    auto age = reactor_.now() - *progress.contact;
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
  dirty_ = true;
  dirty_since_ = reactor_.now();
  settle_timer_.arm(reactor_, milliseconds(0));
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

}  // namespace nodemesh::kube
