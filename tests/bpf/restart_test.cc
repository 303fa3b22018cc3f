#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "bpf/world.h"
#include "doctest/doctest.h"

namespace nodemesh::test {
namespace {

void both_ways(World& world) {
  CHECK(world.app->connect(at("192.0.2.7:80")).error == 0);
  Fd out = accept_one(world.outbound.get());
  REQUIRE(out);
  CHECK(local_name(out.get()) == at("192.0.2.7:80"));
  CHECK(world.stranger->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(world.inbound.get()));
}

int problems(const std::vector<kernel::Finding>& findings) {
  return std::ranges::count(findings, kernel::Finding::Severity::problem, &kernel::Finding::severity);
}

// A program of somebody else's: passes everything.
Fd foreign_program(bpf_prog_type type, bpf_attach_type attach_type) {
  bpf_insn program[2]{};
  program[0].code = BPF_ALU64 | BPF_MOV | BPF_K;
  program[0].imm = 1;
  program[1].code = BPF_JMP | BPF_EXIT;
  LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = attach_type);
  return Fd(::bpf_prog_load(type, "foreign", "GPL", program, 2, &options));
}

TEST_CASE("capture goes on while the warden is gone, and the next one adopts it with all its state") {
  World world;
  world.open();
  CHECK_FALSE(world.capture().adopted());
  world.enrol();
  REQUIRE(world.capture().set_probe(at("10.66.0.2:8080")));
  both_ways(world);

  world.close();
  both_ways(world);

  world.open();
  CHECK(world.capture().adopted());
  CHECK(world.capture().steered(world.cookie));
  CHECK(world.capture().has_listener(world.cookie, NM_LISTENER_OUTBOUND));
  auto pods = world.capture().pods();
  REQUIRE(pods.size() == 1);
  CHECK(pods[0].netns_cookie == world.cookie);
  CHECK(pods[0].addresses == std::vector{World::kPod4, World::kPod6});
  CHECK(pods[0].enrolment == NM_ENROL_ON);
  CHECK(world.capture().cgroups().size() == 1);
  CHECK(world.capture().agents().size() == 1);
  CHECK(world.capture().probes() == std::vector{at("10.66.0.2:8080")});
  CHECK(world.capture().steered_pods() == std::vector{world.cookie});
  CHECK(world.capture().read_counters().counters[NM_COUNT_CAPTURED] == 2);
  CHECK(problems(world.capture().audit()) == 0);
  both_ways(world);
}

TEST_CASE("sockets opened before a restart keep their names") {
  World world;
  world.open();
  world.enrol();
  Connected client = world.app->connect(at("192.0.2.7:80"));
  Fd accepted = accept_one(world.outbound.get());
  world.close();
  world.open();
  CHECK(local_name(accepted.get()) == at("192.0.2.7:80"));
  CHECK(peer_name(client.fd.get()) == at("192.0.2.7:80"));
}

TEST_CASE("a warden that is gone leaves enrolled pods closed and lets unknown pods pass after five seconds") {
  World world;
  world.open();
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  world.enrol();
  // The heartbeat is put six seconds back instead of waiting.
  REQUIRE(world.capture().beat());
  Fd config(::bpf_obj_get((world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION) + "/maps/config").c_str()));
  const uint32_t zero = 0;
  nm_config node{};
  REQUIRE(::bpf_map_lookup_elem(config.get(), &zero, &node) == 0);
  node.heartbeat_ns -= 6'000'000'000;
  REQUIRE(::bpf_map_update_elem(config.get(), &zero, &node, BPF_ANY) == 0);

  Actor unknown(world.kubepods + "/podagent", world.host.get());
  CHECK(unknown.connect(at("10.66.0.1:7000")).error == 0);
  CHECK(world.capture().read_counters().counters[NM_COUNT_UNKNOWN_PASSED] == 1);
  world.outbound.reset();
  CHECK(eventually([&] { return !world.capture().has_listener(world.cookie, NM_LISTENER_OUTBOUND); }));
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);

  node.strict = 1;
  REQUIRE(::bpf_map_update_elem(config.get(), &zero, &node, BPF_ANY) == 0);
  CHECK(unknown.connect(at("10.66.0.1:7000")).error == EPERM);
}

