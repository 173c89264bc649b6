"""A folder of samples: the same files for any processes and interruptions."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.io import to_pil
from ggm_image.io.marks import read_mark
from ggm_image.io.outputs import numbered
from ggm_image.pipelines import sample_folder
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.sample_folder import Sampled, SampleFolder, sample_to_folder
from ggm_image.sampler.settings import Settings
from tests.faults.harness import digests

N = 70
FAST = Settings(sweeps=1, block=8)


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole")
    assert draw(model, out) == Sampled(N, 0)
    return out


def draw(model: Model, out: Path, n: int = N, **changes) -> Sampled:
    return sample_to_folder(model, out, n, **{"seed": 5, "settings": FAST, **changes})


class Stopped(Exception):
    pass


def stop_before(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write = SampleFolder.write

    def stopping(folder: SampleFolder, index: int, image: Image.Image) -> None:
        if index == k:
            raise Stopped
        write(folder, index, image)

    monkeypatch.setattr(SampleFolder, "write", stopping)


def test_files(model: Model, whole: Path) -> None:
    """Images by their numbers, and the manifest of them all. Seen to fail with classes counted from each batch's
    first."""
    assert sorted(path.name for path in whole.iterdir()) == [*map(numbered, range(N)), "manifest.json"]
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest == model.manifest(N, classes=None, seed=5, settings=FAST)
    for k, image in enumerate(model.sample(N, seed=5, settings=FAST)):
        assert Image.open(whole / numbered(k)).tobytes() == to_pil(image).tobytes()


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_shares(processes: int, model: Model, whole: Path, tmp_path: Path) -> None:
    """The last to come ends the folder, and nobody draws what is another's.

    Seen to fail with one stretch of images a process, which cuts batches, and with a manifest that only process 0
    may write.
    """
    sampled = 0
    for rank in range(processes):
        done = draw(model, tmp_path, share=(rank, processes))
        sampled += done.sampled
        assert done.missing == N - sampled
        assert (tmp_path / "manifest.json").exists() == (sampled == N)
    assert sampled == N
    assert digests(tmp_path) == digests(whole)


@pytest.mark.parametrize("k", [0, 1, 16, 40])
def test_an_interrupted_run_is_gone_on_with(
    k: int, model: Model, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only unfinished batches are drawn again. Seen to fail where all are."""
    with monkeypatch.context() as patch:
        stop_before(k, patch)
        with pytest.raises(Stopped):
            draw(model, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    (tmp_path / ".000003.0123abcd.tmp.png").write_bytes(b"what a killed process leaves")
    assert draw(model, tmp_path) == Sampled(N - k // 16 * 16, 0)
    assert digests(tmp_path) == digests(whole)
    assert draw(model, tmp_path) == Sampled(0, 0)


@pytest.mark.parametrize("how", ["gone", "cut", "bit"])
def test_damage_is_mended(how: str, model: Model, whole: Path, tmp_path: Path) -> None:
    """In a folder that was finished. Seen to fail where images are opened and not checked."""
    out = shutil.copytree(whole, tmp_path / "out")
    path = out / numbered(20)
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-9])
    else:
        content[60] ^= 1
        path.write_bytes(content)
    assert draw(model, out, share=(0, 2)) == Sampled(0, 1)
    assert not (out / "manifest.json").exists()
    assert draw(model, out, share=(1, 2)) == Sampled(16, 0)
    assert digests(out) == digests(whole)


def test_more_of_the_same(model: Model, whole: Path, tmp_path: Path) -> None:
    """A folder can grow; a batch that was cut short is drawn again."""
    assert draw(model, tmp_path, 20) == Sampled(20, 0)
    assert draw(model, tmp_path, share=(0, 2)) == Sampled(38 - 16, N - 20 - 22)
    assert not (tmp_path / "manifest.json").exists()
    assert draw(model, tmp_path, share=(1, 2)) == Sampled(32, 0)
    assert digests(tmp_path) == digests(whole)


