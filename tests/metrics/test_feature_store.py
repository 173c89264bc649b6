"""Saved features: whole or made again, whatever ended the run that made them."""

import errno
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ggm_image.errors import UserError
from ggm_image.metrics import feature_rows, measure
from ggm_image.metrics.feature_rows import FeatureMatrix, Features, open_features
from ggm_image.metrics.feature_store import FeatureStore
from tests.features import NoisePictures, means_extractor, rows_of

N = 37


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CHUNK", 8)


def run(side: NoisePictures, folder: Path | None) -> Features:
    return measure.measure(side, means_extractor(), statistics=folder, batch_size=4, workers=2)


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
    run(NoisePictures(N), tmp_path / "whole")
    folder = only(tmp_path / "whole")
    return (folder / "features.npy").read_bytes(), json.loads((folder / "features.json").read_bytes())


def test_rows(tmp_path: Path) -> None:
    """A folder, a temporary file, and NumPy on its own say the same."""
    side = NoisePictures(N)
    saved, temporary = run(side, tmp_path), run(side, None)
    pictures = [side.picture(k).double() for k in range(N)]
    np.testing.assert_allclose(saved.matrix[:], [p.mean(dim=(1, 2)).numpy() for p in pictures], rtol=1e-6)
    assert saved.rows.tobytes() == temporary.rows.tobytes()
    assert np.load(only(tmp_path) / "features.npy", mmap_mode="r").tobytes() == saved.rows.tobytes()
    assert saved.labels.tolist() == [k % 3 for k in range(N)]
    assert saved.sizes == {"5x4": N}
    strongest = [2 - int(p.mean(dim=(1, 2)).argmax()) for p in pictures]
    assert saved.rows["prediction"].tolist() == strongest
    assert saved.of_class("green")[1:3].tolist() == saved.matrix[np.array([4, 7])].tolist()
    assert [path.name for path in sorted(only(tmp_path).iterdir())] == ["features.json", "features.npy"]


@pytest.mark.parametrize("at", [0, 1, 8, 9, 30, 36])
def test_an_interrupted_run_is_gone_on_with(at: int, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    """The same bytes, and no row is made twice that was finished; also if the end of the file is torn.

    Seen to fail when the file is not cut back to the last finished chunk, and with chunks that are no whole batches.
    """
    with pytest.raises(KeyboardInterrupt):
        run(NoisePictures(N, stop_at(at)), tmp_path / "again")
    done = at // 8 * 8
    if done:
        folder = only(tmp_path / "again")
        assert [path.name for path in sorted(folder.iterdir())] == ["features.json", "features.partial"]
        with open(folder / "features.partial", "ab") as file:
            file.write(b"half a row")
        with pytest.raises(UserError, match=f"not finished .*{done} of 37 rows"):
            open_features(folder)
    else:
        assert list((tmp_path / "again").iterdir()) == []
    side = NoisePictures(N)
    features = run(side, tmp_path / "again")
    assert side.asked == list(range(done, N))
    assert features.reused == done
    folder = only(tmp_path / "again")
    assert (folder / "features.npy").read_bytes() == whole[0]
    assert json.loads((folder / "features.json").read_bytes()) == whole[1]


def test_finished_features_are_found_again(tmp_path: Path) -> None:
    run(NoisePictures(N), tmp_path)
    side = NoisePictures(N)
    again = run(side, tmp_path)
    assert (side.asked, again.reused) == ([], N)
    assert open_features(only(tmp_path)).rows.tobytes() == again.rows.tobytes()
    run(NoisePictures(N - 1), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("byte", "kept"), [(10, 0), (-1, 32), (-400, 16)])
def test_damage_is_named_and_mended(byte: int, kept: int, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    """One bit is enough. Seen to fail when only the file's length is looked at."""
    run(NoisePictures(N), tmp_path / "again")
    path = only(tmp_path / "again") / "features.npy"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="saved features are damaged"):
        open_features(path.parent)
    side = NoisePictures(N)
    with pytest.warns(UserWarning, match=f"damaged .*from row {kept} on"):
        run(side, tmp_path / "again")
    assert side.asked == list(range(kept, N))
    assert path.read_bytes() == whole[0]


@pytest.mark.parametrize("how", ["protocol", "text", "notes", "gone"])
def test_what_cannot_be_trusted_is_made_again(how: str, tmp_path: Path, whole: tuple[bytes, dict]) -> None:
    run(NoisePictures(N), tmp_path / "again")
    folder = only(tmp_path / "again")
    record = json.loads((folder / "features.json").read_bytes())
    if how == "protocol":
        record["protocol"]["features"]["sha256"] = "1" * 64
        (folder / "features.json").write_text(json.dumps(record))
    elif how == "text":
        (folder / "features.json").write_text("{")
    elif how == "notes":
        (folder / "features.json").write_text(json.dumps({**record, "notes": {}}))
    else:
        (folder / "features.npy").unlink()
    side = NoisePictures(N)
    with pytest.warns(UserWarning, match="made again"):
        run(side, tmp_path / "again")
    assert side.asked == list(range(N))
    assert (folder / "features.npy").read_bytes() == whole[0]


def test_a_full_disk_is_one_line_and_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third chunk does not reach the disk. Seen to fail with chunks that are named before they are there."""
    sync, synced = os.fsync, []

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == (only(tmp_path) / "features.partial").stat().st_ino:
            synced.append(descriptor)
            if len(synced) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written .*No space left"):
        run(NoisePictures(N), tmp_path)
    assert run(NoisePictures(N), tmp_path).reused == 16


def test_two_runs_into_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first writes."""
    pytest.importorskip("fcntl")
    extractor, side = means_extractor(), NoisePictures(N)
    protocol = measure.protocol_of(side, extractor, 4)
    notes = {"source": "noise", "versions": {}}
    first = FeatureStore(protocol, notes, tmp_path / "store")
    first.open()
    first.append(np.zeros(8, first.type))
    second = FeatureStore(protocol, notes, tmp_path / "store")
    with pytest.raises(UserError, match="by another process"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*Not a directory"):
        run(NoisePictures(N), tmp_path / "file")
    with pytest.raises(UserError, match="record of saved features cannot be read"):
        open_features(tmp_path)
    extractor = means_extractor(lambda x: x.float().mean(dim=(2, 3)).where(x[:, :1, 0, 0] > 100, float("nan")))
    with pytest.raises(UserError, match="must be finite .*picture 1 of noise, 1 of a batch of 4"):
        measure.measure(NoisePictures(N), extractor, batch_size=4)
    with pytest.raises(UserError, match="batch size"):
        measure.measure(NoisePictures(N), means_extractor(), batch_size=0)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of 16 MB of features in 1 MB. Seen to fail when all rows are read at once."""
    monkeypatch.setattr(feature_rows, "_READ", 1 << 14)
    np.save(tmp_path / "rows.npy", rows_of(np.random.default_rng(0).standard_normal((60_000, 64))))
    matrix = FeatureMatrix(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    tracemalloc.start()
    statistics = matrix.statistics()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert statistics.count == 60_000
    assert peak < 1e6
