#!/usr/bin/python3
"""A small TCP client and server to run inside a pod, for what ordinary programs cannot do on demand: half closes,
resets, thousands of connections, a tight loop of attempts. Prints one JSON object per event; needs only the
standard library and starts fast.

    podtool.py serve PORT MODE      echo | sink | source:BYTES | banner:TEXT | reset | hold | name:TEXT
    podtool.py exchange HOST PORT   [--send N] [--half-close] [--reset] [--timeout S] [--first]
    podtool.py many HOST PORT N     [--hold]
    podtool.py loop HOST PORT       until SIGTERM: connect, send, expect one byte; counts what happened
    podtool.py session HOST PORT    until it breaks or SIGTERM: ping and pong over one connection
    podtool.py thief PORT HOST…     binds whatever others listen on here, but PORT; tells who connected to it
"""

import contextlib
import errno
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time
from zlib import crc32


def say(**event):
    print(json.dumps(event), flush=True)


def name_of(error):
    return "timeout" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno, str(error))


def abort(sock):
    """Closes with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def pattern(count):
    block = bytes(range(256)) * 256
    return (block * (count // len(block) + 1))[:count]


class Connection:
    """One accepted connection of the server; mode decides what it sends and when it ends."""

    def __init__(self, server, sock, peer):
        self.server, self.sock, self.peer = server, sock, list(peer[:2])
        self.received = self.sent = 0
        self.checksum = 0
        self.finished = False  # the client has sent FIN
        self.shut = False
        mode, _, value = server.mode.partition(":")
        self.mode = mode
        self.out = bytearray()
        if mode == "source":
            self.out += pattern(int(value))
        elif mode in ("banner", "name"):
            self.out += value.encode() + b"\r\n"
        say(event="accept", peer=self.peer, local=list(sock.getsockname()[:2]))

    def events(self):
        wanted = 0 if self.finished or self.mode == "hold" else selectors.EVENT_READ
        return wanted | (selectors.EVENT_WRITE if self.out else 0)

    def read(self):
        data = self.sock.recv(65536)
        self.received += len(data)
        self.checksum = crc32(data, self.checksum)
        if not data:
            self.finished = True
            if self.mode == "sink":
                self.out += json.dumps({"received": self.received, "crc": self.checksum}).encode()
        elif self.mode in ("echo", "banner"):
            self.out += data
        elif self.mode == "reset":
            say(event="end", peer=self.peer, received=self.received, sent=self.sent, how="we reset")
            self.server.forget(self, abort)

    def write(self):
        count = self.sock.send(self.out[:1 << 18])
        self.sent += count
        del self.out[:count]

    def step(self, mask):
        try:
            if mask & selectors.EVENT_READ:
                self.read()
            if mask & selectors.EVENT_WRITE and self.sock.fileno() >= 0:
                self.write()
        except BlockingIOError:
            return
        except OSError as error:
            say(event="end", peer=self.peer, received=self.received, sent=self.sent, how=name_of(error))
            self.server.forget(self, socket.socket.close)
            return
        if self.sock.fileno() < 0 or self.out:
            return
        if self.mode in ("source", "name") and not self.shut:
            self.sock.shutdown(socket.SHUT_WR)
            self.shut = True
        if self.finished:
            say(event="end", peer=self.peer, received=self.received, sent=self.sent, crc=self.checksum, how="fin")
            self.server.forget(self, socket.socket.close)


class Server:
    def __init__(self, port, mode):
        self.mode = mode
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        say(event="listening", port=port)

    def forget(self, connection, close):
        if connection.events_now:
            self.selector.unregister(connection.sock)
        close(connection.sock)

    def update(self, connection):
        if connection.sock.fileno() < 0:
            return
        wanted = connection.events()
        if wanted == connection.events_now:
            return
        if not connection.events_now:
            self.selector.register(connection.sock, wanted, connection)
        elif not wanted:
            self.selector.unregister(connection.sock)
        else:
            self.selector.modify(connection.sock, wanted, connection)
        connection.events_now = wanted

    def run(self):
        while True:
            for key, mask in self.selector.select():
                if key.data is None:
                    sock, peer = self.listener.accept()
                    sock.setblocking(False)
                    connection = Connection(self, sock, peer)
                    connection.events_now = 0
                    self.update(connection)
                else:
                    key.data.step(mask)
                    self.update(key.data)


def dial(host, port, timeout):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def exchange(host, port, send=0, half_close=False, reset=False, timeout=10.0, first=False):
    """One connection from start to end; returns what happened as a dict."""
    result = {"connected": False, "sent": 0, "received": 0, "how": None, "head": ""}
    checksum = 0
    try:
        sock = dial(host, port, timeout)
        result.update(connected=True, local=list(sock.getsockname()[:2]))
        with contextlib.suppress(OSError):  # already reset: recv will say so
            result["peer"] = list(sock.getpeername()[:2])
        left = memoryview(pattern(send))
        writing, selector = True, selectors.DefaultSelector()
        sock.setblocking(False)
        deadline = time.monotonic() + timeout
        if first:  # a server-first protocol: say nothing before the greeting
            selector.register(sock, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise TimeoutError
            selector.unregister(sock)
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while True:
            if writing and not left:
                writing = False
                if half_close:
                    with contextlib.suppress(OSError):  # already reset: recv will say so
                        sock.shutdown(socket.SHUT_WR)
                if reset:
                    abort(sock)
                    result["how"] = "we reset"
                    break
                if result["how"] == "fin":
                    break
                selector.modify(sock, selectors.EVENT_READ)
            if send and not writing and not half_close and result["received"] >= send:
                result["how"] = "complete"
                sock.close()
                break
            ready = selector.select(max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            mask = ready[0][1]
            if mask & selectors.EVENT_WRITE and writing and left:
                count = sock.send(left[:1 << 18])
                left = left[count:]
                result["sent"] += count
            if mask & selectors.EVENT_READ:
                data = sock.recv(1 << 18)
                if not data:
                    result["how"] = "fin"
                    if not left:
                        break
                    selector.modify(sock, selectors.EVENT_WRITE)  # the server finished first; it still reads
                    continue
                if len(result["head"]) < 60:
                    result["head"] += data[:60].decode("latin-1")
                checksum = crc32(data, checksum)
                result["received"] += len(data)
    except OSError as error:
        result["how"] = name_of(error)
    result["crc"] = checksum
    return result


def many(host, port, count, hold):
    """count connections at once, one byte there and back on each; then all are closed."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    selector, outcomes, open_now = selectors.DefaultSelector(), {}, 0

    def count_as(outcome):
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    kept = []
    for _ in range(count):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        code = sock.connect_ex((host, port))
        if code in (0, errno.EINPROGRESS):
            selector.register(sock, selectors.EVENT_WRITE)
            open_now += 1
        else:
            count_as(errno.errorcode[code])
    deadline = time.monotonic() + 60
    while open_now and time.monotonic() < deadline:
        for key, mask in selector.select(1):
            sock = key.fileobj
            outcome = None
            try:
                if mask & selectors.EVENT_WRITE:
                    sock.send(b"x")
                    selector.modify(sock, selectors.EVENT_READ)
                elif mask & selectors.EVENT_READ:
                    outcome = "ok" if sock.recv(1) else "fin"
            except OSError as error:
                outcome = name_of(error)
            if outcome:
                count_as(outcome)
                selector.unregister(sock)
                open_now -= 1
                kept.append(sock) if hold and outcome == "ok" else sock.close()
    outcomes["unanswered"] = open_now
    say(event="many", outcomes=outcomes)
    if hold:
        signal.pause()


