"""Two nodes with our agents and the peers beside them: the same machine, links and programs for all.

            node1                              node2
    shop    client, further   captured         server, second   captured: nginx and iperf3
            near   captured: nginx and iperf3
    peers   from     HAProxy, Envoy on 127.0.0.1   to           HAProxy, Envoy; nginx and iperf3 behind them

All pods of a node have the same links, so packets of all chains take the same way. The peers' processes and their
pods are outside of our cgroups and of the mesh, so nothing of ours runs for them. Everything that proxies is on
CPU 1; load generator and servers are on CPU 0.
"""

import contextlib
import json
import os
import re
import subprocess

import cgroups
import envoy
import envoy_config
import manifests
import processes
from measure import LOAD_CPU, PROXY_CPU, rss
from waiting import wait_for

HERE = os.path.dirname(os.path.abspath(__file__))
WEB, IPERF = 8080, 5201
BODY = "x" * 1024
AGENTS = ("nodemesh-proxy", "nodemesh-warden", "meshctl")
SYSCTLS = {"net.ipv4.tcp_tw_reuse": 1, "net.ipv4.ip_local_port_range": "10000 60999", "net.core.somaxconn": 8192,
           "net.ipv4.tcp_max_syn_backlog": 8192}


def on(cpu):
    """Words in front of a command that pin it. The priority, its own and that of its session (autogroup), keeps other
    users of the machine out of the way."""
    return ["sh", "-c", f'echo -15 > /proc/self/autogroup; exec nice -n -15 taskset -c {cpu} "$@"', "sh"]


def lift(pids):
    """The same priority for the sessions that a supervisor made for its children."""
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as group:
            group.write("-15")


class Chain:
    """One way from a client to a server: where the load starts, what it connects to, whose CPU it costs."""

    def __init__(self, name, pod, host, web, iperf, pids):
        self.name, self.pod, self.host, self.web, self.iperf = name, pod, host, web, iperf
        self.pids = pids


