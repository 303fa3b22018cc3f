#include "controller/standalone.h"

#include <unistd.h>

#include "base/log.h"
#include "controller/folder_authorizer.h"
#include "controller/grpc_server.h"
#include "controller/issuer.h"
#include "controller/stop_signal.h"
#include "controller/unix_listener.h"
#include "kube/folder.h"
#include "translate/translate.h"

namespace nodemesh::controller {
namespace {

void log_problems(const kube::Store& store) {
  for (const auto& status : store.statuses()) {
    if (status.kind != "Pod" && !status.kind.empty()) continue;  // the others are the agents' to judge
    for (const auto& problem : status.problems) {
      if (problem.severity == kube::Severity::error) log::warn(log::Component::config, problem.to_string());
    }
  }
}

}  // namespace

Result<> run_standalone(io::Reactor& reactor, const Clock& clock, const StandaloneOptions& options) {
  StopSignal stop(reactor, [&reactor] { reactor.stop(); });
  auto root = StateRoot::open(options.root, clock.wall());
  if (!root) return std::unexpected(root.error());
  CertificateAuthority authority(
      clock, {.trust_domain = options.root.trust_domain, .max_lifetime = options.max_lifetime});
  authority.use(root->signer, root->signer->roots_pem());

  kube::Store store(translate::kinds());
  FolderAuthorizer authorizer;
  kube::Folder folder(reactor, options.config, store, [&] {
    authorizer.update(store);
    log_problems(store);
  });
  if (auto started = folder.start(); !started) return started;
  authorizer.update(store);
  log_problems(store);

  Issuer issuer(clock, authority, authorizer);
  auto server = GrpcServer::start(reactor, issuer);
  if (!server) return std::unexpected(server.error());
  UnixFront::Settings front{.path = options.listen, .allowed_uids = {0, ::geteuid()}};
  front.allowed_uids.insert(options.allowed_uids.begin(), options.allowed_uids.end());
  front.gid = static_cast<gid_t>(options.socket_gid);
  auto listening = UnixFront::start(reactor, std::move(front), [&server](Fd peer, std::string name) {
    (*server)->serve(std::move(peer), std::move(name));
  });
  if (!listening) return std::unexpected(listening.error());
  if (auto started = stop.start(); !started) return started;
  log::info(log::Component::controller, "serving certificates",
            {{"socket", options.listen},
             {"trust_domain", authority.trust_domain()},
             {"accounts", authorizer.size()}});
  reactor.run();
  log::info(log::Component::controller, "stopping");
  return {};
}

}  // namespace nodemesh::controller
