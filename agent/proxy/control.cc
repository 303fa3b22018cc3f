#include "proxy/control.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <random>

#include "base/log.h"
#include "identity/vault.h"
#include "io/socket.h"
#include "translate/status.h"

namespace nodemesh::proxy {
namespace {

constexpr auto kTick = seconds(1);
// Of a stopping proxy: until the next agent has the pods; then for connections that were on their way here.
constexpr auto kHandover = seconds(10), kTail = seconds(2);
constexpr auto kNoLimit = std::chrono::hours(24 * 365);
constexpr uint64_t kTicksPerExpiry = 30;
// A worker that finished no turn for so many ticks will not come back: its own timer wakes it every second.
constexpr uint64_t kSilentTicks = 10;
constexpr auto kForsaken = seconds(5);  // a warden that comes back does so in less

identity::CredentialStore::Settings store_settings(const ControlOptions& options) {
  identity::CredentialStore::Settings settings;
  settings.lifetime = options.certificate_lifetime;
  return settings;
}

size_t descriptor_limit() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? static_cast<size_t>(limit.rlim_cur) : 1024;
}

telemetry::LogFormat log_format(const model::AccessLog& settings) {
  if (settings.file.empty()) return telemetry::LogFormat::off;
  return settings.json ? telemetry::LogFormat::json : telemetry::LogFormat::text;
}

}  // namespace

Control::Control(io::Reactor& reactor, const Clock& clock, ControlOptions options,
                 telemetry::Metrics& metrics, telemetry::AccessLog& access_log, telemetry::Denials& denials)
    : reactor_(reactor),
      clock_(clock),
      options_(std::move(options)),
      metrics_(metrics),
      access_log_(access_log),
      denials_(denials),
      mailbox_(reactor),
      snapshot_(std::make_shared<const model::Snapshot>(model::SnapshotContent{})),
      ca_(reactor, options_.ca),
      credentials_(
          reactor, clock, ca_, store_settings(options_),
          [this](const std::string& uri, std::shared_ptr<const tls::Credential> credential) {
            publish_credential(uri, std::move(credential));
          },
          [this](std::shared_ptr<const tls::TrustBundle> trust) { publish_trust(std::move(trust)); }),
      link_(reactor, *this, options_.run_dir + "/warden.sock", static_cast<uint32_t>(options_.workers),
            options_.warden_uid),
      keys_due_([this] { store_keys(); }),
      ticker_([this] { tick(); }),
      handover_timer_([this] { drain(superseded_ && link_.connected() ? kNoLimit : kDrainLimit); }),
      drain_timer_([this] { end_drain(); }),
      forsaken_([this] {
        log::warn(log::Component::warden, "no warden came back for 5 s: what is still open is reset");
        end_drain();
      }) {}

Control::~Control() {
  stop_workers();
}

void Control::stop_workers() {
  for (auto& worker : workers_) worker->stop_and_join();
}

Result<> Control::start() {
  std::random_device seed;
  for (size_t i = 0; i < options_.workers; ++i) {
    WorkerOptions worker{.number = i,
                         .descriptor_limit = descriptor_limit(),
                         .seed = (uint64_t{seed()} << 32) | seed(),
                         .held_limit = options_.held_limit / options_.workers,
                         .hbone_times = options_.hbone_times,
                         .idle = options_.idle};
    workers_.push_back(std::make_unique<Worker>(worker, clock_, static_cast<ControlPort&>(*this),
                                                metrics_.shard(i), access_log_, denials_,
                                                std::vector{options_.trust_domain}));
    if (auto prepared = workers_.back()->prepare(); !prepared) return prepared;
  }
  auto source = kube::make_source(reactor_, clock_, options_.source, translate::kinds(),
                                  {.node = options_.node,
                                   .root_namespace = options_.root_namespace,
                                   .snapshot = {.path = options_.snapshot_file}});
  if (!source) return std::unexpected(std::move(source.error()));
  source_ = std::move(*source);
  if (auto* client = source_->client(); client != nullptr) slices_.emplace(reactor_, *client, options_.node);
  if (auto started = source_->start([this] { reconfigure(); }); !started) return started;
  for (auto& worker : workers_) worker->start();
  renew_ticket_keys();
  if (source_->synced()) reconfigure();
  report_source();
  ticker_.arm(reactor_, kTick);
  return {};
}

