"""A small client of the API server: JSON over HTTPS with the administrator's certificate.

kubectl takes 80 ms to start; waiting for a condition asks many times. A client belongs to one thread.
"""

import contextlib
import http.client
import json
import ssl
import urllib.parse

import netns


class ApiError(RuntimeError):
    """The API server's refusal."""

    def __init__(self, status, message):
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """namespace is the network namespace (name or path) to connect from, None for the caller's own."""

    def __init__(self, plan, namespace=None):
        self._plan, self._namespace = plan, namespace
        self._connection = None

    def _connect(self):
        pki = f"{self._plan.state}/pki"
        context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
        context.load_cert_chain(f"{pki}/admin.crt", f"{pki}/admin.key")
        connection = http.client.HTTPSConnection(urllib.parse.urlsplit(self._plan.api).hostname, 6443, timeout=10,
                                                 context=context)
        with netns.entered(self._namespace) if self._namespace else contextlib.nullcontext():
            connection.connect()
        return connection

    def _exchange(self, method, path, body, headers):
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def raw(self, method, path, body=None, content_type="application/json", user=None):
        """Sends one request, in another's name if `user` is given, and returns the text of the answer; ApiError for a
        refusal, OSError without an answer."""
        kept = self._connection is not None
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if user:
            headers["Impersonate-User"] = user
        data = None if body is None else json.dumps(body)
        try:
            status, text = self._exchange(method, path, data, headers)
        except (OSError, http.client.HTTPException):
            if not kept or method != "GET":
                raise
            status, text = self._exchange(method, path, data, headers)  # the server had closed the idle connection
        if status >= 300:
            raise ApiError(status, text.decode(errors="replace")[:2000])
        return text.decode()

    def request(self, method, path, body=None, content_type="application/json"):
        return json.loads(self.raw(method, path, body, content_type))

    def get(self, path):
        return self.request("GET", path)

    def apply(self, path, thing):
        """Server-side apply of one object."""
        return self.request("PATCH", f"{path}?fieldManager=cluster&force=true", thing, "application/apply-patch+yaml")

    def stream(self, path):
        """The lines of an answer that has no end (a watch), as they come; OSError when it ends."""
        connection = self._connect()
        try:
            connection.sock.settimeout(None)
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status >= 300:
                raise ApiError(response.status, response.read().decode(errors="replace"))
            while line := response.readline():
                yield line
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from error
        finally:
            connection.close()
        raise ConnectionError(f"the answer to {path} ended")

    def close(self):
        if self._connection:
            self._connection.close()
        self._connection = None


def condition(thing, kind):
    """True if the object's status has that condition with status True."""
    return any(one["type"] == kind and one["status"] == "True" for one in thing.get("status", {}).get("conditions", []))
