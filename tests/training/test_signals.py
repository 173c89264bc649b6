"""Ctrl-C and SIGTERM: a clean end between two steps, and an end within seconds inside a long one."""

import hashlib
import os
import signal
import subprocess
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
from tests.training.toy import CONFIG, write_cache
from tests.training.vqgan.test_run import CONFIG as TOKENIZER_CONFIG


def long_call() -> None:
    """Minutes in one call of C, which a signal does not interrupt and in which Python runs no handler."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)


def signalled(child: subprocess.Popen, ready: Path, signals: list[tuple[float, int]]) -> tuple[int, float]:
    """Wait until the child has made ``ready``, then send signals at given seconds after that.

    Returns:
        The exit code and the seconds from the first signal to the end.
    """
    try:
        limit = time.monotonic() + 120
        while not ready.exists() and time.monotonic() < limit and child.poll() is None:
            time.sleep(0.01)
        assert ready.exists(), f"the child was not ready; exit code {child.poll()}"
        start = time.monotonic()
        for seconds, number in signals:
            time.sleep(max(0.0, start + seconds - time.monotonic()))
            child.send_signal(number)
        code = child.wait(timeout=20)
        return code, time.monotonic() - start
    finally:
        child.kill()
        child.wait()


def in_a_child(
    work: Callable[..., None], folder: Path, signals: list[tuple[float, int]], *arguments: str
) -> tuple[int, float, str]:
    """Run ``work`` of this file in a new process, which makes ``folder/ready``; send signals after that.

    A new process and not a fork: the tests before it have left threads in this one (those of OpenMP among them), and
    a fork whose threads are gone waits for them for ever.

    Returns:
        The exit code, seconds from the first signal to the end, and what was printed.
    """
    command = [sys.executable, "-m", "tests.training.test_signals", work.__name__, str(folder), *arguments]
    with (folder / "printed.txt").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        code, took = signalled(child, folder / "ready", signals)
    return code, took, (folder / "printed.txt").read_text()


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


def give_up_in_a_long_call(folder: Path, grace: str) -> None:
    with stopping.GracefulStop(give_up=lambda: "given up", grace=float(grace)):
        (folder / "ready").touch()
        long_call()


def save_for_longer_than_the_grace(folder: Path) -> None:
    with stopping.GracefulStop(give_up=lambda: "given up", grace=0.1) as stop:
        with stop.saving():
            (folder / "ready").touch()
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)
        stop.taken()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)
        raise KeyboardInterrupt


def train_with_a_long_third_step(folder: Path, kind: str, data: str) -> None:
    """Train ``folder/c.yaml`` into ``folder/run`` with a third step that lasts for minutes."""
    stopping.GRACE = 0.5
    trainer = GeneratorTrainer if kind == "generator" else TokenizerTrainer
    step, out = trainer.train_step, folder / "run"

    def slow(self, *arguments):  # type: ignore[no-untyped-def]
        if self.step == 2:
            (out / ".checkpoint.01234567.tmp.pt").touch()  # what a write that is cut leaves
            (folder / "ready").touch()
            long_call()
        return step(self, *arguments)

    trainer.train_step = slow  # type: ignore[method-assign]
    train(kind, folder / "c.yaml", Path(data), out, ["train.checkpoint_minutes=0"])


def train(kind: str, config: Path, data: Path, out: Path, overrides: list[str], resume: bool = False) -> None:
    if kind == "generator":
        train_generator(config, data, out, overrides=overrides, resume=resume, device="cpu")
    else:
        train_tokenizer(config, data, out, overrides=overrides, resume=resume, device="cpu")


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_long_step_is_given_up(number: int, tmp_path: Path) -> None:
    """Seen to fail at f183d35, where the process went on until the call had ended."""
    code, took, said = in_a_child(give_up_in_a_long_call, tmp_path, [(0.0, number)], "0.4")
    assert code == 130
    assert 0.3 < took < 5
    assert said.splitlines()[-1] == "given up"


def test_a_second_signal_ends_a_long_step_sooner(tmp_path: Path) -> None:
    signals = [(0.0, signal.SIGINT), (0.2, signal.SIGINT)]
    code, took, _ = in_a_child(give_up_in_a_long_call, tmp_path, signals, "60")
    assert code == 130
    assert took < 5


def test_saving_is_waited_for(tmp_path: Path) -> None:
    """Longer than a step may take, but only after the first signal."""
    code, took, said = in_a_child(save_for_longer_than_the_grace, tmp_path, [(0.0, signal.SIGINT)])
    assert (code, "given up" in said) == (77, False)
    assert took > 1.0


@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_both_trainers_end_within_one_long_step(kind: str, class_folder: Path, tmp_path: Path) -> None:
    """From the last checkpoint, with nothing half-written. Seen to fail at f183d35: they never ended."""
    config, out = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(CONFIG if kind == "generator" else TOKENIZER_CONFIG)
    data = write_cache(tmp_path / "tokens") if kind == "generator" else class_folder
    code, took, said = in_a_child(train_with_a_long_third_step, tmp_path, [(0.0, signal.SIGTERM)], kind, str(data))
    assert code == 130
    assert took < 5
    assert "ended within step 3" in said.splitlines()[-1]
    assert "--resume to resume from step 2" in said.splitlines()[-1]
    assert not list(out.glob("**/.*tmp*"))
    train(kind, config, data, out, ["train.steps=3"], resume=True)


def test_last_words() -> None:
    assert "no checkpoint yet" in stopping.last_words(1, None)
    assert "--resume to resume from step 40" in stopping.last_words(45, 40)


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    except KeyboardInterrupt:
        sys.exit(77)