TEST_CASE("pins of another version are taken over: pods stay closed until they are set again") {
  World world;
  world.open();
  world.enrol();
  Connected client = world.app->connect(at("192.0.2.7:80"));
  Fd accepted = accept_one(world.outbound.get());
  Fd application = world.app->listen(at("[::]:8080"), AF_INET6);
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  world.close();
  const std::string version = world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION);
  REQUIRE(::rename(version.c_str(), (world.pin_dir + "/v1").c_str()) == 0);

  // Not World::open, whose heartbeat would hide that of the start.
  auto opened = kernel::Capture::open(world.options());
  if (!opened) FAIL(opened.error().message);
  CHECK((*opened)->adopted());
  CHECK(::access((world.pin_dir + "/v1").c_str(), F_OK) != 0);
  CHECK((*opened)->steered_pods() == std::vector{world.cookie});
  CHECK((*opened)->pods().empty());
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
  CHECK(nobody_waits(server.get()));
  CHECK(world.stranger->connect_in_vain(at("10.66.0.2:8080")) != 0);
  CHECK(nobody_waits(application.get()));
  CHECK(local_name(accepted.get()) == at("192.0.2.7:80"));
  CHECK(peer_name(client.fd.get()) == at("192.0.2.7:80"));
  opened->reset();

  world.open();
  world.enrol();
  both_ways(world);
  CHECK(problems(world.capture().audit()) == 0);
}

TEST_CASE("a node that was never captured waits for the word, and one that was does not") {
  World world;
  auto options = world.options();
  options.attach_late = true;
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  {
    auto first = kernel::Capture::open(options);
    if (!first) FAIL(first.error().message);
    CHECK_FALSE((*first)->attached());
    CHECK(world.app->connect(at("10.66.0.1:7000")).error == 0);
  }
  // Its maps are pinned, and nothing is in force.
  auto next = kernel::Capture::open(options);
  if (!next) FAIL(next.error().message);
  CHECK_FALSE((*next)->attached());
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == 0);
  REQUIRE((*next)->attach());
  CHECK((*next)->attached());
  CHECK(problems((*next)->audit()) == 0);
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
  REQUIRE((*next)->attach());
  next->reset();
  auto last = kernel::Capture::open(options);
  if (!last) FAIL(last.error().message);
  CHECK((*last)->attached());
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
}

TEST_CASE("steering of a namespace that died while no warden ran is swept at the next start") {
  World world;
  world.open();
  world.enrol();
  world.close();
  world.app.reset();
  world.proxy.reset();
  world.outbound.reset();
  world.inbound.reset();
  world.hbone.reset();
  world.pod.reset();
  CHECK(eventually([&] {
    world.open();
    const bool swept = world.capture().steered_pods().empty();
    world.close();
    return swept;
  }));
  world.open();
  CHECK_FALSE(world.capture().steered(world.cookie));
}

TEST_CASE("removing a pod takes its steering, listeners and entry") {
  World world;
  world.open();
  world.enrol();
  REQUIRE(world.capture().remove_pod(world.cookie));
  CHECK(world.capture().pods().empty());
  CHECK_FALSE(world.capture().steered(world.cookie));
  CHECK_FALSE(world.capture().has_listener(world.cookie, NM_LISTENER_HBONE));
  CHECK(world.stranger->connect(at("10.66.0.2:8080")).error == ECONNREFUSED);
  // The cgroup is still enrolled, and a pod that was ever enrolled never bypasses.
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
  CHECK(world.capture().remove_pod(world.cookie));
}

