"""A proxy before a container engine's socket: it lets little through, as hospitals have it, or answers itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LET_THROUGH = (
    re.compile(r"GET /(v[0-9.]+/)?version"),
    re.compile(r"GET /(v[0-9.]+/)?images/.+/json"),
    re.compile(r"POST /(v[0-9.]+/)?containers/create"),
    re.compile(r"GET /(v[0-9.]+/)?containers/json"),
    re.compile(r"GET /(v[0-9.]+/)?containers/[0-9a-f]+/(json|logs)"),
    re.compile(r"POST /(v[0-9.]+/)?containers/[0-9a-f]+/start"),
    re.compile(r"DELETE /(v[0-9.]+/)?containers/[0-9a-f]+"),
)


class _EngineConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


@contextlib.contextmanager
def socket_proxy(engine: str, answers: Mapping[str, tuple[int, str]] | None = None) -> Iterator[str]:
    """A proxy to the engine's socket; its address.

    Args:
        engine: ``unix://`` and the socket's path.
        answers: by a word of the request line, a status and a message in the engine's place.
    """
    path = engine.removeprefix("unix://")

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            line = f"{self.command} {self.path.partition('?')[0]}"
            own = next((told for word, told in (answers or {}).items() if word in line), None)
            if own is None and not any(allowed.fullmatch(line) for allowed in LET_THROUGH):
                own = (403, "the proxy lets this through to nobody")
            if own is not None:
                self.give(own[0], json.dumps({"message": own[1]}).encode(), "application/json")
                return
            with contextlib.closing(_EngineConnection(path)) as connection:
                headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
                connection.request(self.command, self.path, body=body, headers=headers)
                answered = connection.getresponse()
                self.give(answered.status, answered.read(), answered.getheader("Content-Type") or "text/plain")

        def give(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the base class calls them so

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
