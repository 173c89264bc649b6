"""Models to the Hub and back, with a stand-in for it on this machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ggm_image.cli.main import main
from ggm_image.errors import UserError
from ggm_image.io import hub as hub_module
from ggm_image.pipelines.load import load_model
from ggm_image.tokenizers.registry import load_tokenizer
from tests.hub_server import Hub, running
from tests.models import tiny_bpe, tiny_model_folder, tiny_text_model_folder, tiny_tokenizer_folder

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
NAME = "anna/robots-16"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setenv("GGM_IMAGE_CACHE", str(tmp_path / "cache"))
        for name in ("GGM_IMAGE_OFFLINE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(hub_module, "_commits", {})
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tiny_model_folder(tmp_path / "mine")
    (folder / "README.md").write_text("# Mine\nTrained on [robots](../../data/README.md), by hand.\n")
    (folder / "quality.json").write_text(json.dumps({"results": [{"n": 10, "distance": 0.123456, "settings": {}}]}))
    return folder


def push(folder: Path, *options: str) -> int:
    return main(["push", str(folder), NAME, "--licence", "Apache-2.0", "--device", "cpu", *options])


def test_pushed_model_comes_back_bit_for_bit(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(folder) == 0
    commit = hub.commit_hash(NAME)
    assert commit in capsys.readouterr().out
    [files] = hub.repositories[NAME]
    assert sorted(files) == sorted(
        [
            *("README.md", "config.yaml", "model.safetensors", "quality.json", "samples.png"),
            *("tokenizer/config.yaml", "tokenizer/model.safetensors"),
        ]
    )
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: ggm-image\nlicense: apache-2.0\n")
    assert "| 10 | 0.1235 |" in card
    assert "![16 samples, seed 0, preset best](samples.png)" in card
    assert "Trained on robots, by hand." in card
    assert f"ggm-image sample --model {NAME}" in card

    here = load_model(folder, device="cpu")
    there = load_model(NAME, device="cpu")
    assert torch.equal(there.sample(3, seed=2), here.sample(3, seed=2))
    assert there.name == NAME
    assert there.manifest(1, classes="cat", seed=0, settings=there.settings())["revision"] == commit

    # A later commit: `main` moves, a pinned revision does not, and a running process keeps the one that it has.
    hub.repositories[NAME].append({**files, "README.md": b"changed"})
    assert load_model(NAME, device="cpu").folder.revision == commit
    monkeypatch.setattr(hub_module, "_commits", {})
    assert load_model(NAME, device="cpu").folder.revision == hub.commit_hash(NAME)
    assert load_model(f"{NAME}@{commit}", device="cpu").folder.revision == commit

    # Without the network, from the cache.
    for variable in ("HF_HUB_OFFLINE", "GGM_IMAGE_OFFLINE"):
        monkeypatch.setattr(hub_module, "_commits", {})
        monkeypatch.setenv(variable, "1")
        hub.asked.clear()
        out = tmp_path / f"{variable}.png"
        assert main(["sample", "--model", NAME, "-n", "1", "--out", str(out), "--device", "cpu"]) == 0
        assert out.is_file()
        assert hub.asked == []
        with pytest.raises(UserError, match=f"not in the cache and {variable} is set"):
            load_model("anna/other")
        monkeypatch.delenv(variable)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_pushed_model_of_text_comes_back(
    hub: Hub, kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file of its tokenizer, unless that is known by its name; every command finds it by the repository."""
    tokenizer = None
    if kind == "bpe":
        pytest.importorskip("tokenizers")
        tokenizer = tiny_bpe(tmp_path)
    folder = tiny_text_model_folder(tmp_path, length=8, tokenizer=tokenizer)
    (folder / "README.md").write_text("# Mine\nTrained by hand.\n")
    assert push(folder) == 0
    [files] = hub.repositories[NAME]
    own = ["tokenizer/tokenizer.json"] if kind == "bpe" else []
    assert sorted(files) == sorted(["README.md", "config.yaml", "model.safetensors", "samples.txt", *own])
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: ggm-image\nlicense: apache-2.0\npipeline_tag: text-generation\n")
    assert "rows of 8 tokens of 256 codes" in card or kind == "bpe"
    assert "Trained by hand." in card
    assert f'ggm-image infill "It was the ____ of times" --model {NAME}' in card

    here = load_model(folder, modality="text", device="cpu")
    texts = here.sample(16, seed=0)
    assert files["samples.txt"] == b"".join(b"--- %d ---\n%s\n" % (k, text) for k, text in enumerate(texts))
    # four of them on the card, in indented lines, so that no sample can end the block
    block = card.split("\n\n")[3].splitlines()
    assert all(line.startswith("    ") for line in block)
    assert [line for line in block if line.startswith("    --- ")] == [f"    --- {k} ---" for k in range(4)]
    if tokenizer is not None:  # what is on the Hub needs nothing of this machine
        (folder / "tokenizer" / "tokenizer.json").unlink()
        tokenizer.path.unlink()
    there = load_model(NAME, modality="text", device="cpu")
    assert there.sample(3, seed=2) == here.sample(3, seed=2)
    manifest = there.manifest(1, length=8, seed=0, settings=there.settings())
    assert (manifest["model"], manifest["revision"]) == (NAME, hub.commit_hash(NAME))
    capsys.readouterr()
    assert main(["infill", "ab____", "--model", NAME, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_only_safe_files_are_downloaded(hub: Hub, folder: Path, tmp_path: Path) -> None:
    saved = load_model(folder, device="cpu").save(tmp_path / "saved")
    files = {str(p.relative_to(saved)): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    hub.repositories[NAME] = [{**files, "model.bin": b"pickle", "evil.py": b"1", "tokenizer/evil.ckpt": b"2"}]
    found = load_model(NAME, device="cpu").folder.folder
    assert {path.suffix for path in found.rglob("*") if path.is_file()} == {".yaml", ".safetensors", ".md", ".json"}
    assert not any(re.search("evil|bin", request) for request in hub.asked if "resolve" in request)


def test_tokenizer_of_another_machine_is_not_followed(hub: Hub, folder: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in ("config.yaml", "model.safetensors")}
    assert b"source: /" in files["config.yaml"]  # a folder that exists here
    hub.repositories[NAME] = [files]
    with pytest.raises(UserError, match="no such tokenizer"):
        load_model(NAME, device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("anna/nothing", "no such repository on the Hub .anna/nothing."),
        (f"{NAME}@v9", "no such revision"),
        (NAME, "has no model.safetensors"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, name: str, message: str) -> None:
    hub.repositories[NAME] = [{"config.yaml": b"a: 1"}]
    with pytest.raises(UserError, match=message):
        load_model(name, device="cpu")


def test_refused_pushes(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["push", *arguments]) == 2
        return capsys.readouterr().err

    assert "licence" in refused(str(folder), NAME)
    assert "OWNER/NAME" in refused(str(folder), "robots", "--licence", "mit")
    assert "identifier" in refused(str(folder), NAME, "--licence", "my own: yes")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "HTTP 401" in refused(str(folder), NAME, "--licence", "mit")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids the network" in refused(str(folder), NAME, "--licence", "mit")
    assert hub.repositories == {}
    assert not [request for request in hub.asked if request.startswith("POST /api/models")]


def test_tokenizers_come_from_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer's repository, and the tokenizer in a model's; the cache serves it without the network."""
    folder = tiny_tokenizer_folder(tmp_path / "tokenizer")
    files = {name: (folder / name).read_bytes() for name in ("config.yaml", "model.safetensors")}
    hub.repositories["anna/tokens"] = [files]
    hub.repositories[NAME] = [
        {"config.yaml": b"network: {}", "model.safetensors": b"x"}
        | {f"tokenizer/{name}": files[name] for name in files}
    ]
    here = load_tokenizer(folder)
    for name in ("anna/tokens", NAME, f"anna/tokens@{hub.commit_hash('anna/tokens')}"):
        assert load_tokenizer(name).sha256 == here.sha256
    with pytest.raises(UserError, match="no such repository on the Hub"):
        load_tokenizer("anna/nothing")
    hub.repositories["anna/empty"] = [{"config.yaml": files["config.yaml"]}]
    with pytest.raises(UserError, match="a repository of a model or tokenizer holds config.yaml and model.safetensors"):
        load_tokenizer("anna/empty")
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    monkeypatch.setattr(hub_module, "_commits", {})
    hub.asked.clear()
    assert load_tokenizer("anna/tokens").sha256 == here.sha256
    assert hub.asked == []


def test_a_private_repository_needs_the_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the header of every request; without it, or with another, the Hub hides the repository."""
    folder = tiny_tokenizer_folder(tmp_path / "tokenizer")
    hub.repositories[NAME] = [{name: (folder / name).read_bytes() for name in ("config.yaml", "model.safetensors")}]
    hub.private.add(NAME)
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(UserError, match=r"no such repository on the Hub .*log in with `hf auth login` or set HF_TOKEN"):
        load_tokenizer(NAME)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert load_tokenizer(NAME).sha256 == load_tokenizer(folder).sha256
