"""Saved features: whole or made again, whatever ended the run that made them."""

import errno
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.metrics import extract_features, feature_file
from ggm_image.metrics.feature_cache import FeatureCache
from ggm_image.metrics.feature_file import FeatureMatrix, Features, open_features
from tests.features import NoiseImages, means_extractor, rows_of

N = 37


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract_features, "CHUNK", 8)


def placed(x: Tensor) -> Tensor:
    """Features that depend on the batch's size and on the place in it, as those of any kernel may in the last bits."""
    return x.float().mean(dim=(2, 3)) + torch.arange(len(x))[:, None] + 1000 * len(x)


def run(side: NoiseImages, folder: Path | None, network: Callable[[Tensor], Tensor] | None = None) -> Features:
    return extract_features.extract_features(side, means_extractor(network), statistics=folder, batch_size=4, workers=2)


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def stop_at(index: int):
    def before(k: int) -> None:
        if k == index:
            raise KeyboardInterrupt

    return before


@pytest.fixture
def whole(tmp_path: Path) -> tuple[bytes, dict]:
    """What an undisturbed run leaves."""
    run(NoiseImages(N), tmp_path / "whole")
    folder = only(tmp_path / "whole")
    return (folder / "features.npy").read_bytes(), json.loads((folder / "features.json").read_bytes())


def test_rows(tmp_path: Path) -> None:
    """A folder, a temporary file, and NumPy on its own say the same."""
    side = NoiseImages(N)
    saved, temporary = run(side, tmp_path), run(side, None)
    images = [side.picture(k).double() for k in range(N)]
    np.testing.assert_allclose(saved.matrix[:], [p.mean(dim=(1, 2)).numpy() for p in images], rtol=1e-6)
    assert saved.rows.tobytes() == temporary.rows.tobytes()
    assert np.load(only(tmp_path) / "features.npy", mmap_mode="r").tobytes() == saved.rows.tobytes()
    assert saved.labels.tolist() == [k % 3 for k in range(N)]
    assert saved.sizes == {"5x4": N}
    strongest = [2 - int(p.mean(dim=(1, 2)).argmax()) for p in images]
    assert saved.rows["prediction"].tolist() == strongest
    assert saved.of_class("green")[1:3].tolist() == saved.matrix[np.array([4, 7])].tolist()
    assert [path.name for path in sorted(only(tmp_path).iterdir())] == ["features.json", "features.npy"]


def test_a_part_made_after_all_were_joined_is_removed(tmp_path: Path) -> None:
    """By a process that was killed then. Seen to fail where only the process that joins the parts removes them."""
    run(NoiseImages(N), tmp_path)
    before = {path.name for path in only(tmp_path).iterdir()}
    for name in ("rows-000000008-000000016.part", ".features.npy.0123abcd.tmp"):
        (only(tmp_path) / name).write_bytes(b"late")
    run(NoiseImages(N), tmp_path)
    assert {path.name for path in only(tmp_path).iterdir()} == before