class Stage:
    """Nodes, pods, servers, agents and peers. The owner of the lab closes everything."""

    def __init__(self, lab, build_dir, note):
        self.lab, self.build_dir, self.note = lab, build_dir, note
        self.dir = f"{lab.dir}/bench"
        os.makedirs(self.dir)
        self.peers, self.chains = {}, {}
        self.many = []  # pairs of the crowd
        self.seen = None  # what a capture of our chain showed
        self.fresh = {}  # memory of each proxy process when it was ready and had served nobody, by pid

    def make(self):
        self.note("nodes, pods, servers")
        one, two = self.lab.node("node1"), self.lab.node("node2")
        self.node1, self.node2 = one, two
        self.client = one.pod("client", "shop", "curl", {"app": "client"})
        self.further = one.pod("further", "shop", "curl", {"app": "client"})
        self.near = one.pod("near", "shop", "web", {"app": "web"})
        self.server = two.pod("server", "shop", "web", {"app": "web"})
        self.second = two.pod("second", "shop", "web", {"app": "web"})
        self.origin, self.target = one.pod("from", "peers"), two.pod("to", "peers")
        for pod in one.pods + two.pods:
            self._tune(pod)
        self.lab.apply(
            manifests.namespace("peers"),
            manifests.peer_authentication("strict", "shop", "STRICT"),
            manifests.authorization_policy("curl-only", "shop", "ALLOW", selector={"app": "web"}, rules=[
                manifests.from_principal("cluster.local/ns/shop/sa/curl", ports=[WEB, IPERF])]))
        for pod in (self.near, self.server, self.second, self.target):
            self._serve(pod)
        self._certificates()
        self.compile()
        agents = self.agent_pids
        self._chain("ours", self.client, self.server.ipv4, WEB, IPERF, agents)
        self._chain("ours same node", self.client, self.near.ipv4, WEB, IPERF, agents)
        self._chain("ours second pair", self.further, self.second.ipv4, WEB, IPERF, agents)
        for name, web in (("HAProxy mTLS", 8084), ("HAProxy mTLS full", 8089), ("HAProxy plain", 8090)):
            self._chain(name, self.origin, "127.0.0.1", web, 5302, lambda: self.peer_pids("haproxy"))
        self._chain("Envoy HBONE", self.origin, "127.0.0.1", 9084, 9302, lambda: self.peer_pids("envoy"))
        self._chain("Envoy HBONE cold", self.origin, "127.0.0.1", 9089, 9302, lambda: self.peer_pids("envoy"))

    def _chain(self, name, *words):
        self.chains[name] = Chain(name, *words)

    def _tune(self, pod):
        words = [f"{key}={value}" for key, value in SYSCTLS.items()]
        pod.run(["sysctl", "-qw", *words])

    def _serve(self, pod):
        folder = f"{pod.dir}/web"
        os.makedirs(folder)
        self._write(f"{folder}/nginx.conf", f"{HERE}/nginx.conf", DIR=folder, BODY=BODY)
        nginx = pod.spawn([*on(LOAD_CPU), "nginx", "-e", f"{folder}/nginx.error", "-c", f"{folder}/nginx.conf"])
        iperf = pod.spawn([*on(LOAD_CPU), "iperf3", "-s", "-p", IPERF])
        pod.wait_listening(WEB, process=nginx)
        pod.wait_listening(IPERF, process=iperf)

    @staticmethod
    def _write(path, template, **values):
        with open(template, encoding="ascii") as source, open(path, "w", encoding="ascii") as out:
            out.write(re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], source.read()))

    def _certificates(self):
        """A P-256 authority and a leaf for each side, as our own are."""
        def openssl(*words):
            subprocess.run(["openssl", *words], check=True, cwd=self.dir, capture_output=True)

        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        openssl("req", "-x509", *key, "-keyout", "ca.key", "-sha256", "-days", "2", "-subj", "/CN=bench",
                "-out", "ca.pem")
        for name in ("client", "server"):
            openssl("req", "-new", *key, "-keyout", f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
            with open(f"{self.dir}/{name}.ext", "w", encoding="ascii") as out:
                out.write(f"subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth,clientAuth\n")
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                    "-days", "2", "-sha256", "-extfile", f"{name}.ext", "-out", f"{name}.crt")
            with open(f"{self.dir}/{name}.pem", "w", encoding="ascii") as out:
                for part in ("crt", "key"):
                    with open(f"{self.dir}/{name}.{part}", encoding="ascii") as source:
                        out.write(source.read())

    def compile(self):
        """The load generator, once per version of its source."""
        os.makedirs(self.build_dir, exist_ok=True)
        self.load_program = f"{self.build_dir}/load"
        source = f"{HERE}/load.c"
        if not os.path.exists(self.load_program) or os.path.getmtime(self.load_program) < os.path.getmtime(source):
            flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
            subprocess.run(["clang-19", *flags, "-o", self.load_program, source], check=True)

    # Our agents -----------------------------------------------------------------------------------------------

    def start_agents(self, client_options=()):
        """Both nodes with one worker each, on the proxies' CPU; then waits until the client is served everywhere.

        client_options: more options of `meshctl node run` for the client's node.
        """
        self.lab.write_manifests()
        self.lab.start_controller()
        for node in self.lab.nodes:
            extra = client_options if node is self.node1 else ()
            node.start_agent(ready=False, workers=1, wrap=on(PROXY_CPU), extra=extra)
        for node in self.lab.nodes:
            node.wait_ready()
        lift(self.agent_pids())
        self._remember(self.proxy_pids())
        if not self.seen:
            self._look()
        for pod in (self.server, self.second, self.near):
            self.wait_served(self.client, pod.ipv4, WEB)

    def _look(self):
        """What our chain really is, from a capture of the link: HBONE and nothing else."""
        with self.lab.capture(self.node1) as capture:
            self.wait_served(self.client, self.server.ipv4, WEB)
            self.client.run(["curl", "-sS", *[f"http://{self.server.ipv4}:{WEB}/"] * 20])
        found = capture.report()
        found.require_hbone_only()
        if found.contains(BODY[:64].encode()):
            raise AssertionError("the body of an answer was seen in plaintext between the nodes")
        self.seen = (f"in a capture of the link, from the first connection on, all TCP was to or from port 15008 "
                     f"({', '.join(sorted(found.versions | found.ciphers))}), and every record after the handshake "
                     "application data")

    def restart_agents(self, client_options=()):
        for node in self.lab.nodes:
            node.stop_agent()
        self.start_agents(client_options)

    def wait_no_tunnels(self):
        wait_for(lambda: not self.node1.metrics().sum("nodemesh_tunnels_open"), 20, "the client's node has no tunnel left")

    def _remember(self, pids):
        self.fresh.update({pid: rss(pid) for pid in pids})

    def wait_served(self, pod, host, port):
        def served():
            done = pod.run(["curl", "-sS", "-m", "2", f"http://{host}:{port}/"], check=False)
            return done.stdout == BODY

        wait_for(served, 20, lambda: f"{pod.name} is served by {host}:{port}\n{self.lab.logs(1500)}", every=0.2)

    def agent_pids(self):
        """Every process of both nodes' agents: supervisors, wardens, openers, proxies."""
        found = []
        for node in self.lab.nodes:
            for pid in cgroups.members(node.cgroup):
                with contextlib.suppress(OSError):
                    if os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)") in AGENTS:
                        found.append(pid)
        return found

    def proxy_pids(self):
        """The worker process of each node, client's node first."""
        return [node.agent_pids("nodemesh-proxy", workers=True)[0] for node in self.lab.nodes]

    # Peers ----------------------------------------------------------------------------------------------------

    def start_peers(self):
        self.note("HAProxy and Envoy pairs")
        self.peers = {"haproxy": [self._haproxy("server", self.target), self._haproxy("client", self.origin)],
                      "envoy": [self._envoy("server", self.target), self._envoy("client", self.origin)]}
        for name in self.peers:
            self._remember(self.peer_pids(name))
        for port in (8084, 8089, 8090, 9084, 9089):
            self.wait_served(self.origin, "127.0.0.1", port)

    def stop_peers(self):
        for pair in self.peers.values():
            for process in pair:
                process.stop()
        self.peers = {}

    def peer_pids(self, name):
        """Client's side first."""
        return [process.pid for process in reversed(self.peers[name])]

    def _outside(self, pod):
        return processes.Place(pod.netns, cgroups.create(f"{pod.node.cgroup}/peers"))

    def _spawn_peer(self, pod, command, name):
        return processes.spawn(self._outside(pod), [*on(PROXY_CPU), *command], f"{self.dir}/{name}.log", cwd=self.dir)

    def _haproxy(self, side, pod):
        path = f"{self.dir}/haproxy-{side}.cfg"
        self._write(path, f"{HERE}/haproxy-{side}.cfg", DIR=self.dir, SERVER=self.target.ipv4)
        process = self._spawn_peer(pod, ["haproxy", "-db", "-f", path], f"haproxy-{side}")
        pod.wait_listening(*((8445, 8446, 8448) if side == "server" else (8084, 8089, 8090, 5302)), process=process)
        return process

    def _envoy(self, side, pod):
        path = f"{self.dir}/envoy-{side}.json"
        make = envoy_config.server if side == "server" else envoy_config.client
        with open(path, "w", encoding="ascii") as out:
            json.dump(make(self.dir, self.target.ipv4), out)
        process = self._spawn_peer(pod, [envoy.binary(), "-c", path, "--concurrency", "1", "--log-level", "error",
                                         "--disable-hot-restart"], f"envoy-{side}")
        pod.wait_listening(*((envoy_config.TUNNEL_PORT,) if side == "server" else (9084, 9089, 9302)), process=process)
        return process

    @staticmethod
    def versions():
        def first(*command):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return re.search(r"\d+\.\d+\.\d+", done.stdout)[0]

        return f"{first('haproxy', '-v')}, {first(envoy.binary(), '--version')}"

    # Load -----------------------------------------------------------------------------------------------------

    def load(self, chain, mode, connections, *words):
        """A load generator that is set up and waits for go()."""
        return Load(chain.name, chain.pod, [*on(LOAD_CPU), self.load_program, mode, chain.host, chain.web, connections,
                                            *words])

    def crowd(self, size=12):
        """More clients and servers in the mesh, so that there are many pairs of pods without a tunnel yet."""
        self.note(f"{size} more clients and {size} more servers")
        self.many = [(self.node1.pod(f"client-{i}", "shop", "curl", {"app": "client"}),
                      self.node2.pod(f"server-{i}", "shop", "web", {"app": "web"})) for i in range(size)]
        for client, server in self.many:
            self._tune(client)
            self._serve(server)

    def sweeps(self):
        """For each client of the crowd a load generator; its go() makes a connection to each address of each server."""
        hosts = ",".join(address for _, server in self.many for address in server.addresses)
        for client, server in self.many:  # enrolled, and with sockets in stock as after their first connection
            self.wait_served(client, self.near.ipv4, WEB)
            self.wait_served(self.client, server.ipv4, WEB)
        return [Load(client.name, client, [*on(LOAD_CPU), self.load_program, "sweep", hosts, WEB, 1])
                for client, _ in self.many]

    def iperf(self, chain, streams, seconds):
        """Bytes that arrived."""
        done = chain.pod.run([*on(LOAD_CPU), "iperf3", "-J", "-c", chain.host, "-p", chain.iperf, "-P", streams,
                              "-t", seconds, "-l", "128K"], timeout=seconds + 30)
        return json.loads(done.stdout)["end"]["sum_received"]["bytes"]


class Load:
    """One run of load.c in a pod; see there."""

    def __init__(self, name, pod, command):
        where = pod.place()
        with where.entering() as enter:
            pipe = subprocess.PIPE
            self._popen = subprocess.Popen([str(word) for word in command], stdin=pipe, stdout=pipe, stderr=pipe,
                                           text=True, preexec_fn=enter, start_new_session=True)
        if self._popen.stdout.readline() != "ready\n":
            said = self._popen.communicate()[1]
            raise RuntimeError(f"{name}: {' '.join(map(str, command))}: {said}")
        self._name = name

    @property
    def pid(self):
        return self._popen.pid

    def go(self):
        """Runs to the end of the measured time; returns what was counted."""
        self._popen.stdin.write("go\n")
        self._popen.stdin.flush()
        found = json.loads(self._popen.stdout.readline())
        if found["errors"]:
            raise RuntimeError(f"{self._name}: {found}")
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._popen.stdin.close()
        self._popen.wait(20)
        self._popen.stdout.close()
        self._popen.stderr.close()

