// Certificates for tests: an authority, and leaves with any names, times, key and flaws. Broken input aborts
// the test.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tls/credential.h"
#include "tls/openssl.h"

namespace nodemesh::test {

enum class KeyKind { p256, p384, rsa2048, rsa1024, ed25519 };

struct LeafOptions {
  std::vector<std::string> uris;  // as they are, NUL bytes included
  std::vector<std::string> dns;
  std::vector<std::string> ips;
  WallClock::time_point not_before = WallClock::now() - std::chrono::minutes(2);
  WallClock::time_point not_after = WallClock::now() + std::chrono::hours(24);
  KeyKind key = KeyKind::p256;
  bool server_auth = true, client_auth = true;
};

struct Issued {
  std::string key_pem;
  std::string chain_pem;  // leaf, then the intermediates up to but without the root
  tls::X509Ptr leaf;
};

class TestCa {
 public:
  explicit TestCa(const std::string& name = "test root", KeyKind key = KeyKind::p256);
  // An intermediate below `parent`; what it issues carries it in the chain.
  TestCa(const TestCa& parent, const std::string& name);
  Issued issue(const LeafOptions& options) const;
  // The usual case: spiffe://cluster.local/ns/<ns>/sa/<sa>.
  std::shared_ptr<const tls::Credential> credential(const std::string& ns,
                                                    const std::string& service_account) const;
  std::shared_ptr<const tls::Credential> credential(const LeafOptions& options) const;
  std::string root_pem() const { return root_pem_; }
  std::shared_ptr<const tls::TrustBundle> trust() const;

 private:
  tls::PkeyPtr key_;
  tls::X509Ptr certificate_;
  std::string root_pem_, intermediates_pem_;
};

std::string spiffe(const std::string& ns, const std::string& service_account);

}  // namespace nodemesh::test