void Control::reconfigure() {
  // What was read first is in force even if it is nothing.
  auto before = snapshot_->generation() == 0 ? nullptr : snapshot_;
  auto translation = translate::translate(source_->store(), before,
                                          {.node = options_.node,
                                           .trust_domain = options_.trust_domain,
                                           .mesh_config_namespace = options_.root_namespace,
                                           .cluster_cidrs = options_.cluster_cidrs,
                                           .cluster = source_->client() != nullptr,
                                           .unknown_peer = options_.unknown_peer},
                                          memory_);
  translate::log_new_problems(statuses_, translation.statuses);
  statuses_ = std::move(translation.statuses);
  translated_ = clock_.now();
  bool changed = translation.snapshot != snapshot_;
  snapshot_ = std::move(translation.snapshot);
  metrics_.set_config(snapshot_->generation(), clock_.wall(), rejected());
  update_slices();
  if (!changed) return;
  access_log_.configure(snapshot_->mesh().access_log.file, log_format(snapshot_->mesh().access_log));
  for (auto& worker : workers_) {
    worker->post([&to = *worker, snapshot = snapshot_]() mutable { to.set_snapshot(std::move(snapshot)); });
  }
  open_known();
  want_identities();
  log::info(log::Component::config, "configuration in force",
            {{"generation", snapshot_->generation()},
             {"workloads", snapshot_->workloads().size()},
             {"services", snapshot_->services().size()},
             {"rejected", rejected()}});
}

// As long as another agent serves the node, its slices are its own.
// What an earlier process left may name pods that are gone: nobody else is told of it.
void Control::update_slices() {
  bool first_hand = source_ && source_->origin() == kube::Source::Origin::api;
  if (slices_ && !standby_ && first_hand && snapshot_->generation() > 0)
    slices_->update(source_->store(), *snapshot_);
}

size_t Control::rejected() const {
  return static_cast<size_t>(std::ranges::count_if(statuses_, [](const kube::Status& status) {
    return status.state == kube::Status::State::refused || status.state == kube::Status::State::stale;
  }));
}

// An identity for every service account that has an enrolled pod on this node.
void Control::want_identities() {
  std::set<std::string> wanted;
  for (const auto& workload : snapshot_->pods()) {
    if (workload->enrolled && workload->node == options_.node) wanted.insert(workload->identity);
  }
  credentials_.set_wanted(std::move(wanted));
}

void Control::publish_credential(const std::string& uri, std::shared_ptr<const tls::Credential> credential) {
  if (credential != nullptr) {
    metrics_.set_certificate(uri, credential->not_after());
  } else if (!credentials_.wants(uri)) {  // one that has expired stays: an alert must not end with it
    metrics_.remove_certificate(uri);
  }
  for (auto& worker : workers_) {
    worker->post([&to = *worker, uri, credential] { to.set_credential(uri, credential); });
  }
  keys_due_.schedule(reactor_);
}

void Control::publish_trust(std::shared_ptr<const tls::TrustBundle> trust) {
  for (auto& worker : workers_) {
    worker->post([&to = *worker, trust] { to.set_trust(trust); });
  }
  keys_due_.schedule(reactor_);
}

void Control::publish_ticket_keys() {
  for (auto& worker : workers_) {
    worker->post([&to = *worker, keys = ticket_keys_] { to.server_tls->set_ticket_keys(keys); });
  }
  keys_due_.schedule(reactor_);
}

// Keys that an earlier process made keep their age.
void Control::renew_ticket_keys() {
  auto now = clock_.wall();
  if (ticket_keys_ != nullptr && !ticket_keys_->due(now)) return;
  auto fresh =
      ticket_keys_ != nullptr ? tls::TicketKeys::rotate(*ticket_keys_, now) : tls::TicketKeys::random(now);
  if (!fresh) {
    return log::warn(log::Component::tls, "session ticket keys cannot be renewed; the old ones stay in use",
                     {{"error", fresh.error().message}});
  }
  ticket_keys_ = std::move(*fresh);
  publish_ticket_keys();
}

// The successor of this process starts with what the warden holds.
void Control::store_keys() {
  if (!link_.connected() || !pods_known_) return;
  auto contents = credentials_.contents();
  contents.ticket_keys = ticket_keys_;
  auto vault = identity::write_vault(contents);
  if (!vault)
    return log::warn(log::Component::identity, "keys cannot be kept for a restart",
                     {{"error", vault.error().message}});
  link_.store_keys(vault->get());
  keys_kept_ = true;
}

void Control::ask_kernel_stats() {
  if (link_.want_kernel_stats()) ++stats_owed_;
}

void Control::tick() {
  ask_kernel_stats();
  report_source();
  watch_workers();
  renew_ticket_keys();
  if (draining_) ask_open();
  if (++ticks_ % kTicksPerExpiry == 0) expire_series();
  ticker_.arm(reactor_, kTick);
}

void Control::report_source() {
  auto age = source_->age();
  metrics_.set_config_source(
      {.origin = kube::origin_name(source_->origin()),
       .contact_age = age ? std::optional(std::chrono::duration_cast<seconds>(*age)) : std::nullopt,
       .troubles = source_->troubles().size(),
       .snapshot_failed = !source_->snapshot_problem().empty(),
       .slices_failed = !slices_problem().empty()});
}

