"""Several processes train as one does: the same curve, the same data, one end for all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.training.batches import rows_of_rank
from ggm_image.training.checkpoint import load_checkpoint
from ggm_image.training.distributed import make_fabric, processes_asked
from ggm_image.training.sharded_state import whole
from tests.training.toy import CONFIG, log_of, write_cache

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

FSDP = ("train.strategy=fsdp",)
SAMPLED = ("objective.name=binary-sampled",)
AGAIN = ("--resume",)
JOBS: dict[str, tuple[int, str, tuple[str, ...], str]] = {
    # name: processes, folder of the run, arguments, accident
    "one": (1, "one", (), ""),
    "ddp": (2, "ddp", (), ""),
    "srun": (2, "srun", (), ""),
    "ddp of three": (3, "ddp3", (), ""),
    "fsdp": (2, "fsdp", FSDP, ""),
    "accumulated": (1, "accumulated", ("train.accumulate=4",), ""),
    "accumulated unevenly, ddp": (2, "accumulated2", ("train.accumulate=3",), ""),
    "accumulated, fsdp": (2, "accumulated3", ("train.accumulate=2", *FSDP), ""),
    "recomputed": (1, "recomputed", ("train.activation_checkpointing=true",), ""),
    "recomputed, fsdp": (2, "recomputed2", ("train.activation_checkpointing=true", *FSDP), ""),
    "sampled": (1, "sampled", SAMPLED, ""),
    "sampled, ddp": (2, "sampled2", (*SAMPLED, "train.accumulate=2"), ""),
    "ddp, stopped": (2, "two-one", (), "term"),
    "ddp, then one": (1, "two-one", AGAIN, ""),
    "one, stopped": (1, "one-two", (), "cut"),
    "one, then fsdp": (2, "one-two", (*AGAIN, *FSDP), ""),
    "fsdp, stopped": (2, "two-three", FSDP, "term"),
    "fsdp, then fsdp of three": (3, "two-three", (*AGAIN, *FSDP), ""),
    "fsdp of three, stopped": (3, "three-two", FSDP, "cut"),
    "fsdp of three, then ddp": (2, "three-two", AGAIN, ""),
    "fsdp, stopped again": (2, "two-one-fsdp", FSDP, "cut"),
    "fsdp, then one": (1, "two-one-fsdp", AGAIN, ""),
    "nan": (2, "nan", ("train.checkpoint_minutes=0",), "nan"),
    "nan, fsdp": (2, "nan2", FSDP, "nan"),
    "disk": (2, "disk", (), "disk"),
    "kill": (2, "kill", ("train.checkpoint_minutes=0",), "kill"),
    "after the kill": (2, "kill", ("--auto-resume",), ""),
    "bad config": (2, "bad", ("train.stepz=3",), ""),
    "bad data": (2, "bad", ("network.codebook_size=17",), ""),
    "more processes than rows": (2, "bad", ("train.batch_size=1",), ""),
    "nothing to resume": (2, "bad", AGAIN, ""),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crews")


@pytest.fixture(scope="module")
def results(place: Path) -> dict[str, dict[str, Any]]:
    """All jobs, one after the other, in forks of one process."""
    (place / "c.yaml").write_text(CONFIG)
    cache = write_cache(place / "tokens")
    common = ["--data", str(cache), "--device", "cpu", "train.validate_every=0"]
    jobs = [
        {
            "name": name,
            "world": world,
            "accident": accident,
            "launcher": "srun" if name == "srun" else "torchrun",
            "arguments": ["train", str(place / "c.yaml"), "--out", str(place / folder), *common, *more],
        }
        for name, (world, folder, more, accident) in JOBS.items()
    ]
    (place / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.distributed_runs"]
    arguments = [str(place / "jobs.json"), str(place / "results.json")]
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads((place / "results.json").read_text())
    return found


def rows(folder: Path) -> list[tuple[int, float, float, float]]:
    names = ("loss", "gradient_norm", "learning_rate")
    return [(int(row["step"]), *(float(row[name]) for name in names)) for row in log_of(folder) if row["loss"]]


def assert_same_weights(found: Path, expected: Path) -> None:
    a, b = (whole(load_checkpoint(folder)) for folder in (found, expected))
    assert a["step"] == b["step"] == 12
    for part in ("network", "ema"):
        for name, value in b[part].items():
            torch.testing.assert_close(a[part][name], value, rtol=1e-4, atol=2e-6, msg=name)


def assert_same_run(found: Path, expected: Path) -> None:
    """The same curve and, at the end, the same weights, averages and moments, but for the order of sums."""
    assert [row[0] for row in rows(found)] == [row[0] for row in rows(expected)]
    for ours, theirs in zip(rows(found), rows(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    assert_same_weights(found, expected)
    a, b = (whole(load_checkpoint(folder)) for folder in (found, expected))
    assert a["order"] == b["order"]
    assert torch.equal(a["generator"], b["generator"])
    for number, state in b["optimizer"]["state"].items():
        ours = a["optimizer"]["state"][number]
        assert float(ours["step"]) == float(state["step"]) == 12
        torch.testing.assert_close(ours["exp_avg"], state["exp_avg"], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ddp",
        "srun",
        "ddp of three",
        "fsdp",
        "accumulated",
        "accumulated unevenly, ddp",
        "accumulated, fsdp",
        "recomputed",
        "recomputed, fsdp",
    ],
)
def test_the_curve_does_not_depend_on_how_the_work_is_divided(
    name: str, results: dict[str, dict[str, Any]], place: Path
) -> None:
    """Seen to fail with the same rows in every process, an order of its own in each, pieces not weighted by their rows,
    and accumulated gradients not divided."""
    assert set(results[name]["codes"]) == {0}, results[name]["texts"]
    assert_same_run(place / JOBS[name][1], place / "one")


@pytest.mark.slow
def test_single_draws_are_divided_with_the_rows(results: dict[str, dict[str, Any]], place: Path) -> None:
    assert results["sampled, ddp"]["codes"] == [0, 0], results["sampled, ddp"]["texts"]
    assert_same_run(place / "sampled2", place / "sampled")  # seen to fail with draws that are not those of the rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stopped", "resumed"),
    [
        ("ddp, stopped", "ddp, then one"),
        ("one, stopped", "one, then fsdp"),
        ("fsdp, stopped", "fsdp, then fsdp of three"),
        ("fsdp of three, stopped", "fsdp of three, then ddp"),
        ("fsdp, stopped again", "fsdp, then one"),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(
    stopped: str, resumed: str, results: dict[str, dict[str, Any]], place: Path
) -> None:
    """A signal to one of the processes ends all, with code 130, once everything is saved.

    Seen to fail (a hang) with the wish to stop not agreed upon; with rows divided as the sharding does not; and with
    the first process's rows read for all.
    """
    assert set(results[stopped]["codes"]) == {130}, results[stopped]["texts"]
    assert results[stopped]["texts"][0].count("interrupted") == 1
    assert not any("interrupted" in text for text in results[stopped]["texts"][1:])
    assert set(results[resumed]["codes"]) == {0}, results[resumed]["texts"]
    assert_same_run(place / JOBS[resumed][1], place / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nan", "training diverged at step 8"),
        ("nan, fsdp", "training diverged at step 8"),
        ("disk", "No space left on device"),
        ("bad config", "did you mean train.steps"),
        ("bad data", "set network.codebook_size=16"),
        ("more processes than rows", "1 against 2 x 1"),
        ("nothing to resume", "nothing to resume"),
    ],
)
def test_what_goes_wrong_is_said_once_and_ends_all(name: str, line: str, results: dict[str, dict[str, Any]]) -> None:
    """Seen to fail (a line from each) with the loss judged by each process alone, and the disk's error not shared."""
    result = results[name]
    assert result["codes"] == [2, 2], result["texts"]
    said = [text for text in result["texts"] if "error: " in text]
    assert len(said) == 1 or name == "bad config"  # found before they have met: later, if a launcher lets them live
    assert line in said[0].strip().splitlines()[-1]
    assert not any("Traceback" in text for text in result["texts"])


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_costs_nothing(
    results: dict[str, dict[str, Any]], place: Path
) -> None:
    result = results["kill"]
    assert result["codes"] == [2, -9], result["texts"]
    assert "error: another process of the run has ended" in result["texts"][0].strip().splitlines()[-1]
    assert "Traceback" not in result["texts"][0]
    assert results["after the kill"]["codes"] == [0, 0], results["after the kill"]["texts"]
    assert_same_weights(place / "kill", place / "ddp")


