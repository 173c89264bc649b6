"""Ctrl-C and SIGTERM: a clean end between two steps, and an end within seconds inside a long one."""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ggm_image.training import signals as stopping
from ggm_image.training.run import train_generator
from ggm_image.training.trainer import GeneratorTrainer
from ggm_image.training.vqgan.run import train_tokenizer
from ggm_image.training.vqgan.trainer import TokenizerTrainer
from tests.training.test_run import CONFIG, write_cache
from tests.training.vqgan.test_run import CONFIG as TOKENIZER_CONFIG


def long_call() -> None:
    """Minutes in one call of C, which a signal does not interrupt and in which Python runs no handler."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)


def in_a_child(work: Callable[[], None], ready: Path, signals: list[tuple[float, int]]) -> tuple[int, float, str]:
    """Run ``work`` in a fork until it has made ``ready``, send signals at given seconds after that.

    Returns:
        The exit code, seconds from the first signal to the end, and what was printed.
    """
    log = ready.with_suffix(".txt")
    child = os.fork()
    if not child:
        sys.stderr = open(log, "w", encoding="utf-8")  # noqa: SIM115  pytest's own is the parent's
        try:
            work()
        except KeyboardInterrupt:
            os._exit(77)
        finally:
            os._exit(1)
    try:
        limit = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < limit and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        assert ready.exists(), log.read_text()
        start = time.monotonic()
        for seconds, number in signals:
            time.sleep(max(0.0, start + seconds - time.monotonic()))
            os.kill(child, number)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < start + 20:
            time.sleep(0.01)
        took = time.monotonic() - start
    finally:
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended[1]), took, log.read_text()


def test_signals_are_read_between_steps_and_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for give_up in (None, lambda: "never"):
        with stopping.GracefulStop(give_up=give_up, grace=60.0) as stop:
            assert not stop.wanted
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wanted
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.set_wakeup_fd(-1) == -1
    with stopping.GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_optional_work_is_left_at_once() -> None:
    with stopping.GracefulStop(give_up=lambda: "", grace=60.0) as stop:
        reached = []

        def work() -> None:
            reached.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(2)

        stop.optional(work)
        stop.optional(lambda: reached.append(3))
        assert reached == [1]
        assert stop.wanted


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_long_step_is_given_up(number: int, tmp_path: Path) -> None:
    """Seen to fail at f183d35, where the process went on until the call had ended."""

    def work() -> None:
        with stopping.GracefulStop(give_up=lambda: "given up", grace=0.4):
            (tmp_path / "ready").touch()
            long_call()

    code, took, said = in_a_child(work, tmp_path / "ready", [(0.0, number)])
    assert code == 130
    assert 0.3 < took < 5
    assert said.splitlines()[-1] == "given up"


def test_a_second_signal_ends_a_long_step_sooner(tmp_path: Path) -> None:
    def work() -> None:
        with stopping.GracefulStop(give_up=lambda: "given up", grace=60.0):
            (tmp_path / "ready").touch()
            long_call()

    code, took, _ = in_a_child(work, tmp_path / "ready", [(0.0, signal.SIGINT), (0.2, signal.SIGINT)])
    assert code == 130
    assert took < 5


def test_saving_is_waited_for(tmp_path: Path) -> None:
    """Longer than a step may take, but only after the first signal."""

    def work() -> None:
        with stopping.GracefulStop(give_up=lambda: "given up", grace=0.1) as stop:
            with stop.saving():
                (tmp_path / "ready").touch()
                end = time.monotonic() + 1.0
                while time.monotonic() < end:
                    hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)
            stop.taken()
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)
            raise KeyboardInterrupt

    code, took, said = in_a_child(work, tmp_path / "ready", [(0.0, signal.SIGINT)])
    assert (code, "given up" in said) == (77, False)
    assert took > 1.0


@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_both_trainers_end_within_one_long_step(
    kind: str, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last checkpoint, with nothing half-written. Seen to fail at f183d35: they never ended."""
    monkeypatch.setattr(stopping, "GRACE", 0.5)
    trainer = GeneratorTrainer if kind == "generator" else TokenizerTrainer
    step, config, out = trainer.train_step, tmp_path / "c.yaml", tmp_path / "run"

    def slow(self, *arguments):  # type: ignore[no-untyped-def]
        if self.step == 2:
            (out / ".checkpoint.01234567.tmp.pt").touch()  # what a write that is cut leaves
            (tmp_path / "ready").touch()
            long_call()
        return step(self, *arguments)

    monkeypatch.setattr(trainer, "train_step", slow)
    config.write_text(CONFIG if kind == "generator" else TOKENIZER_CONFIG)
    cache = write_cache(tmp_path / "tokens")

    def work() -> None:
        if kind == "generator":
            train_generator(config, cache, out, overrides=["train.checkpoint_minutes=0"], device="cpu")
        else:
            train_tokenizer(config, class_folder, out, overrides=["train.checkpoint_minutes=0"])

    code, took, said = in_a_child(work, tmp_path / "ready", [(0.0, signal.SIGTERM)])
    assert code == 130
    assert took < 5
    assert "ended within step 3" in said.splitlines()[-1]
    assert "--resume to go on from step 2" in said.splitlines()[-1]
    assert not list(out.glob("**/.*tmp*"))
    monkeypatch.undo()
    options = {"overrides": ["train.steps=3"], "resume": True, "device": "cpu"}
    if kind == "generator":
        train_generator(config, cache, out, **options)
    else:
        train_tokenizer(config, class_folder, out, **options)


def test_last_words() -> None:
    assert "no checkpoint yet" in stopping.last_words(1, None)
    assert "--resume to go on from step 40" in stopping.last_words(45, 40)
