"""A stand-in for the Hub's API on this machine: repositories in memory, commits, downloads and uploads."""

import base64
import hashlib
import json
import re
from contextlib import AbstractContextManager
from http.server import ThreadingHTTPServer
from typing import Any

from tests.server import QuietHandler, serving


class Hub(ThreadingHTTPServer):
    """Repositories by name: a list of commits, each a dict from file names to contents."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.token = "secret"
        self.private: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_hash(self, name: str, number: int = -1) -> str:
        commits = self.repositories[name]
        return hashlib.sha1(f"{name}/{number % len(commits)}".encode()).hexdigest()

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision: its hash and files."""
        commits = self.repositories.get(name, [])
        if revision == "main" and commits:
            return self.commit_hash(name), commits[-1]
        found = [k for k in range(len(commits)) if self.commit_hash(name, k) == revision]
        return (revision, commits[found[0]]) if found else None


class Handler(QuietHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def answer(self, body: Any = b"", status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        if name in self.server.private and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer({"error": "not found"}, 401, X_Error_Code="RepoNotFound")  # as the Hub hides what is private
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            name, kind, revision = match[1], match[2], match[3] or "main"
            found = self.server.find(name, revision)
            if found is None:
                missing = "RevisionNotFound" if name in self.server.repositories else "RepoNotFound"
                self.answer({"error": "not found"}, 404, X_Error_Code=missing)
            elif kind == "tree":
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                    for file, data in found[1].items()
                ]
                self.answer(tree)
            else:
                self.answer({"id": name, "sha": found[0], "siblings": [{"rfilename": file} for file in found[1]]})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            found = self.server.find(match[1], match[2])
            if found is None or match[3] not in found[1]:
                self.answer(b"", 404, X_Error_Code="EntryNotFound")
                return
            data = found[1][match[3]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.answer(data, X_Repo_Commit=found[0], ETag=etag, Content_Type="application/octet-stream")
        else:
            self.answer({"error": "not found"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        body = self._body()
        self.server.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer({"error": "unauthorised"}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'anna'}/{asked['name']}"
            self.server.repositories.setdefault(name, [])
            self.answer({"url": f"{self.server.url}/{name}"})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            commits = self.server.repositories[match[1]]
            files = dict(commits[-1]) if commits else {}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commits.append(files)
            oid = self.server.commit_hash(match[1])
            self.answer({"commitUrl": f"{self.server.url}/{match[1]}/commit/{oid}", "commitOid": oid, "hookOutput": ""})
        else:
            self.answer({"error": "not found"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def running() -> AbstractContextManager[Hub]:
    return serving(Hub())