def test_a_killed_beginning_of_more(model: Model, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the new manifest is begun, and before the old one is gone: the folder is not finished."""
    draw(model, tmp_path, 20)
    before = (tmp_path / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        stop_before(20, patch)
        with pytest.raises(Stopped):
            draw(model, tmp_path)
    (tmp_path / "manifest.json").write_bytes(before)
    assert draw(model, tmp_path, share=(1, 2)).missing
    assert not (tmp_path / "manifest.json").exists()
    draw(model, tmp_path)
    assert digests(tmp_path) == digests(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "seed is 5, now 6"),
        ({"n": 30}, "count is 70, now 30"),
        ({"classes": "dog"}, "they differ in classes"),
        ({"settings": Settings(sweeps=2, block=8)}, "settings.sweeps is 1, now 2"),
        ({"n": 80, "seed": 6}, "seed is 5, now 6"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_pictures_are_not_mixed_in(
    finished: bool, changes: dict, message: str, model: Model, whole: Path, tmp_path: Path
) -> None:
    """Nor are they written over. Seen to fail where a folder with a larger n is taken for one to resume."""
    out = shutil.copytree(whole, tmp_path / "out")
    if not finished:
        (out / "manifest.json").rename(out / "manifest.partial")
    before = digests(out)
    with pytest.raises(UserError, match=f"other images .*{message}"):
        draw(model, out, **changes)
    assert digests(out) == before


def test_folders_of_others(model: Model, whole: Path, tmp_path: Path) -> None:
    """Images that nothing is known of, and a manifest that says nothing."""
    (tmp_path / "notes.txt").write_text("stays")
    shutil.copy(whole / numbered(3), tmp_path)
    with pytest.raises(UserError, match="images and no manifest"):
        draw(model, tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest cannot be read"):
        draw(model, tmp_path)
    (tmp_path / numbered(3)).unlink()
    (tmp_path / "manifest.json").unlink()
    assert draw(model, tmp_path).missing == 0
    assert (tmp_path / "notes.txt").read_text() == "stays"


def test_another_request_in_between(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty images are wanted while somebody begins seventy: the manifest of seventy is not published."""
    claim = SampleFolder.claim

    def overtaken(folder: SampleFolder) -> bool:
        found = claim(folder)
        manifest = model.manifest(N, classes=None, seed=5, settings=FAST)
        sample_folder.write_json(tmp_path / "manifest.partial", manifest)
        return found

    monkeypatch.setattr(SampleFolder, "claim", overtaken)
    with pytest.raises(UserError, match="another process is filling the folder"):
        draw(model, tmp_path, 20)
    assert not (tmp_path / "manifest.json").exists()


def test_the_first_batch_can_be_watched(model: Model, whole: Path, tmp_path: Path) -> None:
    """Also where its images are there."""
    out, steps = shutil.copytree(whole, tmp_path / "out"), []
    assert draw(model, out, callback=lambda t, tokens: steps.append(t)) == Sampled(16, 0)
    assert steps == [2, 1, 0]
    assert digests(out) == digests(whole)


def test_classes_take_turns(model: Model, tmp_path: Path) -> None:
    """By the number of the image alone, for any process and any number of images.

    Seen to fail with turns counted from the first image of each batch.
    """
    for rank in range(3):
        draw(model, tmp_path / "three", 50, classes=["ship", "dog", "ship", "cat", "dog"], share=(rank, 3))
    draw(model, tmp_path / "one", 20, classes=["ship", "dog", "ship", "cat", "dog"])
    draw(model, tmp_path / "one", 50, classes=["ship", "dog", "ship", "cat", "dog"])
    assert digests(tmp_path / "three") == digests(tmp_path / "one")
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["classes"] == ["ship", "dog", "ship", "cat", "dog"] * 10
    images = model.sample(3, classes=["ship", "cat", "dog"], seed=5, settings=FAST, first=32)
    for k, image in zip((32, 33, 34), images, strict=True):
        assert Image.open(tmp_path / "one" / numbered(k)).tobytes() == to_pil(image).tobytes()


@pytest.mark.parametrize("what", ["other samples", "fewer", "unfinished", "photos", "tokens", "damaged"])
def test_overwrite(what: str, model: Model, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of another request go, images of ours that are no longer part too; files of others stay, if they can."""
    out = tmp_path / "out"
    if what in ("other samples", "fewer", "unfinished"):
        draw(model, out, 80, seed=6 if what == "other samples" else 5)
    else:
        out.mkdir()
    if what == "unfinished":
        (out / "manifest.json").rename(out / "manifest.partial")
    if what == "photos":
        shutil.copy(whole / numbered(3), out / numbered(0))
    if what == "tokens":
        (out / "manifest.json").write_text(json.dumps({"shards": []}))
    if what == "damaged":
        (out / "manifest.json").write_text("{")
    (out / "notes.txt").write_text("mine")
    Image.new("RGB", (8, 8), "red").save(out / numbered(900))
    photo = (out / numbered(900)).read_bytes()
    with pytest.raises(UserError, match="holds other images|images and no manifest|manifest cannot be read"):
        draw(model, out)
    assert draw(model, out, overwrite=True) == Sampled(N, 0)
    assert ("removed 80 images" in capsys.readouterr().err) == (what in ("other samples", "fewer", "unfinished"))
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / numbered(900)).read_bytes() == photo
    (out / "notes.txt").unlink()
    (out / numbered(900)).unlink()
    assert digests(out) == digests(whole)


def test_overwrite_resumes_the_same_request(model: Model, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    (out / numbered(20)).unlink()
    assert draw(model, out, overwrite=True) == Sampled(16, 0)
    assert draw(model, out, overwrite=True) == Sampled(0, 0)


def test_a_batch_that_is_completed_leaves_what_is_there(model: Model, tmp_path: Path) -> None:
    """Somebody has retouched an image of a folder that grows. Seen to fail where the whole batch is written again."""
    draw(model, tmp_path, 20)
    Image.new("RGB", (16, 16), "red").save(tmp_path / numbered(17))
    before = (tmp_path / numbered(17)).read_bytes()
    draw(model, tmp_path, 30)
    assert (tmp_path / numbered(17)).read_bytes() == before


def test_every_image_is_marked(whole: Path) -> None:
    for path in whole.glob("*.png"):
        assert (read_mark(path) or {})["command"] == "sample"
