#include "telemetry/registry.h"

#include "telemetry/exposition.h"

namespace nodemesh::telemetry {
namespace {

std::shared_ptr<LabelSet> make_other(Reporter reporter, size_t shards) {
  auto set = std::make_shared<LabelSet>(shards, true);
  WorkloadLabels other;
  for (auto* field :
       {&other.workload, &other.ns, &other.principal, &other.app, &other.version, &other.cluster,
        &other.canonical_service, &other.canonical_revision, &other.region, &other.zone}) {
    *field = "other";
  }
  set->labels.source = set->labels.destination = share(other);
  set->labels.service = share(ServiceLabels{"other", "other", "other"});
  set->labels.reporter = reporter;
  set->text = tcp_label_text(set->labels);
  return set;
}

}  // namespace

LabelSet::~LabelSet() {
  for (auto& series : shards) delete series.load();
}

Metrics::Metrics(MetricsOptions options, const Clock& clock) : options_(std::move(options)), clock_(clock) {
  for (auto reporter : {Reporter::source, Reporter::destination}) {
    other_[static_cast<size_t>(reporter)] = make_other(reporter, options_.shards);
  }
  for (size_t i = 0; i < options_.shards; ++i) {
    shards_.push_back(std::unique_ptr<MetricShard>(new MetricShard(*this, i)));
  }
}

Metrics::~Metrics() = default;

std::shared_ptr<LabelSet> Metrics::intern(const TcpLabels& labels) {
  // By text: labels that differ only in what is not known are written alike, and a series written twice
  // spoils a scrape.
  auto text = tcp_label_text(labels);
  std::lock_guard lock(mutex_);
  if (auto found = sets_.find(text); found != sets_.end()) return found->second;
  if (sets_.size() >= options_.max_series) {
    ++overflow_;
    return other_[static_cast<size_t>(labels.reporter)];
  }
  auto set = std::make_shared<LabelSet>(options_.shards, false);
  set->labels = labels;
  set->text = std::move(text);
  sets_.emplace(set->text, set);
  return set;
}

bool Metrics::in_use(const LabelSet& set, int64_t idle_since) {
  for (const auto& slot : set.shards) {
    const TcpSeries* series = slot.load(std::memory_order_acquire);
    if (!series) continue;
    if (series->refs_.load(std::memory_order_seq_cst) != 0) return true;
    if (series->last_used_.load(std::memory_order_relaxed) > idle_since) return true;
  }
  return false;
}

size_t Metrics::expire(const std::function<bool(const WorkloadLabels&)>& is_live) {
  int64_t now = clock_.now().time_since_epoch().count();
  int64_t idle_since = now - std::chrono::nanoseconds(options_.expiry).count();
  auto gone = [&](const WorkloadRef& workload) { return workload && !is_live(*workload); };
  std::lock_guard lock(mutex_);
  auto retired = std::erase_if(sets_, [&](auto& entry) {
    LabelSet& set = *entry.second;
    if (!gone(set.labels.source) && !gone(set.labels.destination)) {
      set.gone_since = 0;
      return false;
    }
    if (set.gone_since == 0) set.gone_since = now;
    if (set.gone_since > idle_since || in_use(set, idle_since)) return false;
    // Retire first, look for references after: see MetricShard::tcp.
    set.retired.store(true, std::memory_order_seq_cst);
    if (!in_use(set, idle_since)) return true;
    set.retired.store(false, std::memory_order_seq_cst);
    return false;
  });
  if (retired) retirements_.fetch_add(1, std::memory_order_release);
  return retired;
}

size_t Metrics::series() const {
  std::lock_guard lock(mutex_);
  return sets_.size();
}

void Metrics::set_certificate(std::string_view identity, WallClock::time_point not_after) {
  auto unix_time = std::chrono::duration_cast<seconds>(not_after.time_since_epoch()).count();
  std::lock_guard lock(mutex_);
  certificates_.insert_or_assign(std::string(identity), unix_time);
}

void Metrics::remove_certificate(std::string_view identity) {
  std::lock_guard lock(mutex_);
  if (auto found = certificates_.find(identity); found != certificates_.end()) certificates_.erase(found);
}

void Metrics::set_config(uint64_t generation, WallClock::time_point applied, uint64_t rejected_objects) {
  std::lock_guard lock(mutex_);
  generation_ = generation;
  rejected_ = rejected_objects;
  applied_ = std::chrono::duration_cast<seconds>(applied.time_since_epoch()).count();
}

void Metrics::set_config_source(const ConfigSource& source) {
  std::lock_guard lock(mutex_);
  source_ = source;
}

void Metrics::set_kernel(std::span<const uint64_t> drops, std::span<const uint64_t> events) {
  std::lock_guard lock(mutex_);
  kernel_drops_.assign(drops.begin(), drops.end());
  kernel_events_.assign(events.begin(), events.end());
}

void Metrics::count_dry_run(std::string_view policy, bool would_allow) {
  std::lock_guard lock(mutex_);
  ++dry_runs_[{std::string(policy), would_allow}];
}

std::string Metrics::render() const {
  return Exposition(*this).render();
}

}  // namespace nodemesh::telemetry
