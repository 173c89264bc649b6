"""Models of text: known bytes stay, texts depend on their own seed alone, long texts go in windows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ggm_image import load_model
from ggm_image.errors import UserError
from ggm_image.pipelines.text import TextModel, gaps, plan_windows
from tests.models import tiny_text_model_folder

LENGTH = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return load_model(
        tiny_text_model_folder(tmp_path_factory.mktemp("model"), length=LENGTH), modality="text", device="cpu"
    )


def test_loaded_by_what_it_makes(model: TextModel) -> None:
    assert isinstance(model, TextModel)
    assert (model.modality, model.length) == ("text", LENGTH)


def test_a_modality_that_is_asked_for_is_checked(tmp_path: Path) -> None:
    folder = tiny_text_model_folder(tmp_path, length=LENGTH)
    assert load_model(folder, modality="text", device="cpu").length == LENGTH
    with pytest.raises(UserError, match="must be of modality 'image' .*pass modality='text'"):
        load_model(folder, modality="image", device="cpu")


@pytest.mark.parametrize("preset", ["fast", "best", "exact"])
@pytest.mark.parametrize(
    "text", [b"It \xffwas ____ of", b"____", b"a long text, ____ longer than a row, ________ twice"]
)
def test_every_known_byte_stays(model: TextModel, preset: str, text: bytes) -> None:
    known = gaps(text)
    for answer in model.infill(text, n=2, preset=preset, seed=3):
        assert len(answer) == len(text)
        found = np.frombuffer(answer, np.uint8)
        assert (found[known >= 0] == known[known >= 0]).all()


def test_a_text_depends_on_its_own_seed_alone(model: TextModel) -> None:
    many = model.sample(model.kernel_batch + 2, length=5, seed=1, preset="fast")
    assert model.sample(2, length=5, seed=1, preset="fast") == many[:2]
    assert len(set(many)) == len(many)
    assert model.sample(2, length=5, seed=2, preset="fast") != many[:2]


@pytest.mark.parametrize("length", [1, LENGTH, 3 * LENGTH + 1])
def test_samples_of_any_length(model: TextModel, length: int) -> None:
    assert [len(text) for text in model.sample(2, length=length, preset="fast")] == [length] * 2


def test_a_short_text_lies_in_a_row_that_is_masked_around_it(model: TextModel) -> None:
    """The network sees what training shows it: a whole row, and no token that nobody knows."""
    seen = []

    def network(tokens, levels, sites, labels, grid):
        seen.append((tokens.clone(), levels.clone(), sites.clone(), grid))
        return torch.zeros(len(tokens), sites.shape[-1], 256)

    changed = TextModel.__new__(TextModel)
    changed.__dict__.update(model.__dict__)
    changed.network = network  # type: ignore[assignment]
    tokens = torch.arange(6).expand(2, -1)
    changed._denoiser(6)(tokens, torch.full((2, 6), 0.5), torch.tensor([0, 5]), None)
    ((row, levels, sites, grid),) = seen
    assert grid == (1, LENGTH)
    assert row[0].tolist() == [256] * 5 + list(range(6)) + [256] * 5
    assert levels[0].tolist() == [0] * 5 + [0.5] * 6 + [0] * 5
    assert sites.tolist() == [5, 10]


@pytest.mark.parametrize("total", [1, 15, 16, 17, 40, 200])
def test_windows_fill_everything_from_left_to_right(total: int) -> None:
    for seed in range(5):
        unknown = np.random.default_rng(seed).random(total) < 0.3
        todo = unknown.copy()
        for start, end, kept in plan_windows(unknown, LENGTH):
            assert 0 <= start < kept <= end <= total
            assert end - start == min(LENGTH, total)
            assert not todo[:start].any()  # everything before is known by now
            todo[start:kept] = False
        assert not todo.any()
    assert plan_windows(np.zeros(total, dtype=bool), LENGTH) == []


def test_gaps() -> None:
    assert gaps("a____b").tolist() == [97, -1, -1, -1, -1, 98]
    assert gaps("a____b", length=2).tolist() == [97, -1, -1, 98]
    assert gaps("a_b#c", mask="#").tolist() == [97, 95, 98, -1, 99]
    assert gaps("é____", length=1).tolist() == [0xC3, 0xA9, -1]
    assert gaps("aééb", mask="é").tolist() == [97, -1, -1, 98]
    assert gaps(b"____\xff").tolist() == [-1] * 4 + [255]
    for text, mask in [("snake_case", None), ("abc", "#")]:
        with pytest.raises(UserError, match="must have a gap"):
            gaps(text, mask=mask)
    with pytest.raises(UserError, match="one character"):
        gaps("abc", mask="ab")
    with pytest.raises(UserError, match="length of a gap"):
        gaps("a____", length=0)


def test_signal_of_texts_of_any_length(model: TextModel) -> None:
    for text in (b"a", b"0123456789abcdef", bytes(range(50))):
        found = model.signal(text)
        assert found.shape == (len(text),)
        assert ((found >= 0) & (found <= 1)).all()
    with pytest.raises(UserError, match="1 to"):
        model.signal(b"")


def test_wrong_requests(model: TextModel) -> None:
    with pytest.raises(UserError, match="the length"):
        model.sample(1, length=0)
    with pytest.raises(UserError, match="no such preset"):
        model.sample(1, preset="none")
    with pytest.raises(UserError, match="must have a gap"):
        model.infill("nothing is missing")
