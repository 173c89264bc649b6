"""Downloads from a server of our own: resumed, checked, from the next mirror, or not at all."""

import ast
import copy
import os
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ggm_image.errors import UserError
from ggm_image.io import download as downloads
from ggm_image.io.download import cache_dir, download, fetch, is_offline, offline_variable
from ggm_image.io.files import write_json
from tests.server import DATA, SHA256, Server, running


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GGM_IMAGE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(downloads, "TIMEOUT", 5.0)


def left(folder: Path) -> list[str]:
    """Files in a folder, locks aside."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    download(path, [server.url()], size=len(DATA), sha256=SHA256)
    download(path, [server.url()], size=len(DATA), sha256=SHA256)
    assert path.read_bytes() == DATA
    assert len(server.asked) == 1
    assert left(path.parent) == ["file"]


def test_a_cut_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    """Seen to fail with the part appended to whole files (a server without ranges), and without the Range header."""
    server.faults["/file"] = {"cuts": [100_000, 300_000]}
    download(tmp_path / "file", [server.url()], sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == DATA
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=400000-"]
    server.faults["/other"] = {"cuts": [100_000], "no ranges": True}
    download(tmp_path / "other", [server.url("/other")])
    assert (tmp_path / "other").read_bytes() == DATA


def test_the_next_command_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.faults["/file"] = {"cuts": [100_000, 0, 0]}
    with pytest.raises(UserError, match="the connection ended after 100000 of 1280000 bytes"):
        download(tmp_path / "file", [server.url()])
    assert left(tmp_path) == ["file.part", "file.part.json"]
    download(tmp_path / "file", [server.url()], sha256=SHA256)
    assert server.asked[-1] == ("/file", "bytes=100000-")
    assert (tmp_path / "file").read_bytes() == DATA
    assert left(tmp_path) == ["file"]


def test_a_file_that_has_changed_meanwhile_is_begun_again(server: Server, tmp_path: Path) -> None:
    """Seen to fail without If-Range's check of the version: the file was half old, half new."""
    server.faults["/file"] = {"cuts": [100_000, 0, 0]}
    with pytest.raises(UserError):
        download(tmp_path / "file", [server.url()])
    server.data, server.etag = DATA[::-1], '"two"'
    download(tmp_path / "file", [server.url()])
    assert (tmp_path / "file").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("fault", [{"no etag": True}, {"etag": 'W/"weak"'}])
def test_without_a_version_nothing_is_resumed(server: Server, tmp_path: Path, fault: dict[str, Any]) -> None:
    server.etag = fault.get("etag", server.etag)
    server.faults["/file"] = {"cuts": [100_000], **fault}
    download(tmp_path / "file", [server.url()])
    assert (tmp_path / "file").read_bytes() == DATA
    assert [wanted for _, wanted in server.asked] == [None, None]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"status": 404}, "HTTP 404"),
        ({"status": 503}, "HTTP 503"),
        ({"type": "text/html"}, "a web page instead of the file"),
        ({"data": DATA[:-1]}, "1279999 bytes, not 1280000"),
        ({"data": DATA[:-1] + b"x"}, "SHA-256 is [0-9a-f]{16}"),
        ({"data": DATA + b"x", "no length": True}, "more than 1280000 bytes"),
        ({"data": DATA[:-1], "no length": True}, "1279999 bytes, not 1280000"),
        ({"cuts": [0, 0, 0]}, "the connection ended"),
        ({"cuts": [9], "resumes at": 7}, "resumes at the wrong place"),
    ],
)
def test_the_next_mirror_is_asked(server: Server, tmp_path: Path, fault: dict[str, Any], why: str) -> None:
    """Seen to fail without the comparison of hashes, and of lengths: the wrong file was kept."""
    server.faults["/bad"] = copy.deepcopy(fault)
    download(tmp_path / "file", [server.url("/bad"), server.url()], size=len(DATA), sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == DATA
    assert left(tmp_path) == ["file"]
    (tmp_path / "file").unlink()
    server.faults["/bad"] = copy.deepcopy(fault)
    with pytest.raises(UserError, match=rf"file cannot be downloaded .*{why}.*put it at .*file") as caught:
        download(tmp_path / "file", [server.url("/bad")], size=len(DATA), sha256=SHA256)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "file").exists()


