"""The report of a cache: figures that can be worked out by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ggm_image.data.encode import encode
from ggm_image.data.sources.image_files import open_source
from ggm_image.errors import UserError
from ggm_image.image.io import open_image
from ggm_image.image.preprocess import preprocess
from ggm_image.metrics.feature_extractors import Extractor
from ggm_image.metrics.fid import FeatureStatistics, frechet_distance
from ggm_image.metrics.psnr_ssim import psnr_each
from ggm_image.metrics.reconstruction import codebook_use, report
from tests.conftest import MeanTokenizer


def test_codebook_use() -> None:
    use = codebook_use(torch.tensor([[[0, 0], [1, 1]], [[2, 2], [3, 3]]]), 16)
    assert use["share"] == 0.25
    assert use["perplexity"] == pytest.approx(4)
    assert codebook_use(torch.tensor([7, 7]), 8)["perplexity"] == pytest.approx(1)
    assert codebook_use(torch.tensor([0, 0, 0, 1]), 2)["perplexity"] == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


# Seen to fail with rows taken for source items: after a skipped image, originals and tokens no longer matched.
def test_report_compares_each_row_with_its_own_picture(class_folder: Path, tmp_path: Path) -> None:
    (class_folder / "ant" / "1.png").write_text("text")
    source, tokenizer = open_source(class_folder), MeanTokenizer()
    cache = encode(source, tmp_path / "cache", tokenizer, skip_bad=True, flip=True)
    result = report(source, cache, tokenizer, batch_size=4, seed=3)

    images = torch.stack([source[k] for k in range(12) if k != 1])
    images = torch.cat([images, images.flip(-1)])
    decoded = tokenizer.decode(cache.tokens(range(22)))
    each = psnr_each(images, ((decoded + 1) * 127.5).round().to(torch.uint8))
    assert result["images"] == 22
    assert result["psnr_db"]["mean"] == pytest.approx(float(each.mean()))
    assert result["psnr_db"]["min"] == pytest.approx(float(each.min()))
    assert result["codebook"]["tokens"] == 22 * 4
    assert json.loads((tmp_path / "cache" / "report.json").read_text()) == result


def test_the_picture_shows_pairs(flat_folder: Path, tmp_path: Path) -> None:
    source, tokenizer = open_source(flat_folder), MeanTokenizer()
    cache = encode(source, tmp_path / "cache", tokenizer)
    assert report(source, cache, tokenizer, images=4)["images"] == 4
    sheet = open_image(tmp_path / "cache" / "report.png")
    assert sheet.shape == (3, 96, 4 * 2 * 96 + 3 * 8)
    # The report's own files do not stop the cache from being read or resumed.
    assert len(encode(source, tmp_path / "cache", tokenizer)) == 5


def test_chequered_cells_of_originals_and_reconstructions(tmp_path: Path) -> None:
    """Flat cells lose a chessboard; a decoder that adds one to a quarter of the cells is found out."""

    class Chequering(MeanTokenizer):
        def decode_indices(self, tokens: Tensor) -> Tensor:
            y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
            board = (1.0 - 2 * ((x + y) % 2)) * (x < 4)
            return super().decode_indices(tokens) + 0.5 * board

    folder = tmp_path / "images"
    folder.mkdir()
    y, x = np.mgrid[:16, :16]
    Image.fromarray(np.where((x + y) % 2, 200, 50).astype(np.uint8)).save(folder / "a.png")
    Image.fromarray(np.full((16, 16), 128, np.uint8)).save(folder / "b.png")
    source, found = open_source(folder), {}
    for tokenizer in (MeanTokenizer(image_size=16), Chequering(image_size=16)):
        cache = encode(source, tmp_path / type(tokenizer).__name__, tokenizer)
        found[type(tokenizer)] = report(source, cache, tokenizer)["chequered"]
    assert found[MeanTokenizer]["originals"] == found[Chequering]["originals"] == {"cells": 0.5, "images": 0.5}
    assert found[MeanTokenizer]["reconstructions"] == {"cells": 0.0, "images": 0.0}
    assert found[Chequering]["reconstructions"] == {"cells": 0.25, "images": 1.0}


def mean_colours() -> Extractor:
    """Features that are known: the three mean colours."""
    return Extractor(
        name="colours",
        title="FD (colours)",
        sha256=None,
        dimension=3,
        resize="none",
        device=torch.device("cpu"),
        prepare=lambda image: image,
        network=lambda images: images.double().mean(dim=(2, 3)),
    )


def test_the_distance_is_that_of_all_pictures(class_folder: Path, tmp_path: Path) -> None:
    """Seen to fail with the reconstructions on both sides."""
    source, tokenizer = open_source(class_folder), MeanTokenizer()
    cache = encode(source, tmp_path / "cache", tokenizer)
    found = report(source, cache, tokenizer, batch_size=5, extractor=mean_colours())["frechet"]
    images = torch.stack([source[k] for k in range(12)])
    decoded = ((tokenizer.decode(cache.tokens(range(12))) + 1) * 127.5).round().to(torch.uint8)
    sides = [FeatureStatistics.of(side.double().mean(dim=(2, 3)).numpy()) for side in (images, decoded)]
    assert found["value"] == pytest.approx(frechet_distance(*sides))
    assert found["value"] > 1
    assert (found["metric"], found["warnings"]) == ("rFD (colours)", [])
    few = report(source, cache, tokenizer, images=3, extractor=mean_colours())["frechet"]
    assert "singular" in few["warnings"][0]


def test_the_excess_over_a_reference(class_folder: Path, flat_folder: Path, tmp_path: Path) -> None:
    """Seen to fail with the originals taken for the reconstructions, and with the reference at its own size."""
    source, reference, tokenizer = open_source(class_folder), open_source(flat_folder), MeanTokenizer(image_size=16)
    cache = encode(source, tmp_path / "cache", tokenizer)
    corner = mean_colours()
    corner = replace(corner, network=lambda images: images[:, :, :5, :5].double().mean(dim=(2, 3)))
    settings: dict[str, Any] = {"batch_size": 5, "images": 9, "seed": 2, "extractor": corner}
    found = report(source, cache, tokenizer, reference=reference, **settings)["frechet"]
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(2))[:9].tolist()
    images, others = ([preprocess(s[k], 16) for k in which] for s, which in ((source, rows), (reference, range(5))))
    decoded = ((tokenizer.decode(cache.tokens(rows)) + 1) * 127.5).round().to(torch.uint8)
    sides = [FeatureStatistics.of(corner(side)) for side in (images, decoded, others)]
    originals, reconstructions = (frechet_distance(side, sides[2]) for side in sides[:2])
    expected = {"originals": originals, "reconstructions": reconstructions, "excess": reconstructions - originals}
    given = found["reference"]
    assert {name: given[name] for name in expected} == pytest.approx(expected)
    assert (given["images"], given["source"], given["metric"]) == (5, str(flat_folder), "FD (colours)")
    assert abs(given["excess"]) > 1
    assert found["value"] == pytest.approx(frechet_distance(*sides[:2]))
    assert "reference" not in report(source, cache, tokenizer, **settings)["frechet"]
    with pytest.raises(UserError, match="a reference needs features"):
        report(source, cache, tokenizer, reference=reference)


def test_the_worst_pictures_come_first(class_folder: Path, tmp_path: Path) -> None:
    source, tokenizer = open_source(class_folder), MeanTokenizer()
    cache = encode(source, tmp_path / "cache", tokenizer, flip=True)
    worst = report(source, cache, tokenizer, batch_size=7, seed=1)["worst"]
    images = torch.stack([source[k] for k in range(12)])
    decoded = ((tokenizer.decode(cache.tokens(range(12))) + 1) * 127.5).round().to(torch.uint8)
    each = psnr_each(images, decoded).tolist()
    assert len(worst) == 16
    assert [entry["psnr_db"] for entry in worst] == pytest.approx(sorted(each * 2)[:16])
    assert {entry["name"] for entry in worst[:2]} == {source.names[int(np.argmin(each))]}
    sheet = open_image(tmp_path / "cache" / "worst.png")
    assert sheet.shape == (3, 4 * 96 + 3 * 8, 4 * 2 * 96 + 3 * 8)
