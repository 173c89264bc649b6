"""A run that was interrupted continues bit for bit, and only as the run that it is."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.io.config_schema import load_config
from ggm_image.io.files import held
from ggm_image.training import loop
from ggm_image.training.checkpoint import CHECKPOINT
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.dataset import fit_to_cache, load_tokens
from ggm_image.training.run import train_generator
from ggm_image.training.run_record import FREE_TO_CHANGE, generator_record
from ggm_image.training.trainer import GeneratorTrainer
from tests.training.toy import log_of, write_cache

pytestmark = pytest.mark.usefixtures("no_curves")


def test_one_process_at_a_time_trains_a_run(run: Callable[..., Path], tmp_path: Path) -> None:
    run("run", "train.steps=2")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with held(tmp_path / "run"), pytest.raises(UserError, match="another process is at work in the folder"):
        run("run", "train.steps=4", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run("run", "train.steps=4", resume=True)


def test_a_cut_run_resumes_bit_for_bit(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seen to fail when any one of optimizer, averages, data order or generator is left out of `load_state_dict`.
    run("whole")
    step = GeneratorTrainer.train_step

    def cut(self: GeneratorTrainer) -> dict[str, object]:
        values = step(self)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return values

    monkeypatch.setattr(GeneratorTrainer, "train_step", cut)
    monkeypatch.setattr(loop, "plot_at_the_end", lambda out: pytest.fail("no time for curves"))
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.undo()
    with pytest.raises(UserError, match="add --resume"):
        run("cut")
    run("cut", resume=True)
    whole, pieces = (torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("whole", "cut"))
    assert pieces["step"] == 12
    for part in ("network", "ema"):
        for name, value in whole[part].items():
            assert torch.equal(value, pieces[part][name]), name
    timed = {"images_per_second", "minutes"}
    a, b = (
        [{k: v for k, v in row.items() if k not in timed} for row in log_of(tmp_path / n)] for n in ("whole", "cut")
    )
    assert a == b


def test_what_an_earlier_process_had_no_time_to_measure_is_measured(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends a measurement at once; the row comes at the resume, and once."""
    run("whole")
    measure = GeneratorTrainer._validate

    def cut(self: GeneratorTrainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        measure(self)

    monkeypatch.setattr(GeneratorTrainer, "_validate", cut)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)["step"] == 6
    assert not any(row["nll"] for row in log_of(tmp_path / "cut"))
    for _ in range(2):
        run("cut", resume=True)
        whole, pieces = ([(row["step"], row["nll"]) for row in log_of(tmp_path / n)] for n in ("whole", "cut"))
        assert pieces == whole


def test_a_run_is_resumed_only_as_what_it_is(run: Callable[..., Path], tmp_path: Path) -> None:
    """Seen to fail at f183d35: other class names on the old embeddings, another objective, betas of no effect."""
    run("run", "train.steps=2", "train.validate_every=0")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for override, message in (
        ("network.depth=1", r"network\.depth must be .*\(1, the checkpoint has 2\)"),
        ("objective.name=cross-entropy", r"objective\.name must .*\(cross-entropy, the checkpoint has binary\)"),
        ("objective.masked=0.5", r"objective\.masked must .*\(0.5, the checkpoint has 0.3\)"),
        ("train.betas=[0.8,0.9]", r"train\.betas must .*\(\[0.8, 0.9\], the checkpoint has \[0.9, 0.98\]\)"),
        ("train.weight_decay=0.2", r"train\.weight_decay must .*\(0.2, the checkpoint has 0.05\)"),
        ("train.batch_size=9", r"train\.batch_size must .*\(9, the checkpoint has 8\)"),
        ("train.seed=4", r"train\.seed must .*\(4, the checkpoint has 0\)"),
        ("data.holdout=3", r"data\.holdout must .*\(3, the checkpoint has 4\)"),
    ):
        with pytest.raises(UserError, match=message):
            run("run", override, resume=True)
    caches = {
        r"data\.class_names must .*\(\['cat', 'dog'\], the checkpoint has \['left', 'right'\]\)": {
            "names": ("cat", "dog")
        },
        r"data\.rows must .*\(56, the checkpoint has 36\)": {"count": 60},
        r"data\.sha256 must": {"seed": 1},
    }
    for number, (message, changes) in enumerate(caches.items()):
        with pytest.raises(UserError, match=message):
            run("run", resume=True, data=write_cache(tmp_path / f"tokens{number}", **changes))
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_resume_says_what_it_changes(config: Path, cache: Path, tmp_path: Path) -> None:
    """And finds the same tokens elsewhere, in other shards."""
    said: list[str] = []

    def run(data: Path, *overrides: str, resume: bool = False) -> None:
        train_generator(
            config, data, tmp_path / "run", overrides=overrides, resume=resume, device="cpu", report=said.append
        )

    run(cache, "train.steps=2")
    said.clear()
    moved = write_cache(tmp_path / "elsewhere", shard_size=7)
    run(moved, "train.steps=4", "train.learning_rate=1e-4", resume=True)
    assert "resume: changed since the checkpoint: train.steps 2 -> 4, train.learning_rate 0.001 -> 0.0001" in said
    # as an earlier version has written it
    state = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    del state["record"]
    torch.save(state, tmp_path / "run" / CHECKPOINT)
    said.clear()
    run(moved, "train.steps=5", "train.learning_rate=1e-4", resume=True)
    assert any("earlier version and does not record method, data.rows, data.sha256" in line for line in said)
    torch.save(state, tmp_path / "run" / CHECKPOINT)
    with pytest.raises(UserError, match=r"data\.class_names must"):  # the exported model has the names
        run(write_cache(tmp_path / "others", names=("cat", "dog")), resume=True)
    with pytest.raises(UserError, match=r"objective\.name must"):
        run(moved, "objective.name=cross-entropy", resume=True)


def test_every_entry_of_a_run_is_either_compared_or_free(config: Path, cache: Path) -> None:
    """Seen to fail with an entry of the config renamed: what is listed as free must exist."""
    settings = load_config(GeneratorConfig, config)
    fit_to_cache(settings, TokenCache.open(cache).manifest, cache)
    training, val_set = load_tokens(settings, TokenCache.open(cache))
    record = generator_record(settings, class_names=["a", "b"], training=training, val_set=val_set, method="x")
    assert record.keys() >= FREE_TO_CHANGE
    compared = {name for name in record.keys() - FREE_TO_CHANGE if not name.startswith(("network.", "objective."))}
    assert compared == {
        "method",
        "tokenizer.name",
        "tokenizer.sha256",
        *(f"data.{name}" for name in ("class_names", "rows", "sha256", "val", "holdout")),
        *(
            f"train.{name}"
            for name in ("batch_size", "optimizer", "weight_decay", "betas", "ema_decay", "class_dropout", "seed")
        ),
    }
