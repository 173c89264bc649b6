"""The order "signal": one sweep is MaskGIT, and a revision resamples the least trusted tokens."""

import math

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.sampler import sample_signal
from ggm_image.schedule import order_sites
from tests.sampler.recorder import Recorder, seeded


def maskgit(denoiser, height, width, codes, calls, noise, uniforms):
    """MaskGIT's decoding (arXiv 2202.04200, cosine law of counts) for one image, in plain loops."""
    sites = height * width
    tokens = [codes] * sites
    for n in range(calls):
        unknown = [i for i in range(sites) if tokens[i] == codes]
        shown = torch.tensor(tokens)[None]
        levels = (shown != codes).float()
        probs = denoiser(shown, levels, torch.tensor(unknown), None)[0].softmax(-1)
        ratio = (n + 1) / calls
        sampled, confidence = {}, {}
        for probabilities, i in zip(probs.tolist(), unknown, strict=True):
            u, total, code = float(uniforms[0][n][i]) * math.fsum(probabilities), 0.0, 0
            for code, p in enumerate(probabilities):  # noqa: B007
                total += p
                if total > u:
                    break
            sampled[i] = code
            gumbel = -math.log(-math.log(float(uniforms[1][n][i])))
            confidence[i] = math.log(probabilities[code]) + noise * (1 - ratio) * gumbel
        left = math.floor(sites * math.cos(math.pi / 2 * ratio)) if n < calls - 1 else 0
        left = max(1, min(left, len(unknown) - 1)) if n < calls - 1 else 0
        masked = sorted(unknown, key=lambda i: confidence[i])[:left]
        for i in unknown:
            tokens[i] = codes if i in masked else sampled[i]
    return tokens


@pytest.mark.parametrize("calls", [1, 4, 8])
@pytest.mark.parametrize("confidence_noise", [0.0, 4.5])
def test_one_sweep_of_signal_is_maskgit(calls, confidence_noise):
    # seen to fail with the Gumbel noise not annealed, with the least sure sites placed, and with a linear
    # law of counts
    images, codes = 6, 16
    sampled = sample_signal(
        Recorder(codes),
        images,
        height=6,
        width=5,
        codebook_size=codes,
        calls=calls,
        confidence_noise=confidence_noise,
        generator=[seeded(k) for k in range(images)],
    )
    for k in range(images):
        uniforms = torch.rand(2 * calls * 30, generator=seeded(k), dtype=torch.float64).view(2, calls, 30)
        expected = maskgit(Recorder(codes), 6, 5, codes, calls, confidence_noise, uniforms)
        assert sampled[k].tolist() == expected


def test_signal_confidence_is_relative_to_the_noise():
    # two codes equally likely: the one that the noise draws rarely is signal more surely, and is placed
    # first. seen to fail without the division by the noise
    noise = torch.tensor([0.9, 0.1])
    frames = []
    sample_signal(
        lambda tokens, levels, sites, labels: torch.zeros(len(tokens), sites.shape[-1], 2),
        1,
        height=1,
        width=40,
        codebook_size=2,
        calls=3,
        confidence_noise=0.0,
        noise=noise,
        generator=seeded(),
        callback=lambda left, x: frames.append(x),
    )
    placed = frames[1][frames[1] < 2]
    assert len(placed) > 0
    assert bool((placed == 1).all())


def test_revision_redraws_only_the_least_trusted_share_of_each_block():
    # seen to fail with the most trusted share redrawn, and with the block's order counted from the wrong end
    recorder, frames = Recorder(8), []
    sample_signal(
        recorder,
        4,
        height=8,
        width=8,
        codebook_size=8,
        calls=4,
        revise_calls=6,
        revise_share=0.25,
        block=16,
        generator=seeded(),
        callback=lambda left, x: frames.append((left, x)),
    )
    assert [left for left, _ in frames] == list(range(10, -1, -1))
    order = order_sites(8, 8)
    changes = 0
    for n in range(6):
        before, after = frames[4 + n][1], frames[5 + n][1]
        tokens, levels, sites, _ = recorder.asked[4 + n]
        assert torch.equal(sites, order[16 * (n % 4) :][:16])
        assert bool((levels == 1).all())
        log_probs = Recorder(8)(tokens, levels, sites, None).log_softmax(-1)
        old = log_probs.gather(-1, before[:, sites, None]).squeeze(-1)
        changed = before != after
        for row in range(4):
            allowed = sites[old[row].argsort()[:4]]
            assert set(changed[row].nonzero().flatten().tolist()) <= set(allowed.tolist())
        changes += int(changed.sum())
    assert changes > 40


def test_calls_beyond_the_number_of_sites_are_not_made():
    recorder = Recorder(4)
    tokens = sample_signal(recorder, 2, height=2, width=2, codebook_size=4, calls=9, generator=seeded())
    assert [question[2].shape[1] for question in recorder.asked] == [4, 3, 2, 1]
    assert bool((tokens < 4).all())


@pytest.mark.parametrize(
    "options",
    [
        {"calls": 0},
        {"calls": 2, "revise_calls": -1},
        {"calls": 2, "revise_share": 1.5},
        {"calls": 2, "block": 0},
        {"calls": 2, "first_order": "random"},
    ],
)
def test_bad_settings_of_the_signal_order_are_named(options):
    with pytest.raises(UserError):
        sample_signal(Recorder(4), 1, height=2, width=2, codebook_size=4, **options)
