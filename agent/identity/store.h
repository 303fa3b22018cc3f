// The certificates of this node's workloads: obtains one for each wanted identity, renews at half life with
// jitter, retries with growing pauses, and keeps the old one while it is valid. Owned by the control thread;
// what it publishes is immutable and may go anywhere.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "identity/ca_client.h"
#include "identity/vault.h"
#include "io/reactor.h"
#include "tls/credential.h"

namespace nodemesh::identity {

// For `meshctl get certs` and the certificate metrics.
struct CertStatus {
  std::string uri;
  std::string serial;  // empty: none yet
  WallClock::time_point not_before{}, not_after{};
  WallClock::time_point next_attempt{};
  bool in_flight = false;
  uint32_t failures = 0;   // in a row
  std::string last_error;  // empty after a success
};

class CredentialStore {
 public:
  struct Settings {
    seconds lifetime{24 * 3600};  // asked of the CA, which may give less
    size_t concurrency = 8;
    milliseconds first_retry{500};
    milliseconds max_retry{60'000};
    uint64_t seed = 0;  // of the jitter; 0: from the system
  };
  // `credential` null: the identity is no longer wanted or has expired without a successor.
  using OnCredential =
      std::function<void(const std::string& uri, std::shared_ptr<const tls::Credential> credential)>;
  // The roots changed (or came for the first time).
  using OnTrust = std::function<void(std::shared_ptr<const tls::TrustBundle> trust)>;

  // All references outlive the store. Callbacks run on the control thread and may not destroy the store.
  CredentialStore(io::Reactor& reactor, const Clock& clock, Authority& authority, Settings settings,
                  OnCredential on_credential, OnTrust on_trust);
  ~CredentialStore();
  CredentialStore(const CredentialStore&) = delete;
  CredentialStore& operator=(const CredentialStore&) = delete;

  // The whole set of identities (SPIFFE URIs) that this node needs from now on: new ones are requested at
  // once, others are dropped with their keys.
  void set_wanted(std::set<std::string> uris);
  // Takes over what an earlier process left: valid credentials are published and renewed at their time, but
  // for what the CA has given already, which stays. The next set_wanted drops identities that it does not
  // name.
  void adopt(const VaultContents& contents);
  // What to hand to a successor: credentials and roots (ticket keys are the caller's).
  VaultContents contents() const;

  std::shared_ptr<const tls::Credential> find(const std::string& uri) const;
  std::shared_ptr<const tls::TrustBundle> trust() const { return trust_; }
  std::vector<CertStatus> status() const;
  // True when each wanted identity has a certificate in its time.
  bool complete() const;
  // A sentence for each that has not.
  std::vector<std::string> lacking() const;
  bool wants(const std::string& uri) const { return entries_.contains(uri); }

 private:
  struct Entry {
    std::shared_ptr<const tls::Credential> credential;
    std::unique_ptr<io::Timer> timer;  // the next attempt, or expiry
    CertStatus status;
    uint64_t number = 0;  // tells a late answer for a dropped and re-added identity from a current one
  };
  Entry& add(const std::string& uri);
  void schedule(Entry& entry, WallClock::duration after);
  void on_timer(const std::string& uri);
  void enqueue(const std::string& uri);
  void pump();
  void finish(const std::string& uri, uint64_t number, Result<Issued> issued);
  void fail_attempt(Entry& entry, const Error& error);
  void install(Entry& entry, std::shared_ptr<const tls::Credential> credential);
  Result<> accept_roots(const std::string& pem);
  double jitter();  // -1 to 1

  io::Reactor& reactor_;
  const Clock& clock_;
  Authority& authority_;
  Settings settings_;
  OnCredential on_credential_;
  OnTrust on_trust_;
  std::map<std::string, Entry> entries_;
  std::vector<std::string> queue_;
  size_t in_flight_ = 0;
  uint64_t next_number_ = 1;
  std::shared_ptr<const tls::TrustBundle> trust_;
  std::mt19937_64 random_;
  std::shared_ptr<bool> alive_;
};

}  // namespace nodemesh::identity