@pytest.mark.parametrize("at", [0, 1, 8, 9, 30, 36])
def test_an_interrupted_run_is_gone_on_with(at: int, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    """The same bytes, and no row is made twice that was finished; what a killed process leaves is removed."""
    with pytest.raises(KeyboardInterrupt):
        run(NoiseImages(N, stop_at(at)), tmp_path / "again")
    done = at // 8 * 8
    if done:
        folder = only(tmp_path / "again")
        assert [path.name for path in sorted(folder.iterdir())] == [
            f"rows-{k:09d}-{k + 8:09d}.part" for k in range(0, done, 8)
        ]
        (folder / ".rows-000000000-000000008.0123abcd.tmp.part").write_bytes(b"half a row")
        with pytest.raises(UserError, match=f"not finished .*{done // 8} parts"):
            open_features(folder)
    else:
        assert list((tmp_path / "again").iterdir()) == []
    side = NoiseImages(N)
    features = run(side, tmp_path / "again")
    assert side.asked == list(range(done, N))
    assert features.reused == done
    folder = only(tmp_path / "again")
    assert (folder / "features.npy").read_bytes() == whole[0]
    assert json.loads((folder / "features.json").read_bytes()) == whole[1]


def test_finished_features_are_found_again(tmp_path: Path) -> None:
    run(NoiseImages(N), tmp_path)
    side = NoiseImages(N)
    again = run(side, tmp_path)
    assert (side.asked, again.reused) == ([], N)
    assert open_features(only(tmp_path)).rows.tobytes() == again.rows.tobytes()


@pytest.mark.parametrize(("n", "more"), [(20, 37), (8, 37), (21, 22), (37, 20), (37, 8)])
def test_more_or_fewer_rows_of_the_same(n: int, more: int, tmp_path: Path) -> None:
    """Only what is new is made, to the same bytes as in one go, also where a batch or a part was cut short.

    Seen to fail with batches that are as short as the rows are few, and with rows that stand elsewhere in their batch.
    """
    run(NoiseImages(n), tmp_path / "again", placed)
    side = NoiseImages(more)
    features = run(side, tmp_path / "again", placed)
    assert side.asked == list(range(n, more))
    assert (len(features), features.reused) == (more, min(n, more))
    run(NoiseImages(more), tmp_path / "fresh", placed)
    fresh = only(tmp_path / "fresh")
    assert features.rows.tobytes() == open_features(fresh).rows.tobytes()
    assert len(open_features(only(tmp_path / "again"))) == max(n, more)
    if more > n:
        for name in ("features.npy", "features.json"):
            assert (only(tmp_path / "again") / name).read_bytes() == (fresh / name).read_bytes()


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_shares(processes: int, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    """Number 0 joins what all have made, and makes what is missing; no row is made twice."""
    sides = [NoiseImages(N) for _ in range(processes)]
    parts = [
        extract_features.FeatureExtraction(side, means_extractor(), statistics=tmp_path / "again", batch_size=4)
        for side in sides
    ]
    for rank in range(processes - 1):  # the last one never comes
        parts[rank].make((rank, processes))
        assert sides[rank].asked == [k for k in range(N) if k // 8 % processes == rank]
    features = parts[0].finish()
    assert sorted(k for side in sides for k in side.asked) == list(range(N))
    assert (only(tmp_path / "again") / "features.npy").read_bytes() == whole[0]
    assert json.loads((only(tmp_path / "again") / "features.json").read_bytes()) == whole[1]
    parts[-1].make((processes - 1, processes))  # late: it makes its share for nothing
    late = parts[-1].finish()
    assert late.rows.tobytes() == features.rows.tobytes()


def test_joined_by_another_process(tmp_path: Path, whole: tuple[bytes, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last look and the joining all parts go into the file. Seen to fail without a second look."""
    first, second = (
        extract_features.FeatureExtraction(
            NoiseImages(N), means_extractor(), statistics=tmp_path / "again", batch_size=4
        )
        for _ in range(2)
    )
    first.make()
    chunk = FeatureCache._chunk

    def overtaken(store: FeatureCache, folder: Path, rows: range) -> bytes:
        if store is second.store and rows.start == 8:
            first.finish()
        return chunk(store, folder, rows)

    monkeypatch.setattr(FeatureCache, "_chunk", overtaken)
    assert second.finish().rows.tobytes() in whole[0]
    assert sorted(path.name for path in only(tmp_path / "again").iterdir()) == ["features.json", "features.npy"]


@pytest.mark.parametrize("place", [5, 50, 100, 200, -1])
def test_a_damaged_part_is_made_again(place: int, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    """One bit of its head, with the notes in it, or of its rows. Seen to fail with a hash of the rows alone."""
    with pytest.raises(KeyboardInterrupt):
        run(NoiseImages(N, stop_at(20)), tmp_path / "again")
    path = only(tmp_path / "again") / "rows-000000008-000000016.part"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    side = NoiseImages(N)
    with pytest.warns(UserWarning, match="rows-000000008.*the part is extracted again"):
        run(side, tmp_path / "again")
    assert side.asked == [*range(8, 16), *range(16, N)]
    assert (only(tmp_path / "again") / "features.npy").read_bytes() == whole[0]


def test_a_part_under_another_name(tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    """Rows of others, whole as they are. Seen to fail where a part's own hash is all that is looked at."""
    with pytest.raises(KeyboardInterrupt):
        run(NoiseImages(N, stop_at(20)), tmp_path / "again")
    parts = sorted(only(tmp_path / "again").iterdir())
    parts[0].write_bytes(parts[1].read_bytes())
    with pytest.warns(UserWarning, match="the part is extracted again"):
        run(NoiseImages(N), tmp_path / "again")
    assert (only(tmp_path / "again") / "features.npy").read_bytes() == whole[0]


@pytest.mark.parametrize("gone", ["features.json", "parts"])
def test_killed_while_more_rows_are_joined(gone: str, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    """The new file is there, and its record is not or the parts are still: nothing is made again."""
    run(NoiseImages(20), tmp_path / "again")
    folder = only(tmp_path / "again")
    record = (folder / "features.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        run(NoiseImages(N), tmp_path / "again")
    assert (folder / "rows-000000020-000000024.part").is_file()
    if gone == "features.json":
        (folder / "features.json").write_bytes(record)
    side = NoiseImages(N)
    run(side, tmp_path / "again")
    assert side.asked == []
    assert (folder / "features.npy").read_bytes() == whole[0]
    assert json.loads((folder / "features.json").read_bytes()) == whole[1]


@pytest.mark.parametrize(("byte", "kept"), [(10, N), (-1, 32), (-400, 16)])
def test_damage_is_named_and_mended(byte: int, kept: int, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    """One bit is enough. Seen to fail when only the file's length is looked at."""
    run(NoiseImages(N), tmp_path / "again")
    path = only(tmp_path / "again") / "features.npy"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="saved features are damaged"):
        open_features(path.parent)
    side = NoiseImages(N)
    with pytest.warns(UserWarning, match="its head" if kept == N else f"damaged .*from row {kept} on"):
        run(side, tmp_path / "again")
    assert side.asked == list(range(kept, N))
    assert path.read_bytes() == whole[0]


@pytest.mark.parametrize("how", ["protocol", "text", "notes", "number", "gone"])
def test_what_cannot_be_trusted_is_made_again(how: str, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    run(NoiseImages(N), tmp_path / "again")
    folder = only(tmp_path / "again")
    record = json.loads((folder / "features.json").read_bytes())
    if how == "protocol":
        record["protocol"]["features"]["sha256"] = "1" * 64
        (folder / "features.json").write_text(json.dumps(record))
    elif how == "number":  # seen to end in a traceback where the hash was shown
        record["protocol"]["features"]["sha256"] = 1e999
        (folder / "features.json").write_text(json.dumps(record))
    elif how == "text":
        (folder / "features.json").write_text("{")
    elif how == "notes":
        (folder / "features.json").write_text(json.dumps({**record, "notes": {}}))
    else:
        (folder / "features.npy").unlink()
    side = NoiseImages(N)
    with pytest.warns(UserWarning, match="extracted again"):
        run(side, tmp_path / "again")
    assert side.asked == list(range(N))
    assert (folder / "features.npy").read_bytes() == whole[0]


def test_a_full_disk_is_one_line_and_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third part does not reach the disk. Seen to fail with a part that gets its name before it is there."""
    sync, synced = os.fsync, []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written .*No space left"):
        run(NoiseImages(N), tmp_path)
    assert run(NoiseImages(N), tmp_path).reused == 16


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*Not a directory"):
        run(NoiseImages(N), tmp_path / "file")
    with pytest.raises(UserError, match="record of saved features cannot be read"):
        open_features(tmp_path)
    extractor = means_extractor(lambda x: x.float().mean(dim=(2, 3)).where(x[:, :1, 0, 0] > 100, float("nan")))
    with pytest.raises(UserError, match="must be finite .*image 1 of noise, 1 of a batch of 4"):
        extract_features.extract_features(NoiseImages(N), extractor, batch_size=4)
    with pytest.raises(UserError, match="batch size"):
        extract_features.extract_features(NoiseImages(N), means_extractor(), batch_size=0)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of 16 MB of features in 1 MB. Seen to fail when all rows are read at once."""
    monkeypatch.setattr(feature_file, "_READ", 1 << 14)
    np.save(tmp_path / "rows.npy", rows_of(np.random.default_rng(0).standard_normal((60_000, 64))))
    matrix = FeatureMatrix(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    tracemalloc.start()
    statistics = matrix.statistics()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert statistics.count == 60_000
    assert peak < 1e6