def test_all_that_was_tried_is_named(server: Server, tmp_path: Path) -> None:
    server.faults |= {"/a": {"status": 404}, "/b": {"type": "text/html"}}
    closed = "http://127.0.0.1:1/c"
    with pytest.raises(
        UserError, match=r"/a: HTTP 404; .*/b: a web page.*/c: .*refused.*file:///etc/passwd: not an http"
    ):
        download(tmp_path / "file", [server.url("/a"), server.url("/b"), closed, "file:///etc/passwd"])


def test_offline_asks_nobody_and_says_what_to_put_where(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    with pytest.raises(UserError, match=r"GGM_IMAGE_OFFLINE is set .*/file.*put it at .*weights\.ckpt"):
        download(tmp_path / "weights.ckpt", [server.url()])
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "weights.ckpt").write_bytes(b"by hand")
    download(tmp_path / "weights.ckpt", [server.url()])
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "0")
    download(tmp_path / "other", [server.url()])
    assert (tmp_path / "other").is_file()


def kept_part(server: Server, folder: Path, data: bytes) -> None:
    """What a process leaves behind that was killed before the rename, of a server that gives no length."""
    (folder / "file.part").write_bytes(data)
    write_json(folder / "file.part.json", {"url": server.url(), "version": server.etag, "total": None})


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_part_that_is_the_whole_file_is_finished(server: Server, tmp_path: Path, size: int | None) -> None:
    """The server answers 416: there is nothing left to send. Seen to fail with that taken for a failure."""
    kept_part(server, tmp_path, DATA)
    download(tmp_path / "file", [server.url()], size=size, sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.asked == [("/file", f"bytes={len(DATA)}-")]
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize(("part", "fault"), [(DATA + b"x", {}), (DATA, {"no length": True}), (DATA[::-1], {})])
def test_a_part_of_another_file_is_begun_again(
    server: Server, tmp_path: Path, part: bytes, fault: dict[str, Any]
) -> None:
    """Too long, of a length that nobody confirms, or of other bytes: this run or the next one has the right file."""
    server.faults["/file"] = fault
    kept_part(server, tmp_path, part)
    if part == DATA[::-1]:
        with pytest.raises(UserError, match="SHA-256 is"):
            download(tmp_path / "file", [server.url()], sha256=SHA256)
    download(tmp_path / "file", [server.url()], sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == DATA
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("variable", "value", "offline"),
    [
        ("GGM_IMAGE_OFFLINE", "1", True),
        ("GGM_IMAGE_OFFLINE", "0", False),
        ("HF_HUB_OFFLINE", "1", True),
        ("HF_HUB_OFFLINE", "yes", True),
        ("HF_HUB_OFFLINE", "False", False),
        ("HF_HUB_OFFLINE", "", False),
    ],
)
def test_two_variables_forbid_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, offline: bool
) -> None:
    monkeypatch.setenv(variable, value)
    assert is_offline() == offline
    assert offline_variable() == (variable if offline else "")
    if offline:
        with pytest.raises(UserError, match=f"{variable} is set"):
            download(tmp_path / "file", [server.url()])
        assert server.asked == []


def test_a_hub_token_is_sent_to_no_other_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    download(tmp_path / "file", [server.url()])
    server.faults["/private"] = {"status": 401}
    with pytest.raises(UserError, match=r"cannot be downloaded \(http.*/private: HTTP 401\); fetch it elsewhere"):
        download(tmp_path / "other", [server.url("/private")])
    assert server.authorizations == [None, None]