def torchrun(place: Path, out: str, *arguments: str, options: tuple[str, ...] = (), accident: str = "") -> list[str]:
    """A command that trains in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    train = ["train", str(place / "c.yaml"), "--data", str(place / "tokens"), "--out", str(place / out)]
    more = ["--device", "cpu", "train.validate_every=0", *arguments]
    return [*launcher, "-m", "tests.training.distributed_runs", "once", accident, *train, *more]


@pytest.mark.slow
def test_torchrun_starts_again_from_the_last_checkpoint(results: dict[str, dict[str, Any]], place: Path) -> None:
    """One of two sharded processes is killed; torchrun ends the other and starts both again.

    Seen to fail, three times out of five, where the second attempt meets at the place of the first.
    """
    more = ("--auto-resume", "train.checkpoint_minutes=0", *FSDP)
    command = torchrun(place, "restarted", *more, options=("--max-restarts", "1"), accident="kill")
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr
    assert_same_weights(place / "restarted", place / "fsdp")


@pytest.mark.slow
def test_it_can_start_its_own_processes(results: dict[str, dict[str, Any]], place: Path) -> None:
    """And one line ends them."""
    train = ["train", str(place / "c.yaml"), "--data", str(place / "tokens"), "--out", str(place / "own")]
    command = [sys.executable, "-m", "ggm_image.cli.main", *train, "--device", "cpu", "--devices", "2"]
    more = ["train.validate_every=0", "train.log_every=4"]
    done = subprocess.run([*command, *more], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model: ") == 1
    assert done.stderr.count("step 12/12") == 1
    assert_same_weights(place / "own", place / "ddp")


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_ends(results: dict[str, dict[str, Any]], place: Path) -> None:
    command = torchrun(place, "ended", "train.steps=1000000")
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = ""
        while "step 4/" not in said:
            line = running.stderr.readline()
            assert line, said
            said += line
        running.send_signal(signal.SIGTERM)
        said += running.stderr.read()
    step = load_checkpoint(place / "ended")["step"]
    assert said.count(f"saved at step {step}; rerun the same command with --resume") == 1
    assert step >= 4
    assert (place / "ended" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_only_the_first_process_speaks(results: dict[str, dict[str, Any]]) -> None:
    for name in ("ddp", "fsdp"):
        first, *others = results[name]["texts"]
        assert first.count("step 12/12") == 1
        assert first.count("model: ") == 1
        assert others == [""]


def test_rows_are_shared_out() -> None:
    """Every row once, in order, in pieces that differ by one row at most."""
    for batch, world, accumulate in ((8, 1, 1), (8, 3, 1), (8, 2, 3), (7, 2, 2), (128, 5, 4)):
        found: list[int] = []
        for rank in range(world):
            own, pieces = rows_of_rank(batch, rank, world, accumulate)
            mine = list(range(batch))[own]
            assert [row for piece in pieces for row in mine[piece]] == mine
            assert {piece.stop - piece.start for piece in pieces} <= {
                batch // (world * accumulate),
                -(-batch // (world * accumulate)),
            }
            found += mine
        assert found == list(range(batch))
    with pytest.raises(UserError, match="8 against 3 x 3"):
        rows_of_rank(8, 0, 3, 3)


def test_the_launcher_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_asked(None, None) == (1, 1)
    assert processes_asked(8, 2) == (8, 2)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "64"}.items():
        monkeypatch.setenv(name, value)
    assert processes_asked(None, None) == processes_asked(8, 8) == (8, 8)
    with pytest.raises(UserError, match="--devices must be that of torchrun .4 against 8"):
        processes_asked(4, None)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for name, value in {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(name, value)
    assert processes_asked(None, None) == (8, 2)
    with pytest.raises(UserError, match="--nodes must be that of srun"):
        processes_asked(None, 3)


def test_several_processes_share_no_device() -> None:
    with pytest.raises(UserError, match="use --device cuda"):
        make_fabric("cuda:1", "32-true", devices=2)
