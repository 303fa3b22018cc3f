"""A stand-in for the Kubernetes API server, over TLS on loopback: the few endpoints that controller and warden ask, with
resourceVersions, conflicts and a watch of Pods. Objects are dicts by path; tests change them through put and delete."""

import base64
import contextlib
import json
import queue
import ssl
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import netns

PODS = "/api/v1/pods"
# Listed, and watched without ever a change.
STILL = {"/api/v1/namespaces": ("v1", "Namespace"), "/apis/node.k8s.io/v1/runtimeclasses": ("node.k8s.io/v1", "RuntimeClass")}


def encoded(files):
    return {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}


class KubeApi:
    def __init__(self, credential, root_file, namespace=None):
        """namespace: the network namespace (by name) on whose loopback it listens, instead of the caller's."""
        self.lock = threading.RLock()
        self.objects = {}
        self.tokens = {}  # bearer token -> (user, pod name, pod uid, audience)
        self.requests = []  # (method, path)
        self.down = False  # answers 500 to everything
        self._version = 1
        self._watchers = []
        self._root_file = root_file
        owner = self

        class Handler(_Handler):
            api = owner

        with netns.entered(namespace) if namespace else contextlib.nullcontext():
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(credential.chain_file, credential.key_file)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self):
        with self.lock:
            for watcher, _ in self._watchers:
                watcher.put(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def kubeconfig(self, path):
        with open(self._root_file, "rb") as root, open(path, "w", encoding="utf-8") as out:
            json.dump({"apiVersion": "v1", "kind": "Config", "current-context": "c",
                       "clusters": [{"name": "c", "cluster": {
                           "server": f"https://127.0.0.1:{self.port}", "tls-server-name": "kubernetes.default",
                           "certificate-authority-data": base64.b64encode(root.read()).decode()}}],
                       "users": [{"name": "u", "user": {"token": "controller"}}],
                       "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "mesh"}}]}, out)
        return path

    def put(self, path, thing):
        """Stores an object and tells those who watch; returns it with its new resourceVersion."""
        with self.lock:
            self._version += 1
            thing.setdefault("metadata", {})["resourceVersion"] = str(self._version)
            event = "MODIFIED" if path in self.objects else "ADDED"
            self.objects[path] = thing
            self._tell(path, event, thing)
            return thing

    def delete(self, path):
        with self.lock:
            self._version += 1
            thing = self.objects.pop(path)
            thing["metadata"]["resourceVersion"] = str(self._version)
            self._tell(path, "DELETED", thing)

    def pod(self, ns, name, account, node, phase="Running"):
        self.put(f"/api/v1/namespaces/{ns}/pods/{name}", {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": ns, "name": name, "uid": f"uid-{name}"},
            "spec": {"nodeName": node, "serviceAccountName": account}, "status": {"phase": phase}})

    def get(self, path):
        with self.lock:
            return json.loads(json.dumps(self.objects.get(path)))

    def secret(self, name, files, ns="mesh"):
        self.put(f"/api/v1/namespaces/{ns}/secrets/{name}",
                 {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": ns},
                  "data": encoded(files)})

    def count(self, method, part):
        with self.lock:
            return sum(1 for one, path in self.requests if one == method and part in path)

    def _tell(self, path, event, thing):
        if "/pods/" in path:
            for watcher in (one for one, pods in self._watchers if pods):
                watcher.put(json.dumps({"type": event, "object": thing}))

    def pods(self, ns=None, node=None):
        return [thing for path, thing in sorted(self.objects.items()) if "/pods/" in path
                and ns in (None, thing["metadata"]["namespace"]) and node in (None, thing["spec"]["nodeName"])]

    def review(self, body):
        user, pod, uid, audience = self.tokens.get(body["spec"]["token"], (None, None, None, None))
        good = user is not None and audience in body["spec"]["audiences"]
        status = {"authenticated": good}
        if good:
            status |= {"audiences": [audience], "user": {"username": user, "extra": {
                "authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid]}}}
        return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api = None

    def log_message(self, *_):
        pass

    def _answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status, message):
        self._answer(status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
                              "message": message})

    def _serve(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        with self.api.lock:
            self.api.requests.append((self.command, self.path))
            if self.api.down:
                return self._refuse(500, "down")
        if query.get("watch") in ("1", "true"):
            if query.get("sendInitialEvents") == "true":
                return self._refuse(422, "sendInitialEvents is forbidden")
            return self._watch(url.path, query)
        with self.api.lock:
            status, answer = getattr(self, f"_{self.command.lower()}")(url.path, query, body)
        if status >= 400:
            return self._refuse(status, answer)
        return self._answer(status, answer)

    do_GET = do_POST = do_PUT = _serve

    def _get(self, path, query, _):
        parts = path.split("/")
        if path == PODS or (path.endswith("/pods") and len(parts) == 6):
            node = query.get("fieldSelector", "").removeprefix("spec.nodeName=") or None
            pods = self.api.pods(None if path == PODS else parts[4], node)
            return 200, {"apiVersion": "v1", "kind": "PodList",
                         "metadata": {"resourceVersion": str(self.api._version)}, "items": pods}
        if path in STILL:
            version, kind = STILL[path]
            return 200, {"apiVersion": version, "kind": f"{kind}List",
                         "metadata": {"resourceVersion": str(self.api._version)},
                         "items": [thing for where, thing in sorted(self.api.objects.items())
                                   if where.rpartition("/")[0] == path]}
        if path not in self.api.objects:
            return 404, f"{path} not found"
        return 200, self.api.objects[path]

    def _post(self, path, _, body):
        if path.endswith("/tokenreviews"):
            return 201, self.api.review(body)
        path += "/" + body["metadata"]["name"]
        if path in self.api.objects:
            return 409, f"{path} already exists"
        return 201, self.api.put(path, body)

    def _put(self, path, _, body):
        if path not in self.api.objects:
            return 404, f"{path} not found"
        if body["metadata"].get("resourceVersion") != self.api.objects[path]["metadata"]["resourceVersion"]:
            return 409, "the object has been modified"
        return 200, self.api.put(path, body)

    def _watch(self, path, query):
        events = queue.Queue()
        since = int(query.get("resourceVersion") or 0)
        with self.api.lock:
            for pod in self.api.pods() if path not in STILL else []:
                if int(pod["metadata"]["resourceVersion"]) > since:
                    events.put(json.dumps({"type": "MODIFIED", "object": pod}))
            self.api._watchers.append((events, path not in STILL))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while (event := events.get()) is not None:
                line = event.encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        except OSError:
            self.close_connection = True
        finally:
            with self.api.lock:
                self.api._watchers.remove((events, path not in STILL))
        self.close_connection = True