TEST_CASE("after detaching everything no pod is captured and no pin is left") {
  World world;
  world.open();
  world.enrol();
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  Fd application = world.app->listen(at("[::]:8080"), AF_INET6);
  SUBCASE("by the process that attached") {
    REQUIRE(world.capture().detach_all());
  }
  SUBCASE("by the pins alone") {
    world.close();
    REQUIRE(kernel::remove_pins(world.pin_dir));
  }
  world.close();
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == 0);
  CHECK(world.stranger->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(application.get()));
  CHECK(::access((world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION)).c_str(), F_OK) != 0);
}

TEST_CASE("the audit tells foreign programs that run beside ours from ours being gone") {
  World world;
  world.open();
  world.enrol();
  CHECK(world.capture().audit().empty());

  Fd program = foreign_program(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT);
  REQUIRE(program);
  {
    Fd directory(::open(world.directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    Fd link(::bpf_link_create(program.get(), directory.get(), BPF_CGROUP_INET4_CONNECT, nullptr));
    REQUIRE(link);
    auto findings = world.capture().audit();
    REQUIRE(findings.size() == 1);
    CHECK(findings[0].severity == kernel::Finding::Severity::info);
    CHECK(findings[0].text.find("foreign") != std::string::npos);
    both_ways(world);
  }
  const std::string links = world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION) + "/links/";
  Fd ours(::bpf_obj_get((links + "nm_connect4").c_str()));
  REQUIRE(::bpf_link_update(ours.get(), program.get(), nullptr) == 0);
  CHECK(problems(world.capture().audit()) == 1);
  REQUIRE(::bpf_link_detach(ours.get()) == 0);
  REQUIRE(::unlink((links + "nm_connect6").c_str()) == 0);
  auto findings = world.capture().audit();
  CHECK(problems(findings) == 2);
  for (const auto& finding : findings) INFO(finding.text);

  world.close();
  world.open();
  CHECK(problems(world.capture().audit()) == 0);
  both_ways(world);
}

TEST_CASE("a program that shuts others out above the pods' cgroup is an error that says how to find it") {
  World world;
  Fd program = foreign_program(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT);
  Fd directory(::open(world.directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  REQUIRE(::bpf_prog_attach(program.get(), directory.get(), BPF_CGROUP_INET4_CONNECT, 0) == 0);
  auto opened = kernel::Capture::open(world.options());
  REQUIRE_FALSE(opened);
  CHECK(opened.error().message.find("bpftool cgroup tree") != std::string::npos);
  CHECK(::access((world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION)).c_str(), F_OK) != 0);
  REQUIRE(::bpf_prog_detach2(program.get(), directory.get(), BPF_CGROUP_INET4_CONNECT) == 0);
}

TEST_CASE("kubelet's hook goes where the options say at the next start, and away when they name none") {
  World world;
  world.open();
  world.enrol();
  auto options = world.options();
  options.kubelet_cgroup.clear();
  Fd application = world.app->listen(at("[::]:8080"), AF_INET6);
  REQUIRE(world.capture().set_probe(at("10.66.0.2:8080")));
  world.close();
  world.open(options);
  CHECK(world.kubelet_process->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(world.inbound.get()));
  world.close();
  world.open();
  CHECK(world.kubelet_process->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(application.get()));
}

TEST_CASE("a pod's entry is refused with too many, no or impossible addresses") {
  World world;
  world.open();
  CHECK_FALSE(world.capture().set_pod(world.cookie, {}, NM_ENROL_ON));
  std::vector<Addr> many(NM_POD_ADDRESSES + 1, World::kPod4);
  CHECK_FALSE(world.capture().set_pod(world.cookie, many, NM_ENROL_ON));
  const Addr loopback[] = {Addr::v4(127, 0, 0, 1)};
  CHECK_FALSE(world.capture().set_pod(world.cookie, loopback, NM_ENROL_ON));
  CHECK_FALSE(world.capture().set_pod(0, many, NM_ENROL_ON));
}

}  // namespace
}  // namespace nodemesh::test