// The supervisor starts a fresh process, which takes over listeners and keys; a stuck worker would hold its
// share of new connections for ever.
void Control::watch_workers() {
  turns_.resize(workers_.size());
  for (size_t i = 0; i < workers_.size(); ++i) {
    auto& [last, silent] = turns_[i];
    uint64_t now = workers_[i]->reactor.turns();
    silent = now == last ? silent + 1 : 0;
    last = now;
    if (silent < kSilentTicks) continue;
    log::error(log::Component::proxy, "a worker is stuck: the process ends to be started anew",
               {{"worker", i}});
    std::abort();
  }
}

void Control::expire_series() {
  std::set<std::pair<std::string_view, std::string_view>> live;
  const model::Workload* last = nullptr;  // pods of one owner stand together
  for (const auto& workload : snapshot_->workloads()) {
    bool again = last && last->workload_name == workload->workload_name && last->ns == workload->ns;
    last = workload.get();
    if (!again) live.emplace(workload->ns.str(), workload->workload_name.str());
  }
  metrics_.expire(
      [&](const telemetry::WorkloadLabels& labels) { return live.contains({labels.ns, labels.workload}); });
}

void Control::on_warden_closed(const Error& why) {
  stats_owed_ = taken_up_after_ = 0;
  // Whoever waits for sockets must not wait for a warden that never heard of it.
  for (const auto& order : orders_.take_all()) give_sockets(order, {}, Reason::NO_SOCKET);
  // Nobody is left who would tell of pods that go, or make sockets.
  if (superseded_ && draining_) drain_timer_.arm(reactor_, kDrainLimit);
  log::warn(log::Component::warden, "the warden is away; what is open goes on", {{"error", why.message}});
  if (drained_ && !superseded_ && !forsaken_.armed()) forsaken_.arm(reactor_, kForsaken);
}

std::vector<std::string> Control::not_ready() const {
  std::vector<std::string> reasons;
  if (snapshot_->generation() == 0) {
    reasons.push_back("no configuration has been read");
    if (source_ != nullptr) std::ranges::copy(source_->troubles(), std::back_inserter(reasons));
  }
  if (!pods_known_ && !standby_) reasons.push_back("the warden has not announced this node's pods");
  if (pods_known_ && !taken_up_) reasons.push_back("the warden has not heard yet that all pods are taken up");
  if (pods_known_ && !keys_kept_) reasons.push_back("the warden does not hold the keys for a restart yet");
  std::ranges::move(credentials_.lacking(), std::back_inserter(reasons));
  return reasons;
}

std::vector<Control::ListenerRow> Control::listeners() const {
  std::vector<ListenerRow> rows;
  for (const auto& [cookie, announced] : pods_) {
    for (size_t kind = 0; kind < announced.ports.size(); ++kind) {
      for (uint16_t port : announced.ports[kind])
        rows.push_back({announced.pod.ns, announced.pod.name, static_cast<nm_listener>(kind), port});
    }
  }
  return rows;
}

// Asks every worker how many connections are open; the last answer of none ends the drain.
void Control::ask_open() {
  auto total = std::make_shared<size_t>(0);
  auto left = std::make_shared<size_t>(workers_.size());
  for (auto& worker : workers_) {
    worker->post([this, &of = *worker, total, left] {
      mailbox_.post([this, open = of.open_connections(), total, left] {
        *total += open;
        if (--*left == 0 && *total == 0 && draining_) drain_timer_.arm(reactor_, milliseconds(0));
      });
    });
  }
}

void Control::end_drain() {
  if (drained_) std::exchange(drained_, nullptr)();
}

bool Control::has_enrolled_pods() const {
  return std::ranges::any_of(pods_, [](const auto& entry) { return entry.second.pod.enrolled; });
}

void Control::stop(std::move_only_function<void()> done) {
  drained_ = std::move(done);
  if (superseded_) return on_superseded();
  if (!hands_over_ || !link_.connected() || !has_enrolled_pods()) return drain(kDrainLimit);
  log::info(log::Component::proxy, "stopping when the next agent has the pods");
  handover_timer_.arm(reactor_, kHandover);
}

// What was on its way here comes within a moment.
void Control::on_superseded() {
  superseded_ = true;
  slices_.reset();
  if (!drained_ || draining_) return;
  log::info(log::Component::proxy,
            "the next agent has the pods: connections that are open here run to their end");
  handover_timer_.arm(reactor_, kTail);
}

void Control::drain(milliseconds limit) {
  if (std::exchange(draining_, true)) return;
  if (limit == kDrainLimit) log::info(log::Component::proxy, "stopping: open connections have 30 s to end");
  handover_timer_.cancel();
  slices_.reset();  // from now on the successor's
  link_.drain();
  for (auto& [cookie, announced] : pods_) announced.ports = {};
  for (auto& worker : workers_) worker->post([&to = *worker] { to.drain(); });
  drain_timer_.arm(reactor_, limit);
}

}  // namespace nodemesh::proxy
