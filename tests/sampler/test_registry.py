"""A sampler from outside the package: this module is one, and an entry is all that the rest needs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from ggm_image.cli.main import main
from ggm_image.cli.sampling import sampler_options
from ggm_image.errors import UserError
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.sampler.base import Call, Denoiser, Plan, SamplingRun, run_by_pattern, start_run
from ggm_image.sampler.registry import SAMPLERS, SamplerEntry, register
from ggm_image.sampler.settings import Settings


def sample_by_settings(
    denoiser: Denoiser, settings: Settings, batch: int, *, height: int, width: int, codebook_size: int, **rest: Any
) -> Tensor:
    """Row-major order, `settings.block` sites a call: as a language model would."""

    def plan(job: SamplingRun, unknown: Tensor) -> Plan:
        sites, uniforms = unknown.nonzero().squeeze(1), job.uniforms(height * width)
        calls = [Call(sites=part, uniforms=uniforms[:, part], filled=0.0) for part in sites.split(settings.block)]
        return Plan(job.masked_tokens(), None, calls)

    given = [rest.get(name) for name in ("labels", "known", "noise", "generator", "callback", "device")]
    return run_by_pattern(start_run(denoiser, batch, height * width, codebook_size, *given), plan)


@pytest.fixture
def raster() -> Iterator[str]:
    register(SamplerEntry(name="raster", module=__name__, summary="row by row", unused=frozenset({"first_block"})))
    yield "raster"
    del SAMPLERS["raster"]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return load_model(model_folder, device="cpu")


def test_a_sampler_from_outside_samples_by_its_settings(model: Model, raster: str) -> None:
    frames: list[Tensor] = []
    settings = Settings(order=raster, block=5, first_block=2, guidance=2.0, top_k=8)
    assert settings.calls(16) == 4  # first_block has no effect on it
    whole = model.sample_tokens([0, 1, 2], seed=1, settings=settings, callback=lambda t, x: frames.append(x))
    assert [int((frame[0] == 32).sum()) for frame in frames] == [16, 11, 6, 1, 0]
    assert bool((frames[1][:, 5:] == 32).all())
    assert torch.equal(model.sample_tokens([1], seed=1, first=1, settings=settings)[0], whole[1])
    known = torch.full((16,), -1)
    known[3:9] = 4
    infilled = model.sample_tokens([0], seed=1, settings=settings, known=known).flatten()
    assert torch.equal(infilled[3:9], known[3:9])
    assert model.manifest(1, classes="cat", seed=0, settings=settings)["settings"]["order"] == raster


def test_the_command_line_offers_it(raster: str) -> None:
    asked = []

    @sampler_options
    @click.command()
    def command(**options: Any) -> None:
        asked.append(options["order"])

    assert CliRunner().invoke(command, ["--order", raster]).exit_code == 0
    assert asked == [raster]
    assert "raster: row by row" in " ".join(CliRunner().invoke(command, ["--help"]).output.split())


def test_names_that_are_none_or_taken(raster: str) -> None:
    with pytest.raises(
        UserError, match=r"order must be schedule or signal or raster \(got 'rater'\); did you mean raster"
    ):
        Settings(order="rater")
    with pytest.raises(UserError, match="exists already"):
        register(SamplerEntry(name="signal", module="x", summary=""))


def test_unused_settings_have_no_effect(model: Model) -> None:
    other = {"curve": "linear", "site_order": "halton", "confidence_noise": 1.0, "revise_share": 0.9, "first_block": 3}
    other["first_order"] = "halton"
    for name, entry in SAMPLERS.items():
        settings = Settings(order=name, sweeps=2, block=4)
        same = Settings(order=name, sweeps=2, block=4, **{key: other[key] for key in entry.unused})  # type: ignore[arg-type]
        first, second = (model.sample_tokens([0], settings=each, batch=1) for each in (settings, same))
        assert torch.equal(first, second)


def test_fid_and_sample_know_the_same_samplers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["sample"], ["fid", "a", "b"], ["inpaint", "a", "b"]):
        assert main([*command, "--order", "raster"]) == 2
        error = capsys.readouterr().err
        assert all(name in error for name in SAMPLERS), error
