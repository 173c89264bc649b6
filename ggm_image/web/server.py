"""Serve the page: on loopback without a password, elsewhere only with one; no other host is contacted."""

import ipaddress
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError
from ggm_image.runtime.streams import say

PORT = 7860
CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
"""Tells the browser to load nothing from another host, even if a model card or a library asks for it."""


def check_address(listen: str, auth: str | None) -> tuple[str, str] | None:
    """The user name and password of ``--auth``."""
    try:
        loopback = listen == "localhost" or ipaddress.ip_address(listen).is_loopback
    except ValueError as error:
        raise UserError("--listen must be an IP address", f"got {listen!r}", "use 127.0.0.1 or 0.0.0.0") from error
    if auth is None:
        if not loopback:
            fix = "add --auth user:password, or leave out --listen"
            raise UserError("the page is open to other machines only with a password", f"--listen {listen}", fix)
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise UserError("--auth must be user:password", "a part is missing", "give both, for example anna:s3cret")
    if not loopback:
        say(f"the page on {listen} is not encrypted: put a TLS proxy in front of it, or use a trusted network")
    return user, password


def bind(listen: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((listen, port))
        opened.listen(128)
    except OSError as error:
        opened.close()
        fix = "choose another --port, or 0 for a free one"
        raise UserError("the address cannot be used", f"{listen}:{port}: {error.strerror}", fix) from error
    return opened


def prepare_gradio(cache: Path) -> None:
    """Keep Gradio off the network, and its files in one folder; call it before Gradio is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("the page needs Gradio", str(error), "pip install 'ggm-image[demo]'") from error


class LocalOnly:
    """ASGI middleware: sends `CONTENT_POLICY` with every answer, and takes other hosts' addresses out of the HTML."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: dict[str, Any] | None = None
        body = b""

        async def send_local(message: Any) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message["headers"] if k.lower() != b"content-security-policy"]
                headers += [(b"content-security-policy", CONTENT_POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": headers}
                if any(k.lower() == b"content-type" and v.startswith(b"text/html") for k, v in headers):
                    start = message
                    return
            elif start is not None:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                body = without_other_hosts(body.decode("utf-8", errors="replace")).encode()
                headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
                await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
                message = {"type": "http.response.body", "body": body}
            await send(message)

        await self.app(scope, receive, send_local)


def without_other_hosts(html: str) -> str:
    """HTML without the elements that load or name something on another host."""
    html = re.sub(r"<script[^>]*\ssrc=[\"'](https?:)?//[^>]*>\s*</script>", "", html)
    return re.sub(r"<(link|meta)\b[^>]*[\"'](https?:)?//[^>]*>", "", html)


def make_app(model: str, *, device: str | None, cache: Path, auth: tuple[str, str] | None = None) -> Any:
    """The page as an ASGI application."""
    prepare_gradio(cache)
    import gradio
    from fastapi import FastAPI

    from ggm_image.web.actions import Actions
    from ggm_image.web.app import CSS, build_page, system_theme
    from ggm_image.web.images import MOST_BYTES

    actions = Actions(model, device=device, cache=cache)
    mounted = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build_page(actions),
        path="/",
        auth=auth,
        show_error=True,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        theme=system_theme(),
        css=CSS,
    )
    return LocalOnly(mounted)


def serve(model: str, *, device: str | None, listen: str, port: int, auth: str | None) -> None:
    """Serve the page until Ctrl-C; uploads and results are removed at the end.

    Args:
        port: 0 for any free one.
        auth: ``user:password``, see `check_address`.
    """
    checked = check_address(listen, auth)
    with tempfile.TemporaryDirectory(prefix="ggm-image-demo-") as cache, bind(listen, port) as opened:
        app = make_app(model, device=device, cache=Path(cache), auth=checked)
        import uvicorn

        host = f"[{listen}]" if ":" in listen else listen
        print(f"http://{host}:{opened.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, ws="none")
        uvicorn.Server(config).run(sockets=[opened])
