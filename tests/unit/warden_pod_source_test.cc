// Where the warden learns of its node's pods when that is an API server.
#include "kube_fixtures.h"
#include "warden/pod_source.h"

using namespace nodemesh;
using namespace nodemesh::test;

namespace {

struct PodSourceFixture : ApiFixture {
  TempDir dir;
  std::unique_ptr<warden::PodSource> source;
  std::optional<warden::LocalPods> pods;

  PodSourceFixture() {
    serve(true);
    dir.write("ca.pem", ca.root_pem());
    dir.write(
        "kubeconfig",
        fmt::format("{{apiVersion: v1, kind: Config, current-context: it, contexts: [{{name: it, context: "
                    "{{cluster: it, user: it}}}}], users: [{{name: it, user: {{token: the-token}}}}], "
                    "clusters: [{{name: it, cluster: {{server: 'https://127.0.0.1:{}', "
                    "tls-server-name: kubernetes, certificate-authority: {}/ca.pem}}}}]}}",
                    server->port(), dir.path));
    server->handle = [](ApiServer::Call& call) {
      call.start(200);
      if (call.has("/pods")) {
        call.send(event_json("ADDED", R"({"apiVersion":"v1","kind":"Pod","metadata":{"name":"web",)"
                                      R"("namespace":"shop","uid":"u","resourceVersion":"3","annotations":)"
                                      R"({"nodemesh.dev/netns":"/proc/1/root/dev/watchdog"}},)"
                                      R"("spec":{"nodeName":"node1","serviceAccountName":"web"},)"
                                      R"("status":{"podIPs":[{"ip":"10.0.0.1"}]}})"));
      }
      if (call.has("/namespaces?")) {
        call.send(event_json("ADDED", R"({"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop",)"
                                      R"("uid":"n","resourceVersion":"2"}})"));
      }
      call.send(bookmark_json(5, true));
    };
    auto made =
        warden::make_pod_source(reactor, clock, {.kubeconfig = dir.path + "/kubeconfig"}, "node1", "", "");
    REQUIRE(made);
    source = std::move(*made);
    REQUIRE(source->start([this](warden::LocalPods now) { pods = std::move(now); }));
  }
};

}  // namespace

TEST_CASE_FIXTURE(PodSourceFixture, "whoever may make a Pod does not name what the warden opens") {
  turn_until([&] { return pods.has_value(); });
  REQUIRE(pods->size() == 1);
  CHECK(pods->front()->name == "web");
  CHECK(pods->front()->netns == "");
}
