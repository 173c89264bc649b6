"""What a browser sends to the page and gets from it, without a browser: Gradio's own HTTP protocol."""

import json
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any


class Refused(Exception):
    """The page's message instead of a result."""


class Browser:
    """One session.

    Args:
        url: of the page.
    """

    def __init__(self, url: str) -> None:
        self.url, self.session = url, uuid.uuid4().hex
        config = json.loads(self._get("/config"))
        self.states = {c["id"] for c in config["components"] if c["type"] == "state"}
        self.functions = {d["api_name"]: d for d in config["dependencies"] if d["api_name"]}

    def upload(self, path: Path) -> dict[str, Any]:
        """Upload a file, and name it as components do."""
        border = uuid.uuid4().hex
        head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n'
        head += "Content-Type: image/png\r\n\r\n"
        body = head.encode() + path.read_bytes() + f"\r\n--{border}--\r\n".encode()
        kind = f"multipart/form-data; boundary={border}"
        [stored] = json.loads(self._post("/gradio_api/upload", body, kind))
        return {"path": stored, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def call(self, name: str, *values: Any, on_update: Any = None) -> list[Any]:
        """Start what a button starts, and wait for its end.

        Args:
            name: of the endpoint.
            values: of its inputs, without the session's state.
            on_update: called with each message on the way.

        Returns:
            The values of its outputs.
        """
        function, given = self.functions[name], iter(values)
        data = [None if number in self.states else next(given) for number in function["inputs"]]
        assert next(given, None) is None, "too many values"
        request = {"data": data, "fn_index": function["id"], "session_hash": self.session}
        event = json.loads(self._post("/gradio_api/queue/join", json.dumps(request).encode()))["event_id"]
        with urllib.request.urlopen(
            f"{self.url}/gradio_api/queue/data?session_hash={self.session}", timeout=120
        ) as lines:
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                message = json.loads(line[6:])
                if message.get("event_id") != event:
                    continue
                if message["msg"] == "process_completed":
                    if not message["success"]:
                        raise Refused(message["output"].get("error"))
                    return message["output"]["data"]
                if on_update is not None:
                    on_update(message)
        raise Refused("the connection ended")

    def file(self, value: Any) -> bytes:
        """The content of a file in an answer: a component's value, or an update with one."""
        value = value["value"] if isinstance(value, dict) and "value" in value else value
        return self._get("/gradio_api/file=" + value["path"])

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def _post(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.read().decode()) from error
