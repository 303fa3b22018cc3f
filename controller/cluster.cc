#include "controller/cluster.h"

#include <fmt/format.h>

#include "admin/listen.h"
#include "admin/server.h"
#include "base/log.h"
#include "controller/cluster_ca.h"
#include "controller/cluster_duties.h"
#include "controller/events.h"
#include "controller/grpc_server.h"
#include "controller/lease.h"
#include "controller/metrics.h"
#include "controller/node_pods.h"
#include "controller/pod_index.h"
#include "controller/server_certificate.h"
#include "controller/stop_signal.h"
#include "controller/tls_front.h"
#include "controller/trust_bundle.h"
#include "io/socket.h"
#include "kube/watch.h"

namespace nodemesh::controller {
namespace {

constexpr auto kReleaseLimit = seconds(3);

// The watch of all Pods, into the two indexes.
class PodFeed final : public kube::WatchSink {
 public:
  PodFeed(std::set<ServiceAccount> agents, std::function<void()> changed)
      : by_node(std::move(agents)), changed(std::move(changed)) {}
  void on_upsert(std::shared_ptr<kube::Object> object) override {
    by_node.upsert(*object);
    if (auto pod = read_pod(*object))
      index.upsert(std::move(*pod));
    else
      index.remove(object->key.ns, object->key.name);
    changed();
  }
  void on_remove(const kube::ObjectKey& key) override {
    by_node.remove(key.ns, key.name);
    index.remove(key.ns, key.name);
    changed();
  }
  void on_synced() override {
    synced = true;
    log::info(log::Component::controller, "all pods are known", {{"pods", index.size()}});
    changed();
  }
  PodIndex index;
  NodePods by_node;
  bool synced = false;

 private:
  std::function<void()> changed;
};

kube::WatchOptions all_pods() {
  return {.resource = {.group = "", .versions = {"v1"}, .plural = "pods", .kind = "Pod"}};
}

ClusterCa::Settings ca_settings(const ClusterOptions& options) {
  return {.ns = options.ns,
          .secret = options.ca_secret,
          .plugged_secret = options.plugged_secret,
          .trust_domain = options.trust_domain,
          .root_lifetime = options.root_lifetime,
          .times = {.overlap = options.overlap, .longest_lifetime = options.max_lifetime},
          .refresh = options.refresh};
}

ClusterDuties::Settings duty_settings(const ClusterOptions& options) {
  return {.access = options.access,
          .translate = {.trust_domain = options.trust_domain,
                        .mesh_config_namespace = options.root_namespace,
                        .cluster_domain = options.cluster_domain},
          .agentless = {.interop_istio = options.interop_istio},
          .interop_istio = options.interop_istio};
}

std::vector<std::string> dns_names(const ClusterOptions& options) {
  auto out = service_names(options.service, options.ns, options.cluster_domain);
  out.insert(out.end(), options.dns_names.begin(), options.dns_names.end());
  return out;
}

// All parts, in the order in which they need each other.
class Running {
 public:
  Running(io::Reactor& reactor, const Clock& clock, const ClusterOptions& options)
      : reactor_(reactor),
        options_(options),
        stop_(reactor, [this] { stop(); }),
        client_(reactor, clock, options.access),
        api_(client_),
        pods_(options.agents, [this] { duties_.pods_changed(pods_.synced); }),
        watch_(reactor, client_, pods_, all_pods()),
        authority_(clock, {.trust_domain = options.trust_domain, .max_lifetime = options.max_lifetime}),
        certificate_(reactor, clock, authority_, dns_names(options)),
        bundle_(reactor, api_, authority_, {.ns = options.ns, .name = options.trust_bundle}),
        ca_(reactor, clock, api_, authority_, ca_settings(options), [this] { on_authority(); }),
        authorizer_(
            clock, api_, pods_.index,
            {.agents = options.agents, .audience = options.audience, .trust_domain = options.trust_domain}),
        issuer_(clock, authority_, authorizer_, [this](const Refused& why) { on_refused(why); }),
        lease_(reactor, clock, api_, {.ns = options.ns, .name = options.lease, .identity = options.identity},
               [this](bool leads) { on_lease(leads); }),
        events_(clock, api_, options.identity),
        duties_(reactor, clock, api_, events_, pods_.by_node, duty_settings(options)),
        admin_(reactor, sources()) {}

