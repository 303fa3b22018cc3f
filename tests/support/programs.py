"""Real servers in pods, each started with the plainest configuration that also logs who connected.

A server's own log is the witness for source addresses and byte counts.
"""

import json
import os
import re
import shutil
import subprocess

from waiting import wait_for

PG_BIN = "/usr/lib/postgresql/15/bin"
_NGINX = """
daemon off; master_process on; worker_processes 1; user root; pid {dir}/nginx.pid; error_log {dir}/nginx.error warn;
events {{ worker_connections 8192; }}
http {{
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  log_format line escape=json '{{"client":"$remote_addr","port":$remote_port,"server":"$server_addr","sent":$bytes_sent,"received":$request_length,"status":$status,"request":"$request"}}';
  access_log {dir}/nginx.access line; client_max_body_size 0; keepalive_timeout 600s;
  server {{
    listen {port}; listen [::]:{port}; root {dir}/www;
    location = /whoami {{ default_type text/plain; return 200 "$remote_addr\\n"; }}
  }}
}}
"""


def nginx(pod, port=80, files=None):
    """Serves files (name -> bytes) from the pod; GET /whoami answers the address the server saw."""
    folder = f"{pod.dir}/nginx-{port}"
    os.makedirs(f"{folder}/www")
    for name, content in {"index.html": b"hello from " + pod.name.encode() + b"\n", **(files or {})}.items():
        with open(f"{folder}/www/{name}", "wb") as out:
            out.write(content)
    with open(f"{folder}/nginx.conf", "w", encoding="utf-8") as out:
        out.write(_NGINX.format(dir=folder, port=port))
    process = pod.spawn(["nginx", "-e", f"{folder}/nginx.error", "-c", f"{folder}/nginx.conf"])
    pod.wait_listening(port, process=process)
    process.access_log = f"{folder}/nginx.access"
    return process


def nginx_log(process, count):
    """The access log as dicts, once it has at least count lines."""
    def lines():
        with open(process.access_log, encoding="utf-8") as log:
            return [json.loads(line) for line in log if line.endswith("\n")]

    wait_for(lambda: len(lines()) >= count, 10, f"{count} lines in nginx' log")
    return lines()


def postgres(pod, port=5432):
    """A fresh cluster, trusting every address; its log names the client of every connection."""
    data = f"{pod.dir}/postgres"
    template = f"{pod.node.lab.dir}/postgres-template"
    if not os.path.exists(template):
        os.makedirs(template)
        shutil.chown(template, "postgres", "postgres")
        os.chmod(template, 0o700)
        pod.run([f"{PG_BIN}/initdb", "-D", template, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"],
                user="postgres", timeout=60)
        with open(f"{template}/pg_hba.conf", "a", encoding="ascii") as out:
            out.write("host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")
    subprocess.run(["cp", "-a", template, data], check=True)
    settings = {"listen_addresses": "*", "port": port, "unix_socket_directories": data, "fsync": "off",
                "log_connections": "on", "log_line_prefix": "%h:%r ", "shared_buffers": "16MB",
                "dynamic_shared_memory_type": "mmap"}  # in its own folder, so that nothing stays of a killed one
    words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    process = pod.spawn([f"{PG_BIN}/postgres", "-D", data, *words], user="postgres")
    process.wait_output("ready to accept connections", 30)
    return process


def postgres_clients(process, count):
    """Addresses of the clients of all connections so far, once there are at least count."""
    def found():
        return re.findall(r"connection received: host=(\S+)", process.output())

    wait_for(lambda: len(found()) >= count, 10, f"{count} connections in PostgreSQL's log")
    return found()


def redis(pod, port=6379):
    process = pod.spawn(["redis-server", "--port", port, "--bind", "0.0.0.0", "::", "--protected-mode", "no",
                         "--save", "", "--loglevel", "verbose", "--dir", pod.dir])
    process.wait_output("Ready to accept connections")
    return process


def redis_clients(process, count):
    def found():
        return re.findall(r"Accepted (\S+):\d+", process.output())

    wait_for(lambda: len(found()) >= count, 10, f"{count} connections in redis' log")
    return found()


def smtp(pod, port=25):
    """A mail server, that is a protocol in which the server speaks first; its log names its peers."""
    process = None
    for host in [host for host, used in (("0.0.0.0", pod.ipv4), ("::", pod.ipv6)) if used]:  # one process per family
        process = pod.spawn(["/usr/bin/python3", "-u", "-m", "aiosmtpd", "-n", "-d", "-l", f"{host}:{port}"],
                            log=f"{pod.dir}/smtp-{port}.log")
    wait_for(lambda: sum(listening == port for _, listening in pod.sockets()) == len(pod.addresses), 20,
             lambda: f"the mail server listens:\n{process.output()}")
    return process


def smtp_clients(process, count):
    def found():
        return re.findall(r"Peer: \('([^']+)'", process.output())

    wait_for(lambda: len(found()) >= count, 10, f"{count} connections in the mail server's log")
    return found()


def send_mail(pod, host, body="hello\n", port=25):
    """Sends one mail with curl; returns the completed process."""
    target = f"[{host}]" if ":" in host else host
    return pod.run(["curl", "-sS", f"smtp://{target}:{port}/lab", "--mail-from", "a@example.com", "--mail-rcpt",
                    "b@example.com", "-T", "-"], input=f"From: a@example.com\nTo: b@example.com\n\n{body}")


def iperf_server(pod, port=5201):
    process = pod.spawn(["iperf3", "-s", "-p", port])
    pod.wait_listening(port, process=process)
    return process


def iperf(pod, host, size="32M", port=5201, streams=1, reverse=False):
    """Moves size bytes; returns iperf3's JSON result."""
    done = pod.run(["iperf3", "-c", host, "-p", port, "-n", size, "-P", streams, "-J", *(["-R"] if reverse else [])],
                   timeout=60)
    return json.loads(done.stdout)


def podtool(pod, port, mode="echo"):
    """tests/support/podtool.py as a server; events(process) reads what it saw."""
    process = pod.spawn_tool("serve", port, mode)
    process.wait_output('"listening"')
    return process


def events(process, kind=None):
    """The JSON events that a podtool process has printed so far."""
    found = [json.loads(line) for line in process.output().splitlines() if line.startswith("{") and line.endswith("}")]
    return [event for event in found if kind in (None, event.get("event"))]
