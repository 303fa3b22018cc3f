#include "identity/store.h"

#include <algorithm>

#include "base/log.h"

namespace nodemesh::identity {
namespace {

milliseconds to_ms(WallClock::duration duration) {
  // Timers count 32-bit milliseconds of epoll_wait; a day is far below, a forged year 9999 is not.
  return std::chrono::ceil<milliseconds>(
      std::clamp<WallClock::duration>(duration, milliseconds(0), std::chrono::hours(240)));
}

}  // namespace

CredentialStore::CredentialStore(io::Reactor& reactor, const Clock& clock, Authority& authority,
                                 Settings settings, OnCredential on_credential, OnTrust on_trust)
    : reactor_(reactor),
      clock_(clock),
      authority_(authority),
      settings_(settings),
      on_credential_(std::move(on_credential)),
      on_trust_(std::move(on_trust)),
      random_(settings.seed != 0 ? settings.seed : std::random_device()()),
      alive_(std::make_shared<bool>(true)) {}

CredentialStore::~CredentialStore() {
  *alive_ = false;
}

double CredentialStore::jitter() {
  return std::uniform_real_distribution<double>(-1.0, 1.0)(random_);
}

void CredentialStore::set_wanted(std::set<std::string> uris) {
  std::vector<std::string> gone;
  for (auto it = entries_.begin(); it != entries_.end();) {
    if (uris.contains(it->first)) {
      ++it;
      continue;
    }
    gone.push_back(it->first);
    it = entries_.erase(it);
  }
  std::erase_if(queue_, [&](const std::string& uri) { return !uris.contains(uri); });
  for (const std::string& uri : uris) {
    if (entries_.contains(uri)) continue;
    add(uri);
    enqueue(uri);
  }
  for (const std::string& uri : gone) on_credential_(uri, nullptr);
  pump();
}

CredentialStore::Entry& CredentialStore::add(const std::string& uri) {
  Entry& entry = entries_[uri];
  entry.number = next_number_++;
  entry.status.uri = uri;
  entry.timer = std::make_unique<io::Timer>([this, uri] { on_timer(uri); });
  return entry;
}

void CredentialStore::adopt(const VaultContents& contents) {
  if (contents.trust && !trust_) {  // what the CA has said already is newer
    trust_ = contents.trust;
    on_trust_(trust_);
  }
  for (const auto& credential : contents.credentials) {
    if (!credential->valid_at(clock_.wall())) continue;
    auto found = entries_.find(credential->uri());
    if (found != entries_.end() && found->second.credential) continue;
    // It may be wanted already, and even asked for, before the keys of the process before arrive.
    std::erase(queue_, credential->uri());
    install(found == entries_.end() ? add(credential->uri()) : found->second, credential);
  }
}

VaultContents CredentialStore::contents() const {
  VaultContents out{.trust = trust_};
  for (const auto& [uri, entry] : entries_) {
    if (entry.credential) out.credentials.push_back(entry.credential);
  }
  return out;
}

std::shared_ptr<const tls::Credential> CredentialStore::find(const std::string& uri) const {
  auto found = entries_.find(uri);
  return found == entries_.end() ? nullptr : found->second.credential;
}

std::vector<CertStatus> CredentialStore::status() const {
  std::vector<CertStatus> out;
  for (const auto& [uri, entry] : entries_) out.push_back(entry.status);
  return out;
}

bool CredentialStore::complete() const {
  return std::ranges::all_of(entries_, [&](const auto& item) {
    return item.second.credential && item.second.credential->valid_at(clock_.wall());
  });
}

std::vector<std::string> CredentialStore::lacking() const {
  std::vector<std::string> out;
  for (const auto& [uri, entry] : entries_) {
    const auto& status = entry.status;
    if (entry.credential && entry.credential->valid_at(clock_.wall())) continue;
    std::string what = status.serial.empty() ? "no certificate yet for " + uri
                                             : "the certificate of " + uri + " has expired";
    out.push_back(what + (status.last_error.empty() ? "" : ": " + status.last_error));
  }
  return out;
}

void CredentialStore::enqueue(const std::string& uri) {
  if (std::ranges::find(queue_, uri) != queue_.end()) return;
  // Who has no certificate cannot serve at all; renewals have half a lifetime left.
  bool urgent = !entries_.at(uri).credential;
  auto place = urgent
                   ? std::ranges::find_if(
                         queue_, [&](const auto& other) { return entries_.at(other).credential != nullptr; })
                   : queue_.end();
  queue_.insert(place, uri);
}

void CredentialStore::pump() {
  while (in_flight_ < settings_.concurrency && !queue_.empty()) {
    std::string uri = std::move(queue_.front());
    queue_.erase(queue_.begin());
    Entry& entry = entries_.at(uri);
    if (entry.status.in_flight) continue;
    entry.status.in_flight = true;
    ++in_flight_;
    authority_.request(uri, settings_.lifetime,
                       [this, alive = alive_, uri, number = entry.number](Result<Issued> issued) {
                         if (*alive) finish(uri, number, std::move(issued));
                       });
  }
}

void CredentialStore::finish(const std::string& uri, uint64_t number, Result<Issued> issued) {
  --in_flight_;
  auto found = entries_.find(uri);
  // An answer for an identity that was dropped meanwhile, even if it is wanted again: its key goes with it.
  if (found != entries_.end() && found->second.number == number) {
    Entry& entry = found->second;
    entry.status.in_flight = false;
    Result<> accepted;
    if (!issued) {
      accepted = std::unexpected(issued.error());
    } else if (!issued->credential->valid_at(clock_.wall())) {
      accepted =
          fail("certificate authority: the certificate for " + uri + " is not valid now; compare the clocks");
    } else {
      accepted = accept_roots(issued->roots_pem);
    }
    if (accepted) {
      entry.status.failures = 0;
      entry.status.last_error.clear();
      install(entry, std::move(issued->credential));
    } else {
      fail_attempt(entry, accepted.error());
    }
  }
  pump();
}

Result<> CredentialStore::accept_roots(const std::string& pem) {
  auto bundle = tls::TrustBundle::from_pem(pem);
  if (!bundle) return fail("certificate authority: " + bundle.error().message);
  if (trust_ && trust_->generation() == (*bundle)->generation()) return {};
  trust_ = std::move(*bundle);
  log::info(log::Component::identity, "trust bundle changed", {{"roots", trust_->size()}});
  on_trust_(trust_);
  return {};
}

void CredentialStore::install(Entry& entry, std::shared_ptr<const tls::Credential> credential) {
  entry.credential = std::move(credential);
  entry.status.serial = entry.credential->serial();
  entry.status.not_before = entry.credential->not_before();
  entry.status.not_after = entry.credential->not_after();
  // Half of what is left, give or take a tenth: the CA dates certificates back, and nodes must not renew in
  // step.
  auto left = entry.credential->not_after() - clock_.wall();
  schedule(entry, std::chrono::duration_cast<WallClock::duration>(left * (0.5 + 0.1 * jitter())));
  log::info(log::Component::identity, "certificate issued",
            {{"identity", entry.status.uri}, {"serial", entry.status.serial}});
  on_credential_(entry.status.uri, entry.credential);
}

void CredentialStore::fail_attempt(Entry& entry, const Error& error) {
  uint32_t doublings = std::min(entry.status.failures++, 16u);
  entry.status.last_error = error.message;
  log::warn(log::Component::identity, "no certificate",
            {{"identity", entry.status.uri}, {"error", error.message}});
  auto pause = std::min(settings_.max_retry, settings_.first_retry * (1u << doublings));
  schedule(entry, std::chrono::duration_cast<WallClock::duration>(pause * (1.0 + 0.2 * jitter())));
}

// The timer is the next attempt or, if that comes first, the moment at which the certificate stops being
// usable.
void CredentialStore::schedule(Entry& entry, WallClock::duration after) {
  entry.status.next_attempt = clock_.wall() + after;
  if (entry.credential) after = std::min(after, entry.credential->not_after() - clock_.wall());
  entry.timer->arm(reactor_, to_ms(after));
}

void CredentialStore::on_timer(const std::string& uri) {
  Entry& entry = entries_.at(uri);
  auto now = clock_.wall();
  if (entry.credential && now >= entry.credential->not_after()) {
    log::error(log::Component::identity, "certificate expired without a successor", {{"identity", uri}});
    entry.credential.reset();
    on_credential_(uri, nullptr);
  }
  if (entry.status.in_flight) return;
  if (now < entry.status.next_attempt) return schedule(entry, entry.status.next_attempt - now);
  enqueue(uri);
  pump();
}

}  // namespace nodemesh::identity
