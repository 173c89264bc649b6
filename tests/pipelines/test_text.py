"""Models of text: known bytes stay, texts depend on their own seed alone, long texts go in windows."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ggm_image import load_model
from ggm_image.errors import UserError
from ggm_image.pipelines.text import TextModel
from ggm_image.pipelines.text_gaps import Gap, plan_windows, split_gaps
from tests.models import tiny_bpe, tiny_text_model_folder

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
    known, after_space = model.template(split_gaps(text))
    assert len(after_space) == 0  # a space is a byte like any other
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


def test_gaps(model: TextModel) -> None:
    def gaps(text: str | bytes, **options: object) -> np.ndarray:
        return model.template(split_gaps(text, **options))[0]  # type: ignore[arg-type]

    assert split_gaps("a____b") == [b"a", Gap(4), b"b"]
    assert split_gaps("____", length=2) == [Gap(4, 2)]
    assert gaps("a____b").tolist() == [97, -1, -1, -1, -1, 98]
    assert gaps("a____b", length=2).tolist() == [97, -1, -1, 98]
    assert gaps("a_b#c", mask="#").tolist() == [97, 95, 98, -1, 99]
    assert gaps("é____", length=1).tolist() == [0xC3, 0xA9, -1]
    assert gaps("aééb", mask="é").tolist() == [97, -1, -1, 98]
    assert gaps(b"____\xff").tolist() == [-1] * 4 + [255]
    assert gaps("____ and ____").tolist() == [-1] * 4 + list(b" and ") + [-1] * 4
    for text, mask in [("snake_case", None), ("abc", "#")]:
        with pytest.raises(UserError, match="must have a gap"):
            split_gaps(text, mask=mask)
    with pytest.raises(UserError, match="one character"):
        split_gaps("abc", mask="ab")
    with pytest.raises(UserError, match="length of a gap"):
        split_gaps("a____", length=0)


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


@pytest.fixture(scope="module")
def pieces_model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("pieces")
    tokenizer = tiny_bpe(folder)
    saved = tiny_text_model_folder(folder, length=LENGTH, tokenizer=tokenizer)
    tokenizer.path.unlink()  # the model has its own copy
    return load_model(saved, device="cpu")


@pytest.mark.parametrize("preset", ["fast", "best", "exact"])
def test_known_bytes_stay_with_larger_pieces(pieces_model: TextModel, preset: str) -> None:
    for before, after in [
        (b"the cat ", b" on the mat"),
        (b"th", b"t\xff sat"),
        (b"", b"the mat"),
        (b"the cat on the ", b""),
    ]:
        for answer in pieces_model.infill(before + b"______" + after, n=3, preset=preset, seed=1):
            assert answer.startswith(before)
            assert answer.endswith(after)
            assert len(answer) > len(before) + len(after)


def test_a_space_before_a_gap_belongs_to_the_word_in_the_gap(pieces_model: TextModel) -> None:
    tokenizer = pieces_model.tokenizer
    known, after_space = pieces_model.template(split_gaps("the cat ____ the mat", length=2))
    before, after = tokenizer.codes("the cat").tolist(), tokenizer.codes(" the mat").tolist()
    assert known.tolist() == [*before, -1, -1, *after]  # no token for the space
    assert after_space.tolist() == [len(before)]
    words = {code for code in tokenizer.code_bytes if len(code) > 1 and code[:1] == b" "}
    for answer in pieces_model.infill("the cat ____ the mat", n=8, length=1, preset="best"):
        assert answer[len("the cat") : -len(" the mat")] in words
    known, after_space = pieces_model.template(split_gaps("the ca____", length=1))
    assert (known.tolist(), after_space.tolist()) == ([*tokenizer.codes("the ca").tolist(), -1], [])


def test_a_gap_is_as_long_as_its_mark_in_tokens_of_the_text(pieces_model: TextModel) -> None:
    text = "the cat sat on the mat."
    tokens = len(pieces_model.tokenizer.codes(text))
    known, _ = pieces_model.template(split_gaps(text + "#" * len(text), mask="#"))
    assert (known < 0).sum() == tokens < len(text)


def test_signal_and_samples_of_larger_pieces(pieces_model: TextModel) -> None:
    text = b"the cat sat on the mat. " * 5
    found = pieces_model.signal(text)
    assert found.shape == (len(text),)
    lengths = pieces_model.tokenizer.code_lengths[pieces_model.tokenizer.codes(text)]
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        assert (found[start:end] == found[start]).all()  # all bytes of a token have its probability
    assert len(pieces_model.sample(3, length=40, preset="fast")) == 3


def test_a_gap_gets_the_calls_of_a_whole_row(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours that are sampled in one call do not see each other."""
    blocks, fill = [], TextModel._fill_window

    def noted(self, known, first, seed, settings, after_space):
        blocks.append(settings.block)
        return fill(self, known, first, seed, settings, after_space)

    monkeypatch.setattr(TextModel, "_fill_window", noted)
    model.infill("the cat ________", preset="fast")  # half of the row; 8 sites a call by the preset
    model.infill("the cat ____", preset="fast", length=1)
    model.infill("the cat ________", preset="fast", keep_block=True)
    model.infill("the cat ________", preset="fast", block=5)
    model.sample(1, preset="fast")
    assert blocks == [4, 1, 8, 5, 8]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_saved_model_can_be_moved(kind: str, tmp_path: Path) -> None:
    """It has its tokenizer's file, and no path of the folder that it came from; an error leaves nothing behind."""
    tokenizer = None
    if kind == "bpe":
        pytest.importorskip("tokenizers")
        tokenizer = tiny_bpe(tmp_path)
    folder = tiny_text_model_folder(tmp_path, length=LENGTH, tokenizer=tokenizer)
    (folder / "README.md").write_text("mine")
    model = load_model(folder, modality="text", device="cpu")
    saved = model.save(tmp_path / "saved")
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    own = {"tokenizer/tokenizer.json"} if kind == "bpe" else set()
    assert files == {"README.md", "config.yaml", "model.safetensors"} | own
    assert str(tmp_path) not in (saved / "config.yaml").read_text()
    with pytest.raises(UserError, match="new or empty"):
        model.save(saved)
    if kind == "bpe":
        model.tokenizer.path.write_text("changed")
        with pytest.raises(UserError, match="tokenizer changed on disk"):
            model.save(tmp_path / "again")
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match="changed on disk"):
        model.save(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    shutil.rmtree(folder)
    moved = load_model(saved.rename(tmp_path / "moved"), modality="text", device="cpu")
    assert moved.sample(2, seed=1, preset="fast") == model.sample(2, seed=1, preset="fast")
