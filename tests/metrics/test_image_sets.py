"""What stands on a side: the same images give the same features, from wherever they come."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ggm_image.data.decode import decode
from ggm_image.data.encode import encode
from ggm_image.data.sources.image_files import open_source
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.image.io import save_png
from ggm_image.io import outputs
from ggm_image.metrics.extract_features import extract_features, key_of, protocol_of
from ggm_image.metrics.feature_file import Features
from ggm_image.metrics.image_sets import (
    DecodedSet,
    ImageFileSet,
    ImageSet,
    SampledSet,
    SamplingRequest,
    kind_of,
    open_image_set,
)
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.sampler.settings import Settings
from tests.conftest import MeanTokenizer
from tests.features import means_extractor, paint

FAST = Settings(sweeps=1, block=8)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return load_model(model_folder)


def features_of(side: ImageSet | Features, batch_size: int = 5) -> np.ndarray:
    assert isinstance(side, ImageSet)
    return extract_features(side, means_extractor(), batch_size=batch_size).matrix[:]


def key(side: ImageSet | Features) -> str:
    assert isinstance(side, ImageSet)
    return key_of(protocol_of(side, means_extractor(), 5))


def test_folder_and_tar(class_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(class_folder, "pictures")
    folder, archived = open_image_set(class_folder), open_image_set(tmp_path / "set.tar")
    assert isinstance(archived, ImageFileSet)
    assert archived.labels == folder.labels == [0] * 4 + [1] * 5 + [2] * 3
    assert np.array_equal(features_of(folder), features_of(archived))


def test_token_cache(class_folder: Path, tmp_path: Path, mean_tokenizer: MeanTokenizer) -> None:
    """As the folder that `decode` writes. Seen to fail with rows of a block taken from the next one."""
    cache = encode(class_folder, tmp_path / "tokens", mean_tokenizer)
    decode(cache, tmp_path / "decoded", mean_tokenizer)
    side, folder = DecodedSet(cache, mean_tokenizer), open_image_set(tmp_path / "decoded")
    side.block = 7
    assert (side.labels, side.class_names) == (folder.labels, folder.class_names)
    assert np.array_equal(features_of(side), features_of(folder))


@pytest.mark.parametrize("batch_size", [3, 16, 64])
def test_model(batch_size: int, model: Model, tmp_path: Path) -> None:
    """As the images that it saves, in blocks that fit no batch.

    Seen to fail when every block starts at the seed's first image.
    """
    side = SampledSet(model, 37, seed=4, settings=FAST)
    for k, image in enumerate(model.sample(37, seed=4, settings=FAST)):
        save_png(image, tmp_path / f"{k:06d}.png")
    assert np.array_equal(features_of(side, batch_size), features_of(open_image_set(tmp_path)))
    assert [side.class_names[k] for k in side.labels[:4]] == ["cat", "dog", "ship", "cat"]


def test_model_of_one_class(model: Model) -> None:
    dogs = SampledSet(model, 6, classes="dog", seed=4, settings=FAST)
    assert dogs.labels == [1] * 6
    assert dogs.identity()["class"] == "dog"
    every = features_of(SampledSet(model, 6, seed=4, settings=FAST))
    # Image 1 of the seed is a dog on both sides.
    assert (features_of(dogs) == every).all(axis=1).tolist() == [False, True, False, False, True, False]


def test_classes_of_a_flat_folder(tmp_path: Path) -> None:
    """What `ggm-image sample` wrote beside its images is what was asked for."""
    paint(tmp_path, ["red", "green", "red"], classes=False)
    assert open_image_set(tmp_path).class_names == []
    (tmp_path / "manifest.json").write_text(json.dumps({"classes": ["red", "green", "red"]}))
    side = open_image_set(tmp_path)
    assert isinstance(side, ImageFileSet)
    assert (side.class_names, side.labels) == (["green", "red"], [1, 0, 1])
    before = key(side)
    (tmp_path / "manifest.json").write_text(json.dumps({"classes": ["red", "green", "green"]}))
    assert key(open_image_set(tmp_path)) != before


def test_classes_stay_with_their_images_when_one_is_left_out(tmp_path: Path) -> None:
    """Those of the manifest too, which counts the image that cannot be read."""
    paint(tmp_path, ["red", "green", "blue"], classes=False)
    (tmp_path / "manifest.json").write_text(json.dumps({"classes": ["red", "green", "blue"]}))
    (tmp_path / "000001.png").write_bytes(b"no image")
    side = open_image_set(tmp_path)
    assert isinstance(side, ImageFileSet)
    assert [reason.count("000001.png") for reason in side.leave_out_bad(workers=2)] == [1]
    assert [side.class_names[k] for k in side.labels] == ["red", "blue"]
    assert [side.name(k) for k in range(len(side))] == ["000000.png", "000002.png"]
    assert side.skipped == ["000001.png"]
    assert "manifest_sha256" in side.identity()
    assert features_of(side).argmax(axis=1).tolist() == [0, 2]
    assert side.leave_out_bad() == []


def test_classes_beyond_a_million_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names sort as text: 1000000.png comes before 999999.png. Here with names of two digits, and 102 of them.

    Seen to fail with classes in the order of names.
    """
    monkeypatch.setattr(outputs, "numbered", lambda k: f"{k:02d}.png")
    n, classes = 102, ("even", "odd")
    (tmp_path / "manifest.json").write_text(json.dumps({"classes": [classes[k % 2] for k in range(n)]}))
    for k in range(n):
        save_png(torch.full((3, 1, 1), k, dtype=torch.uint8), tmp_path / f"{k:02d}.png")
    side = open_image_set(tmp_path)
    assert isinstance(side, ImageFileSet)
    assert side.source.names.index("100.png") < side.source.names.index("11.png")
    assert side.class_names == list(classes)
    assert [int(name[:-4]) % 2 for name in side.source.names] == side.labels


