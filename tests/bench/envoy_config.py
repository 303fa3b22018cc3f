"""Configurations of an Envoy pair that carries TCP through HBONE-like CONNECT tunnels over mutual TLS, as dicts."""

_TYPE = "type.googleapis.com/envoy."
_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HTTP2 = {"max_concurrent_streams": 200, "initial_stream_window_size": 4 << 20,
          "initial_connection_window_size": 16 << 20}
_UNLIMITED = {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}]}
_TLS = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3", "ecdh_curves": ["X25519"]}
TUNNEL_PORT = 9008


def _address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def _secret(folder, name, peer):
    return {"tls_params": _TLS, "alpn_protocols": ["h2"],
            "tls_certificates": [{"certificate_chain": {"filename": f"{folder}/{name}.crt"},
                                  "private_key": {"filename": f"{folder}/{name}.key"}}],
            "validation_context": {"trusted_ca": {"filename": f"{folder}/ca.pem"}, "match_typed_subject_alt_names": [
                {"san_type": "DNS", "matcher": {"exact": peer}}]}}


def _tls(kind, secret, **more):
    return {"name": "tls", "typed_config": {"@type": f"{_TYPE}extensions.transport_sockets.tls.v3.{kind}TlsContext",
                                            "common_tls_context": secret, **more}}


def _cluster(name, host, port, **more):
    return {"name": name, "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": _UNLIMITED,
            "load_assignment": {"cluster_name": name, "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}]}, **more}


def _tunnels(name, host, folder, cold):
    """The other node; cold: a new connection and a full handshake for each stream."""
    session = {"max_session_keys": 0} if cold else {}
    once = {"common_http_protocol_options": {"max_requests_per_connection": 1}} if cold else {}
    return _cluster(name, host, TUNNEL_PORT,
                    transport_socket=_tls("Upstream", _secret(folder, "client", "server"), sni="server", **session),
                    typed_extension_protocol_options={_HTTP: {
                        "@type": f"type.googleapis.com/{_HTTP}",
                        "explicit_http_config": {"http2_protocol_options": _HTTP2}, **once}})


def _listener(name, host, port, network_filter, **more):
    return {"name": name, "address": _address(host, port), "tcp_backlog_size": 4096,
            "filter_chains": [{"filters": [network_filter], **more}]}


def _tcp(cluster, authority):
    return {"name": "tcp", "typed_config": {
        "@type": f"{_TYPE}extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": cluster,
        "idle_timeout": "0s", "tunneling_config": {"hostname": authority}}}


def client(folder, server):
    """server: address of the other Envoy. 9084 is the application, 9089 the same cold, 9302 iperf3."""
    web, iperf = f"{server}:8080", f"{server}:5201"
    return {"static_resources": {
        "listeners": [_listener("web", "127.0.0.1", 9084, _tcp("warm", web)),
                      _listener("cold", "127.0.0.1", 9089, _tcp("cold", web)),
                      _listener("bulk", "127.0.0.1", 9302, _tcp("warm", iperf))],
        "clusters": [_tunnels("warm", server, folder, False), _tunnels("cold", server, folder, True)]}}


def server(folder, address):
    def host(name, authority):
        route = {"cluster": name, "timeout": "0s",
                 "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}
        return {"name": name, "domains": [authority], "routes": [{"match": {"connect_matcher": {}}, "route": route}]}

    router = {"name": "router", "typed_config": {
        "@type": f"{_TYPE}extensions.filters.http.router.v3.Router", "dynamic_stats": False,
        "suppress_envoy_headers": True}}
    manager = {"name": "http", "typed_config": {
        "@type": f"{_TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http", "codec_type": "HTTP2", "generate_request_id": False, "stream_idle_timeout": "0s",
        "request_timeout": "0s", "http2_protocol_options": {**_HTTP2, "allow_connect": True}, "http_filters": [router],
        "route_config": {"name": "r", "virtual_hosts": [host("web", f"{address}:8080"),
                                                        host("iperf", f"{address}:5201")]}}}
    secure = _tls("Downstream", _secret(folder, "server", "client"), require_client_certificate=True)
    return {"static_resources": {
        "listeners": [_listener("tunnels", address, TUNNEL_PORT, manager, transport_socket=secure)],
        "clusters": [_cluster("web", "127.0.0.1", 8080), _cluster("iperf", "127.0.0.1", 5201)]}}
