"""Loggers of a run: TensorBoard and a stand-in for wandb; none of them ends a run."""

import csv
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.io.config_schema import load_config
from ggm_image.training import loggers
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.logging import MetricLogger
from ggm_image.training.run import train_generator
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from ggm_image.training.vqgan.run import train_tokenizer
from tests.training.toy import CONFIG, write_cache
from tests.training.vqgan.test_run import CONFIG as TOKENIZER_CONFIG

pytestmark = pytest.mark.usefixtures("no_curves")


class FakeRun:
    """What `wandb.init` returns; ``fails_at`` is the call of `log` that raises an error."""

    def __init__(self, fails_at: int) -> None:
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str]] = []
        self.finished, self.fails_at, self.calls = 0, fails_at, 0
        self.url = "https://wandb.example/run"

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise ConnectionError("the service\nhas ended")
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


class FakeWandb(types.ModuleType):
    """The part of wandb that is used; ``login_error`` is raised by `login`, ``init_error`` by `init`."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.logins, self.runs, self.inits = 0, [], []
        self.login_error: Exception | None = None
        self.init_error: Exception | None = None
        self.fails_at = 0

    def login(self, timeout: int) -> bool:
        self.logins += 1
        if self.login_error is not None:
            raise self.login_error
        return True

    def init(self, **options: Any) -> FakeRun:
        if self.init_error is not None:
            raise self.init_error
        self.inits.append(options)
        self.runs.append(FakeRun(self.fails_at))
        return self.runs[-1]

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def Image(self, path: str) -> tuple[str, str]:
        return ("image", path)

    def Html(self, text: str) -> tuple[str, str]:
        return ("html", text)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "GGM_IMAGE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "config.yaml").write_text(CONFIG)
    cache = write_cache(tmp_path / "tokens")

    def start(*overrides: str, resume: bool = False, said: list[str] | None = None) -> Path:
        report = (lambda line: None) if said is None else said.append
        out = tmp_path / "run"
        train_generator(
            tmp_path / "config.yaml", cache, out, overrides=overrides, resume=resume, device="cpu", report=report
        )
        return out

    return start


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("tensorboard", ["tensorboard"]),
        ("csv", ["csv"]),
        ("tensorboard, wandb,tensorboard", ["tensorboard", "wandb"]),
        (["wandb", "csv"], ["wandb", "csv"]),
        ([], []),
    ],
)
def test_a_list_or_names_with_commas(value: Any, names: list[str]) -> None:
    assert loggers.logger_names(value) == names


@pytest.mark.parametrize("schema", [GeneratorConfig, TokenizerTrainConfig])
@pytest.mark.parametrize("value", ["mlflow", "[tensorboard,mlflow]", "", "3", "null", "[3]"])
def test_other_values_are_refused(schema: type, value: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {steps: 1}\n")
    with pytest.raises(UserError, match="train.logger must be one or more of csv, tensorboard, wandb"):
        load_config(schema, tmp_path / "c.yaml", [f"train.logger={value}"])
    assert load_config(schema, tmp_path / "c.yaml", ["train.logger=[wandb,csv]"]).train.logger == ["wandb", "csv"]


def test_csv_alone_writes_nothing_else(train: Callable[..., Path]) -> None:
    out = train("train.logger=csv", "train.steps=2")
    assert rows(out)
    assert not (out / "tensorboard").exists()


def test_curves_and_images_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (4, 3), (10, 200, 30)).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("a text")
    log = MetricLogger(tmp_path, ["loss"], 0)
    log.write(5, {"loss": 0.5})
    log.show(5, "samples", tmp_path / "x.png")
    log.show(5, "texts", tmp_path / "x.txt")
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 0.5)]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (5, 4, 3)
    assert events.Tensors("texts/text_summary")[0].tensor_proto.string_val == [b"a text"]


def test_a_run_is_shown_in_wandb_and_continued_there(wandb: FakeWandb, train: Callable[..., Path]) -> None:
    said: list[str] = []
    out = train("train.logger=[tensorboard,wandb]", "train.steps=4", said=said)
    assert wandb.logins == 1
    assert "wandb: https://wandb.example/run" in said
    (first,) = wandb.runs
    assert first.metrics == [("*", "step")]
    assert [values["step"] for values in first.logged if "loss" in values] == [2, 4]
    assert [values["loss"] for values in first.logged if "loss" in values] == pytest.approx(
        [float(row["loss"]) for row in rows(out) if row["loss"]], rel=1e-5
    )
    assert first.finished == 1
    options = wandb.inits[0]
    assert (options["dir"], options["project"], options["name"]) == (str(out), "ggm-image", "run")
    assert options["config"]["train"]["steps"] == 4
    assert options["mode"] is None
    train("train.logger=wandb", "train.steps=6", resume=True)
    assert wandb.inits[1]["id"] == options["id"]
    assert wandb.inits[1]["resume"] == "allow"
    assert [values["step"] for values in wandb.runs[1].logged if "loss" in values] == [6]


def test_a_tokenizers_reconstructions_are_shown(wandb: FakeWandb, class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(TOKENIZER_CONFIG)
    changes = ["train.steps=2", "train.sample_every=2", "train.logger=wandb"]
    train_tokenizer(tmp_path / "t.yaml", class_folder, tmp_path / "run", overrides=changes)
    (run,) = wandb.runs
    image = str(tmp_path / "run" / "reconstructions" / "0000002.png")
    assert {"step": 2, "reconstructions": ("image", image)} in run.logged
    assert run.finished == 1
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize(("variable", "value"), [("WANDB_MODE", "offline"), ("GGM_IMAGE_OFFLINE", "1")])
def test_offline_no_account_is_asked_for(
    variable: str, value: str, wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.login_error = AssertionError("asked for an account")
    monkeypatch.setenv(variable, value)
    loggers.check_loggers("wandb")
    log = MetricLogger(tmp_path, ["loss"], 0, loggers="wandb")
    log.close()
    assert wandb.inits[0]["mode"] == "offline"


def test_wandbs_own_variables_are_respected(wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"PROJECT": "mine", "NAME": "third", "RUN_ID": "abc", "MODE": "online"}
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    MetricLogger(tmp_path, ["loss"], 0, loggers="wandb").close()
    (options,) = wandb.inits
    assert [options[key] for key in ("project", "name", "id", "mode")] == ["mine", "third", "abc", "online"]


def test_what_is_missing_is_said_before_anything_is_written(
    wandb: FakeWandb, train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.login_error = ValueError("api_key not configured (no-tty).\nCall wandb.login(key=...)")
    with pytest.raises(UserError, match=r"wandb cannot be used \(api_key not .*\); run `wandb login`, set WANDB_MODE"):
        train("train.logger=wandb")
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # the folder of earlier runs
    with pytest.raises(UserError, match=r"needs the package wandb \(found a folder of that name\)"):
        train("train.logger=wandb")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs the package wandb \(not installed\); pip install 'ggm-image\[wandb\]'"):
        train("train.logger=tensorboard,wandb")
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_be_reached_is_said_before_training(
    wandb: FakeWandb, train: Callable[..., Path], tmp_path: Path
) -> None:
    wandb.init_error = TimeoutError("no answer in 60 s")
    with pytest.raises(UserError, match=r"train.logger=wandb cannot be used \(no answer in 60 s\)"):
        train("train.logger=wandb")
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_a_logger_that_fails_is_switched_off_once(wandb: FakeWandb, train: Callable[..., Path]) -> None:
    wandb.fails_at = 2
    said: list[str] = []
    out = train("train.logger=wandb", "train.validate_every=0", said=said)
    (run,) = wandb.runs
    assert [line for line in said if "switched off" in line] == [
        "logger wandb is switched off: ConnectionError: the service has ended"
    ]
    assert run.calls == 2
    assert [row["step"] for row in rows(out) if row["loss"]] == ["2", "4", "6", "8", "10", "12"]
    assert (out / "model" / "model.safetensors").is_file()


def test_a_logger_that_cannot_be_closed_ends_no_run(
    wandb: FakeWandb, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeRun) -> None:
        raise BrokenPipeError("gone")

    monkeypatch.setattr(FakeRun, "finish", fail)
    said: list[str] = []
    out = train("train.logger=wandb", "train.steps=2", said=said)
    assert "logger wandb is switched off: BrokenPipeError: gone" in said
    assert (out / "model").is_dir()


def test_the_logger_may_change_when_a_run_is_resumed(train: Callable[..., Path]) -> None:
    train("train.steps=2", "train.logger=csv")
    said: list[str] = []
    out = train("train.steps=4", "train.logger=tensorboard", resume=True, said=said)
    assert (out / "tensorboard").is_dir()
    assert any("train.logger csv -> tensorboard" in line for line in said)