def test_classes_of_files_that_are_not_numbered(tmp_path: Path) -> None:
    """By their place, as they were."""
    paint(tmp_path, ["red", "green", "red"], classes=False)
    (tmp_path / "manifest.json").write_text(json.dumps({"classes": ["red", "green", "red"]}))
    before = open_image_set(tmp_path)
    assert isinstance(before, ImageFileSet)
    (tmp_path / before.source.names[2]).rename(tmp_path / "renamed.png")
    after = open_image_set(tmp_path)
    assert isinstance(after, ImageFileSet)
    assert after.labels == before.labels == [1, 0, 1]


def test_model_of_classes_that_take_turns(model: Model) -> None:
    """Class k mod 2 for image k, in blocks too. Seen to fail with turns counted from each block's first."""
    side = SampledSet(model, 37, classes=["ship", "cat"], seed=4, settings=FAST)
    assert side.labels == [(2, 0)[k % 2] for k in range(37)]
    assert side.identity()["class"] == ["ship", "cat"]
    side.block = 5
    ships, cats = (features_of(SampledSet(model, 37, classes=name, seed=4, settings=FAST)) for name in ("ship", "cat"))
    expected = [(ships, cats)[k % 2][k] for k in range(37)]
    assert np.array_equal(features_of(side), expected)


def test_what_pictures_depend_on(class_folder: Path, tmp_path: Path, mean_tokenizer: MeanTokenizer) -> None:
    """Two images that change names: each file is of the same size and names as before.

    Seen to fail with the fingerprint of the names alone.
    """
    before = key(open_image_set(class_folder))
    assert key(ImageFileSet(open_source(class_folder))) == before
    cache = encode(class_folder, tmp_path / "tokens", mean_tokenizer)
    tokens = key(DecodedSet(cache, mean_tokenizer))
    first, second = sorted((class_folder / "bee").iterdir())[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert key(open_image_set(class_folder)) != before
    other = encode(class_folder, tmp_path / "others", mean_tokenizer)
    assert key(DecodedSet(other, mean_tokenizer)) != tokens


def test_what_samples_depend_on(model: Model) -> None:
    sides = [
        SampledSet(model, 20, settings=FAST),
        SampledSet(model, 20, settings=FAST, seed=1),
        SampledSet(model, 20, settings=FAST, classes="cat"),
        SampledSet(model, 20, settings=Settings(sweeps=1, block=4)),
    ]
    assert len({key(side) for side in sides}) == 4
    assert key(SampledSet(model, 21, settings=FAST)) == key(sides[0])
    identity = sides[0].identity()
    assert (identity["model_sha256"], identity["tokenizer_sha256"]) == (model.sha256, model.tokenizer.sha256)


def test_what_is_taken_for_what(
    class_folder: Path, tmp_path: Path, mean_tokenizer: MeanTokenizer, model_folder: Path
) -> None:
    encode(class_folder, tmp_path / "tokens", mean_tokenizer)
    extract_features(ImageFileSet(open_source(class_folder)), means_extractor(), statistics=tmp_path / "saved")
    (saved,) = (tmp_path / "saved").iterdir()
    kinds = [kind_of(p) for p in (class_folder, tmp_path / "tokens", model_folder, "model:cifar10", saved)]
    assert kinds == ["images", "tokens", "model", "model", "features"]
    (class_folder / "manifest.json").write_text(json.dumps({"classes": []}))
    assert kind_of(class_folder) == "images"
    request = SamplingRequest(n=5, seed=2, classes=1, preset="fast", changes={"block": 4})
    side = open_image_set(f"model:{model_folder}", request=request)
    assert isinstance(side, SampledSet)
    assert (len(side), side.seed, side.settings.block, side.labels) == (5, 2, 4, [1] * 5)
    assert len(open_image_set(saved)) == 12
    with pytest.raises(UserError, match="one set of features .*holds 1"):
        open_image_set(tmp_path / "saved")


def test_token_caches_that_are_refused(
    class_folder: Path, tmp_path: Path, mean_tokenizer: MeanTokenizer, model_folder: Path
) -> None:
    """Unfinished, of another tokenizer, of one that is not at hand, or damaged."""
    cache = encode(class_folder, tmp_path / "tokens", mean_tokenizer)
    with pytest.raises(UserError, match="was not found"):
        open_image_set(tmp_path / "tokens")
    with pytest.raises(UserError, match="the tokenizer that made it"):
        open_image_set(tmp_path / "tokens", tokenizer=model_folder.parent / "tokenizer")
    path = tmp_path / "tokens" / "tokens-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="shard is damaged"):
        DecodedSet(TokenCache.open(cache.folder), mean_tokenizer).identity()
    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(UserError, match="not finished"):
        open_image_set(tmp_path / "tokens")