  Result<> run() {
    if (auto started = stop_.start(); !started) return started;
    Serving serving{.address = "none"};
    if (options_.authority) {
      if (auto served = serve(serving); !served) return served;
      ca_.start();
    }
    front_ = serving.front.get();
    if (auto listening = admin_.listen(admin::Surface::process, options_.admin_listen); !listening)
      return listening;
    watch_.start();
    lease_.start();
    log::info(log::Component::controller, "controller started",
              {{"namespace", options_.ns},
               {"api", options_.access.url()},
               {"ca", serving.address},
               {"admin", admin_.last_address().to_string()}});
    reactor_.run();
    front_ = nullptr;
    return {};
  }

 private:
  struct Serving {
    std::string address;
    std::unique_ptr<GrpcServer> grpc;
    std::unique_ptr<TlsFront> front;  // hands its connections to grpc, so it goes first
  };

  Result<> serve(Serving& out) {
    auto listener = admin::open_listener(options_.ca_listen);
    if (!listener) return std::unexpected(listener.error());
    out.address = io::local_address(listener->get()).to_string();
    auto grpc = GrpcServer::start(reactor_, issuer_);
    if (!grpc) return std::unexpected(grpc.error());
    out.grpc = std::move(*grpc);
    auto front = TlsFront::start(
        reactor_, std::move(*listener), {}, [this] { return certificate_.context(); },
        [grpc = out.grpc.get()](Fd peer, std::string name) {
          grpc->serve(std::move(peer), std::move(name));
        });
    if (!front) return std::unexpected(front.error());
    out.front = std::move(*front);
    return {};
  }

  void on_authority() {
    certificate_.refresh();
    bundle_.refresh();
  }

  void on_lease(bool leads) {
    std::vector<LeaderDuty*> all{&duties_};
    if (options_.authority) all.insert(all.begin(), {&ca_, &bundle_});
    for (LeaderDuty* duty : all) {
      if (leads)
        duty->begin();
      else
        duty->end();
    }
  }

  void on_refused(const Refused& why) {
    if (why.pod)
      events_.warn({"v1", "Pod", why.pod->ns, why.pod->name, why.pod->uid}, "CertificateRefused", "Sign",
                   why.why);
  }

  void stop() {
    log::info(log::Component::controller, "stopping");
    give_up_.arm(reactor_, kReleaseLimit);
    lease_.release([this] { reactor_.stop(); });
  }

  std::vector<std::string> not_ready() const {
    std::vector<std::string> out;
    if (options_.authority && !authority_.ready())
      out.push_back(ca_.trouble().empty() ? "there is no signing certificate yet" : ca_.trouble());
    if (options_.authority && certificate_.context() == nullptr)
      out.push_back("there is no server certificate");
    if (!pods_.synced) {
      std::string why = watch_.progress().trouble;
      out.push_back("the pods are not known yet" + (why.empty() ? why : ": " + why));
    }
    return out;
  }

  ControllerFigures figures() const {
    ControllerFigures out{
        .version = NODEMESH_VERSION, .authority = options_.authority, .issuer = issuer_.counters()};
    if (front_ != nullptr) {
      out.front = front_->counters();
      out.connections = front_->connections();
    }
    out.pods = pods_.index.size();
    out.pods_synced = pods_.synced;
    out.leads = lease_.leads();
    out.bundle_good = bundle_.trouble().empty();
    out.secrets_good = authority_.ready() && ca_.trouble().empty();
    out.duties = duties_.figures();
    if (authority_.signer() != nullptr) out.signer_not_after = authority_.signer()->not_after();
    out.server_not_after = certificate_.not_after();
    if (ca_.state() && ca_.state()->next) out.next_signs_at = ca_.state()->next_at;
    return out;
  }

  admin::Sources sources() {
    admin::Sources out{.node = options_.identity, .version = NODEMESH_VERSION};
    out.metrics = [this] { return render_metrics(figures()); };
    out.not_ready = [this] { return not_ready(); };
    return out;
  }

  io::Reactor& reactor_;
  const ClusterOptions& options_;
  StopSignal stop_;
  kube::ApiClient client_;
  ClientApi api_;
  PodFeed pods_;
  kube::Watch watch_;
  CertificateAuthority authority_;
  ServerCertificate certificate_;
  TrustBundlePublisher bundle_;
  ClusterCa ca_;
  ClusterAuthorizer authorizer_;
  Issuer issuer_;
  Lease lease_;
  EventPoster events_;
  ClusterDuties duties_;
  const TlsFront* front_ = nullptr;
  io::Timer give_up_{[this] { reactor_.stop(); }};
  admin::Server admin_;
};

}  // namespace

Result<> run_cluster(io::Reactor& reactor, const Clock& clock, const ClusterOptions& options) {
  if (auto checked = check_trust_domain(options.trust_domain); !checked) return checked;
  return Running(reactor, clock, options).run();
}

}  // namespace nodemesh::controller
