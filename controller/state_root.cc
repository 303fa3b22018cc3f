#include "controller/state_root.h"

#include <fmt/format.h>

#include "base/log.h"
#include "controller/ca.h"
#include "controller/state_dir.h"

namespace nodemesh::controller {
namespace {

constexpr auto kFile = "ca.pem";  // key and certificate in one file: written whole or not at all

Result<std::shared_ptr<const Signer>> adopt(const std::string& file, const std::string& pem,
                                            WallClock::time_point now) {
  auto key = tls::parse_private_key(pem);
  if (!key) return fail(file + ": " + key.error().message + "; restore it, or remove it to begin a new mesh");
  auto roots = tls::parse_certificates(pem);
  if (!roots) return fail(file + ": " + roots.error().message);
  if (roots->size() != 1) return fail(fmt::format("{}: {} certificates instead of one", file, roots->size()));
  auto until = tls::to_time(X509_get0_notAfter(roots->front().get()));
  if (!until) return fail(file + ": the root's validity does not parse");
  if (now >= *until) return fail(file + ": the root has expired; remove the file to begin a new mesh");
  std::string root = tls::to_pem(roots->front().get());
  auto signer = Signer::load({.cert_pem = root, .key_pem = pem, .chain_pem = {}, .roots_pem = root}, now);
  if (!signer) return fail(file + ": " + signer.error().message);
  return signer;
}

}  // namespace

Result<StateRoot> StateRoot::open(const Settings& settings, WallClock::time_point now) {
  if (auto checked = check_trust_domain(settings.trust_domain); !checked)
    return std::unexpected(checked.error());
  auto directory = open_state_dir(settings.state_dir);
  if (!directory) return std::unexpected(directory.error());
  std::string file = settings.state_dir + "/" + kFile;
  auto kept = read_secret(*directory, settings.state_dir, kFile);
  if (!kept) return std::unexpected(kept.error());
  if (!*kept) {
    auto made = make_root(settings.trust_domain, settings.root_lifetime, now);
    if (!made) return std::unexpected(made.error());
    *kept = made->key_pem + made->cert_pem;
    auto written = write_secret(*directory, settings.state_dir, kFile, **kept);
    if (!written) return std::unexpected(written.error());
    log::info(log::Component::controller, "made a new root",
              {{"trust_domain", settings.trust_domain}, {"file", file}});
  }
  auto signer = adopt(file, **kept, now);
  if (!signer) return std::unexpected(signer.error());
  return StateRoot{std::move(*directory), std::move(*signer)};
}

}  // namespace nodemesh::controller