def test_fetch_takes_a_copy_of_another_library_if_it_is_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail with any file of that name taken."""
    monkeypatch.setenv("GGM_IMAGE_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "copy"
    copy.write_bytes(DATA[:-1])
    ours = tmp_path / "cache" / "features" / "file"
    assert fetch("file", [server.url()], folder="features", sha256=SHA256, elsewhere=[copy]) == ours
    assert ours.read_bytes() == DATA
    ours.unlink()
    copy.write_bytes(DATA)
    assert fetch("file", [server.url()], folder="features", sha256=SHA256, elsewhere=[copy]) == copy
    assert len(server.asked) == 1


def test_offline_no_file_of_any_library_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features, perceptual weights and tokenizers: each ends in one line that names address, variable and place.

    Seen to fail with torch.hub, clip and timm left to download for themselves.
    """
    from ggm_image.metrics.feature_extractors import INCEPTION_VARIABLE, load_extractor
    from ggm_image.tokenizers.registry import load_tokenizer
    from ggm_image.training.vqgan.perceptual import download_lpips

    def connect(*_: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    for name, folder in (("GGM_IMAGE_CACHE", "cache"), ("TORCH_HOME", "torch"), ("HOME", "home")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv(INCEPTION_VARIABLE, raising=False)
    package = types.ModuleType("clip")
    package.load = connect  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "clip", package)
    monkeypatch.delitem(sys.modules, "cleanfid.clip_features", raising=False)
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    ask: dict[str, Callable[[], object]] = {
        "inception-2015-12-05.pt": lambda: load_extractor("inception"),
        "ViT-B-32.pt": lambda: load_extractor("clip"),
        "model.safetensors": lambda: load_extractor("timm:test_vit"),
        "vgg16-397923af.pth": download_lpips,
        "vqgan_imagenet_f16_1024.ckpt": lambda: load_tokenizer("vqgan-imagenet-f16-1024"),
    }
    for file, function in ask.items():
        with pytest.raises(UserError, match=rf"GGM_IMAGE_OFFLINE is set \({file}: https://.*put it at .*{file}"):
            function()
    monkeypatch.delitem(sys.modules, "cleanfid.clip_features", raising=False)


def test_no_module_opens_another_door() -> None:
    """Whoever imports a client of the network is `downloads`, or asks `is_offline` first.

    Seen to fail with torch.hub's downloads in the features and the perceptual losses.
    """
    doors = ("urllib.request", "http.client", "requests", "aiohttp", "fsspec", "datasets", "socket")
    found = set()
    for path in Path(downloads.__file__).parents[1].rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        names = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if path.name == "hub.py" and "offline_variable()" in text:  # whose client keeps its own cache
                    continue
                assert name not in DOWNLOADERS, f"{path}: {name}"
        if path.name in ("signals.py", "server.py"):  # a pair of sockets inside the process; the page's own port
            names -= {"socket"}
        if names & set(doors) and path.name != "download.py":
            assert "is_offline()" in text, path
            found.add(path.name)
    assert {"hub.py", "tar_stream.py"} <= found  # the search finds what there is


DOWNLOADERS = (
    "load_state_dict_from_url",
    "download_url_to_file",
    "hf_hub_download",
    "snapshot_download",
    "urlretrieve",
)


def test_no_address_and_no_room(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no address"):
        download(tmp_path / "file", [])
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="must be room for 0.0 GB .*GGM_IMAGE_CACHE"):
        download(tmp_path / "file", [server.url()])
    assert left(tmp_path) == []


def test_two_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=download, args=(tmp_path / "file", [server.url()])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == DATA
    assert len(server.asked) == 1


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GGM_IMAGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert cache_dir() == Path(os.path.expanduser("~")) / ".cache" / "ggm-image"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "ggm-image"
    monkeypatch.setenv("GGM_IMAGE_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