def loop(host, port):
    """Attempts without pause; success is a byte that came back from the other side."""
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    outcomes, longest, gap_from = {}, 0.0, None
    say(event="started")
    while not stopping:
        try:
            with dial(host, port, 10) as sock:
                sock.sendall(b"x")
                outcome = "ok" if sock.recv(1) else "fin"
        except OSError as error:
            outcome = name_of(error)
        now = time.monotonic()
        if outcome == "ok":
            if gap_from is not None:
                longest = max(longest, now - gap_from)
            gap_from = None
        elif gap_from is None:
            gap_from = now
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if len(outcomes) == 1 and outcomes[outcome] == 1:
            say(event="first", outcome=outcome)
    say(event="loop", outcomes=outcomes, longest_gap=longest)


def session(host, port):
    """One byte there and back, again and again, until the connection breaks; says how it broke."""
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    count, how = 0, "stopped"
    try:
        sock = dial(host, port, 10)
        while not stopping:
            sock.sendall(b"x")
            if not sock.recv(1):
                how = "fin"
                break
            count += 1
            if count == 1:
                say(event="open", local=list(sock.getsockname()[:2]))
            time.sleep(0.01)
    except OSError as error:
        how = name_of(error)
    say(event="session", exchanges=count, how=how)


def listening_ports():
    """(family, port) of every socket that listens in this network namespace."""
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with open(f"/proc/net/{table}", encoding="ascii") as lines:
            next(lines)
            rows = [line.split() for line in lines]
        found += [(family, int(row[1].rpartition(":")[2], 16)) for row in rows if row[3] == "0A"]
    return sorted(set(found))


def take_port(host, port, share, listen):
    """A socket on somebody else's port, or None; `share` names the option that is to make it possible."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    for option in share:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        sock.bind((host, port))
        if listen:
            sock.listen(64)
    except OSError:
        sock.close()
        return None
    return sock


def thief(spared, hosts):
    """Every way that bind() offers to get onto the listeners' ports, on all addresses and on each of `hosts`."""
    selector, bound = selectors.DefaultSelector(), []
    shares = {"reuseport": (socket.SO_REUSEPORT, socket.SO_REUSEADDR), "reuseaddr": (socket.SO_REUSEADDR,), "none": ()}
    victims = [(family, port) for family, port in listening_ports() if port != spared]
    for family, port in victims:
        everywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"
        for host in (everywhere, *hosts):
            for name, share in shares.items():
                for listen in (True, False):
                    if sock := take_port(host, port, share, listen):
                        bound.append([host, port, name, listen])
                        selector.register(sock, selectors.EVENT_READ)
    say(event="thief", tried=len(victims), bound=bound)
    while True:
        for key, _ in selector.select():
            with contextlib.suppress(OSError):  # one that only bound
                sock, peer = key.fileobj.accept()
                say(event="stolen", peer=list(peer[:2]), local=list(sock.getsockname()[:2]))
                abort(sock)


def main(words):
    command, options = words[0], {}
    plain = []
    rest = iter(words[1:])
    for word in rest:
        if word in ("--half-close", "--reset", "--hold", "--first"):
            options[word[2:].replace("-", "_")] = True
        elif word in ("--send", "--timeout"):
            options[word[2:]] = (int if word == "--send" else float)(next(rest))
        else:
            plain.append(word)
    if command == "serve":
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        Server(int(plain[0]), plain[1]).run()
    elif command == "exchange":
        say(**exchange(plain[0], int(plain[1]), **options))
    elif command == "many":
        many(plain[0], int(plain[1]), int(plain[2]), options.get("hold", False))
    elif command == "loop":
        loop(plain[0], int(plain[1]))
    elif command == "session":
        session(plain[0], int(plain[1]))
    elif command == "thief":
        thief(int(plain[0]), plain[1:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    os.umask(0o022)
    main(sys.argv[1:])
