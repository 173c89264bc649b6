"""An HTTP server on this machine that does everything wrong that servers do, on demand."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

DATA = bytes(range(256)) * 5000  # 1.28 MB: more than a chunk
SHA256 = hashlib.sha256(DATA).hexdigest()


S = TypeVar("S", bound=ThreadingHTTPServer)


class Server(ThreadingHTTPServer):
    """Serves DATA. What goes wrong at a path stands in ``faults``; what was asked for, in ``asked``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag = DATA, '"one"'
        self.faults: dict[str, Any] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.authorizations: list[str | None] = []

    def url(self, path: str = "/file") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class QuietHandler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Handler(QuietHandler):
    server: Server

    def do_GET(self) -> None:
        fault = self.server.faults.get(self.path, {})
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        self.server.authorizations.append(self.headers.get("Authorization"))
        if "status" in fault:
            self.send_error(fault["status"])
            return
        data = fault.get("data", self.server.data)
        start = 0
        if wanted and self.headers.get("If-Range") in (None, self.server.etag) and not fault.get("no ranges"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                if not fault.get("no length"):
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            place = fault.get("resumes at", start)
            self.send_header("Content-Range", f"bytes {place}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", fault.get("type", "application/octet-stream"))
        if not fault.get("no etag"):
            self.send_header("ETag", self.server.etag)
        if not fault.get("no length"):
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cuts = fault.get("cuts", [])
        end = min(len(data), start + cuts.pop(0)) if cuts else len(data)
        self.wfile.write(data[start:end])


def running() -> AbstractContextManager[Server]:
    return serving(Server())


@contextmanager
def serving(made: S) -> Iterator[S]:
    """A server in a thread of its own."""
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()
