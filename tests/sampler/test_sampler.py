"""The samplers with a perfect denoiser against exactly computed laws, and what they may and may not touch.

Every chi-square is made of 100,000 or more draws at a fixed seed, accepted between the normal quantiles -3.7
and 3.7 (two-sided level 2e-4). Beside each stands the shift that named mistakes would cause, computed
exactly, so the power is known: a shift of 150 at 63 degrees of freedom is found with probability > 0.999.
"""

import math
from itertools import pairwise

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.sampler import guided, sample, sample_signal, truncated
from ggm_image.schedule import Schedule, order_sites
from tests.enumeration import ExactDenoiser, all_states, chi_square, critical, divergence, exact_law, kl, potts

DRAWS = 100_000
UNIFORM2 = torch.full((2,), 0.5, dtype=torch.float64)
SKEWED2 = torch.tensor([0.7, 0.3], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_fits(tokens, law, codes):
    statistic, freedom = chi_square(tokens, law, codes)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7), (statistic, freedom)


# --- the exact law --------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize("noise", [UNIFORM2, SKEWED2], ids=["uniform", "skewed"])
def test_one_site_a_step_reproduces_the_joint(sweeps, noise):
    # seen to fail with levels(t + 1) in place of levels(t), with level and 1 - level swapped in the heat
    # bath, and without the mask id
    law = potts(2, 3, 2, 0.8)
    schedule = Schedule.round_robin(2, 3, sweeps=sweeps)
    assert kl(law, exact_law(schedule, law, noise, 2)) < 1e-10
    for mistake in ("levels after the step", "level and 1-level swapped"):
        assert DRAWS * divergence(exact_law(schedule, law, noise, 2, mistake=mistake), law) > 150
    denoiser = ExactDenoiser(law, 6, 2, noise)
    tokens = sample(denoiser, schedule, DRAWS, codebook_size=2, noise=noise, generator=seeded())
    assert denoiser.calls == 6 * sweeps
    assert_fits(tokens, law, 2)


@pytest.mark.parametrize(("final_level", "noise"), [(0.0, UNIFORM2), (0.3, SKEWED2)], ids=["0", "0.3"])
def test_blocks_reproduce_the_exactly_computed_law(final_level, noise):
    # seen to fail with levels(t + 1), with contiguous blocks in the sampler's schedule, with a uniform start
    # (0.3), and when a block's sites were drawn one after the other with the new tokens in view
    law = potts(2, 3, 2, 1.0)
    schedule = Schedule.round_robin(2, 3, sweeps=2, block=2, final_level=final_level)
    expected = exact_law(schedule, law, noise, 2)
    assert DRAWS * divergence(law, expected) > 150  # a block update is not exact, and this test can tell
    mistakes = ["levels after the step", "level and 1-level swapped", *(["uniform start"] if final_level else [])]
    for mistake in mistakes:
        assert DRAWS * divergence(exact_law(schedule, law, noise, 2, mistake=mistake), expected) > 150, mistake
    contiguous = Schedule.round_robin(2, 3, sweeps=2, block=2, final_level=final_level, order=torch.arange(6))
    assert DRAWS * divergence(exact_law(contiguous, law, noise, 2), expected) > 150
    denoiser = ExactDenoiser(law, 6, 2, noise)
    tokens = sample(denoiser, schedule, DRAWS, codebook_size=2, noise=noise, generator=seeded(1))
    assert_fits(tokens, expected, 2)


def test_spread_blocks_beat_contiguous_ones_and_more_sweeps_beat_fewer():
    # KL(joint || law), computed exactly: the three facts that the sampler must keep.
    # seen to fail with a raster order in place of Bayer's
    law, noise = potts(3, 3, 2, 1.0), UNIFORM2

    def error(**options):
        schedule = Schedule.round_robin(3, 3, curve="cosine", final_level=0.1, **options)
        return kl(law, exact_law(schedule, law, noise, 2))

    spread = [error(sweeps=s, block=3) for s in (1, 2, 4, 8)]
    assert all(b < 0.6 * a for a, b in pairwise(spread)), spread
    for sweeps in (1, 2, 4):
        assert error(sweeps=sweeps, block=3, order=torch.arange(9)) > 1.5 * error(sweeps=sweeps, block=3)
    random = [error(sweeps=2, block=3, order=torch.randperm(9, generator=seeded(s))) for s in range(8)]
    assert error(sweeps=2, block=3) < sum(random) / 8


def test_infilling_reproduces_the_exact_conditional():
    # two patterns of known sites in one batch. Seen to fail when known sites kept level a_s in place of 1,
    # and when all rows were run on the union of the unknown sites
    law, codes = potts(2, 3, 2, 0.8), 2
    states = all_states(6, codes)
    patterns = torch.tensor([[1, -1, -1, 0, -1, -1], [-1, 0, -1, -1, -1, 1]])
    known = patterns.repeat_interleave(DRAWS, 0)[torch.randperm(2 * DRAWS, generator=seeded())]
    schedule = Schedule.round_robin(2, 3, sweeps=2)
    denoiser = ExactDenoiser(law, 6, codes, UNIFORM2)
    tokens = sample(denoiser, schedule, 2 * DRAWS, codebook_size=2, known=known, generator=seeded(2))
    assert denoiser.calls == 2 * 4 * 2  # two patterns, four unknown sites, two sweeps
    assert torch.equal(tokens[known >= 0], known[known >= 0])
    for pattern in patterns:
        fits = ((pattern < 0) | (states == pattern)).all(1)
        conditional = torch.where(fits, law, 0.0) / law[fits].sum()
        assert DRAWS * divergence(torch.where(fits, 1 / 16, 0.0).double(), conditional) > 150
        assert_fits(tokens[(known == pattern).all(1)], conditional, codes)


def test_a_fixed_first_order_one_site_a_call_reproduces_the_exact_conditional():
    # seen to fail with the order of the whole grid in place of that of the unknown sites
    law, known = potts(2, 3, 2, 1.0), torch.tensor([1, -1, -1, 0, -1, -1])
    fits = ((known < 0) | (all_states(6, 2) == known)).all(1)
    conditional = torch.where(fits, law, 0.0) / law[fits].sum()
    denoiser, rows = ExactDenoiser(law, 6, 2, UNIFORM2), known.expand(DRAWS, -1)
    options = {"height": 2, "width": 3, "codebook_size": 2, "calls": 4, "known": rows, "first_order": "halton"}
    assert_fits(sample_signal(denoiser, DRAWS, generator=seeded(), **options), conditional, 2)
    assert denoiser.calls == 4


def test_infilling_by_blocks_follows_its_exact_law():
    law, known = potts(2, 3, 2, 1.0), torch.tensor([1, -1, -1, 0, -1, -1])
    schedule = Schedule.round_robin(2, 3, sweeps=2, block=2)
    expected = exact_law(schedule.restricted(known < 0), law, UNIFORM2, 2, known=known)
    rows = known.expand(DRAWS, -1)
    denoiser = ExactDenoiser(law, 6, 2, UNIFORM2)
    tokens = sample(denoiser, schedule, DRAWS, codebook_size=2, known=rows, generator=seeded(3))
    assert_fits(tokens, expected, 2)


# --- what the denoiser is shown -------------------------------------------------------------------


class Recorder:
    """Random logits that depend on the tokens alone; keeps every question."""

    def __init__(self, codes: int, seed: int = 0) -> None:
        self.codes, self.asked = codes, []
        self.table = torch.randn(4096, codes, generator=seeded(seed))

    def __call__(self, tokens, levels, sites, labels):
        self.asked.append((tokens.clone(), levels.clone(), sites.clone(), labels))
        index = sites.expand(len(tokens), -1)
        weight = torch.arange(1, tokens.shape[1] + 1) ** 2
        question = (tokens * weight).sum(1, keepdim=True) * 31 + index * 7
        if labels is not None:
            question = question + 1001 * labels[:, None]
        return 2 * self.table[question % 4096]


def test_the_denoiser_sees_masks_at_the_block_and_levels_before_the_step():
    # seen to fail with levels(t + 1), with forward steps, and without the mask id
    schedule = Schedule.round_robin(4, 4, sweeps=2, block=4)
    recorder, frames = Recorder(8), {}
    labels = torch.tensor([0, 1, 2])
    sample(
        recorder,
        schedule,
        3,
        codebook_size=8,
        labels=labels,
        generator=seeded(),
        callback=lambda t, x: frames.update({t: x}),
    )
    assert sorted(frames) == list(range(len(schedule.steps) + 1))
    for t, (tokens, levels, sites, given) in zip(reversed(range(8)), recorder.asked, strict=True):
        step = schedule.steps[t]
        assert torch.equal(sites, step.sites)
        assert torch.equal(levels, schedule.levels(t).expand(3, -1))
        assert bool((tokens[:, sites] == 8).all())
        rest = torch.ones(16, dtype=torch.bool)
        rest[sites] = False
        assert torch.equal(tokens[:, rest], frames[t + 1][:, rest])
        assert torch.equal(frames[t][:, rest], frames[t + 1][:, rest])
        assert torch.equal(given, labels)


@pytest.mark.parametrize("which", ["schedule", "signal", "halton"])
def test_known_sites_never_change_and_are_never_asked(which):
    # seen to fail without `restricted`, and with revision blocks over the whole grid
    known = torch.randint(8, (4, 64), generator=seeded())
    mask = torch.rand(64, generator=seeded(1)) < 0.4
    known[:, mask] = -1
    recorder = Recorder(8)
    if which == "schedule":
        schedule = Schedule.round_robin(8, 8, sweeps=3, block=5)
        tokens = sample(recorder, schedule, 4, codebook_size=8, known=known, generator=seeded())
        assert len(recorder.asked) == 3 * math.ceil(int(mask.sum()) / 5)
    else:
        options = {"height": 8, "width": 8, "calls": 4, "revise_calls": 5, "block": 5, "revise_share": 1.0}
        options["first_order"] = which
        tokens = sample_signal(recorder, 4, codebook_size=8, known=known, generator=seeded(), **options)
        assert len(recorder.asked) == 9
    assert torch.equal(tokens[:, ~mask], known[:, ~mask])
    assert bool(((tokens >= 0) & (tokens < 8)).all())
    for shown, levels, sites, _ in recorder.asked:
        assert bool(mask[sites].all())
        assert torch.equal(shown[:, ~mask], known[:, ~mask])
        assert bool((levels[:, ~mask] == 1).all())


@pytest.mark.parametrize("which", ["schedule", "signal", "halton"])
def test_all_or_nothing_known(which):
    def draw(known):
        if which == "schedule":
            schedule = Schedule.round_robin(3, 3, sweeps=2)
            return sample(Recorder(4), schedule, 2, codebook_size=4, known=known, generator=seeded())
        options = {"height": 3, "width": 3, "calls": 3, "revise_calls": 2, "first_order": which}
        return sample_signal(Recorder(4), 2, codebook_size=4, known=known, generator=seeded(), **options)

    everything = torch.randint(4, (2, 9), generator=seeded())
    assert torch.equal(draw(everything), everything)
    assert torch.equal(draw(torch.full((2, 9), -1)), draw(None))


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["schedule", "signal", "halton"])
@pytest.mark.parametrize("infill", [False, True])
def test_an_image_depends_on_its_generator_alone(which, infill):
    # seen to fail when one generator was shared, and when rows with other known sites changed the schedule
    known = torch.full((5, 16), -1)
    if infill:
        known[:3, :6], known[3:, 8] = 2, 1
    labels = torch.arange(5)

    def draw(images):
        options = {
            "codebook_size": 8,
            "labels": labels[images],
            "known": known[images],
            "generator": [seeded(10 + k) for k in images],
        }
        if which == "schedule":
            schedule = Schedule.round_robin(4, 4, sweeps=2, block=3)
            return sample(Recorder(8), schedule, len(images), **options)
        options["first_order"] = which
        return sample_signal(Recorder(8), len(images), height=4, width=4, calls=5, revise_calls=3, **options)

    together = draw([0, 1, 2, 3, 4])
    assert len(together.unique(dim=0)) == 5
    assert torch.equal(draw([3, 0])[1], together[0])
    for k in range(5):
        assert torch.equal(draw([k])[0], together[k])


# --- most signal first ----------------------------------------------------------------------------


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


# --- wrappers -------------------------------------------------------------------------------------


def test_guidance():
    recorder = Recorder(8)
    tokens = torch.randint(8, (3, 6), generator=seeded())
    levels, labels = torch.rand(3, 6, generator=seeded()), torch.tensor([0, 1, 2])
    null = torch.full((3,), 9)
    assert guided(recorder, 1.0, 9) is recorder
    for sites in (torch.tensor([1, 4]), torch.tensor([[1, 4], [0, 2], [3, 5]])):
        with_class, without = recorder(tokens, levels, sites, labels), recorder(tokens, levels, sites, null)
        recorder.asked.clear()
        torch.testing.assert_close(guided(recorder, 0.0, 9)(tokens, levels, sites, labels), without)
        got = guided(recorder, 2.5, 9)(tokens, levels, sites, labels)
        torch.testing.assert_close(got, without + 2.5 * (with_class - without))
        assert [len(question[0]) for question in recorder.asked] == [3, 6]
        recorder.asked.clear()
        growing = guided(recorder, 2.5, 9, power=2.0)
        weight = 1 + 1.5 * levels.mean(dim=1)[:, None, None] ** 2
        got = growing(tokens, levels, sites, labels)
        torch.testing.assert_close(got, without + weight * (with_class - without))
        torch.testing.assert_close(
            growing(tokens, torch.ones(3, 6), sites, labels),
            guided(recorder, 2.5, 9)(tokens, torch.ones(3, 6), sites, labels),
        )
        recorder.asked.clear()
        growing(tokens, torch.zeros(3, 6), sites, labels)  # nothing is there yet: the class as it is, in one call
        assert [len(question[0]) for question in recorder.asked] == [3]
    with pytest.raises(UserError, match="power of guidance"):
        guided(recorder, 2.0, 9, power=-1.0)
    with pytest.raises(UserError, match="needs classes"):
        guided(recorder, 2.0, 9)(tokens, levels, torch.tensor([1]), None)


def test_truncation():
    row = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()

    def denoiser(tokens, levels, sites, labels):
        return row.expand(1, 1, 4)

    def probs(**options):
        return truncated(denoiser, **options)(None, None, None, None)[0, 0].softmax(-1)

    assert truncated(denoiser) is denoiser
    assert truncated(denoiser, temperature=1.0, top_p=1.0) is denoiser
    torch.testing.assert_close(probs(top_k=2), torch.tensor([4 / 7, 0, 3 / 7, 0]))
    torch.testing.assert_close(probs(top_k=9), row.exp())
    torch.testing.assert_close(probs(top_p=0.69), torch.tensor([4 / 7, 0, 3 / 7, 0]))
    torch.testing.assert_close(probs(top_p=0.71), torch.tensor([4 / 9, 0, 3 / 9, 2 / 9]))
    torch.testing.assert_close(probs(top_p=1e-6), torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(probs(temperature=0.5), row.exp() ** 2 / (row.exp() ** 2).sum())
    # temperature first: it moves the bulk into fewer codes
    cold = probs(temperature=0.25, top_p=0.7)
    torch.testing.assert_close(cold, torch.tensor([1.0, 0, 0, 0]))


def test_truncated_codes_are_never_drawn():
    denoiser = truncated(Recorder(16), top_k=1)
    schedule = Schedule.round_robin(4, 4, sweeps=1, block=4)
    first = sample(denoiser, schedule, 1, codebook_size=16, generator=seeded(0))
    frames = []
    sample_signal(
        denoiser,
        1,
        height=4,
        width=4,
        codebook_size=16,
        calls=1,
        generator=seeded(5),
        callback=lambda n, x: frames.append(x),
    )
    logits = Recorder(16)(torch.full((1, 16), 16), torch.zeros(1, 16), torch.arange(16), None)
    assert torch.equal(frames[-1], logits.argmax(-1))
    assert bool((first < 16).all())


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"known": torch.zeros(2, 5, dtype=torch.int64)}, "known does not fit"),
        ({"known": torch.full((2, 4), 4)}, "another tokenizer"),
        ({"known": torch.full((2, 4), -2)}, r"\[-1, 4\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "one class an image"),
        ({"noise": torch.ones(3) / 3}, "one probability a code"),
        ({"generator": [torch.Generator()]}, "one an image"),
        ({"denoiser": lambda x, levels, sites, y: torch.zeros(2, 1, 3)}, "wrong shape"),
        ({"denoiser": lambda x, levels, sites, y: torch.full((2, 1, 4), torch.nan)}, "no distribution"),
        ({"denoiser": lambda x, levels, sites, y: torch.full((2, 1, 4), -torch.inf)}, "no distribution"),
        ({"known": torch.tensor([[0, -1, 1, 1], [0, 1, -1, 1]]), "callback": print}, "callback"),
    ],
)
def test_bad_input_is_named(options, words):
    given = {"denoiser": Recorder(4), "schedule": Schedule.round_robin(2, 2, sweeps=1), "batch": 2, **options}
    with pytest.raises(UserError, match=words):
        sample(**given, codebook_size=4)


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


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_bad_truncation_is_named(options):
    with pytest.raises(UserError):
        truncated(Recorder(4), **options)


def test_guidance_of_a_row_does_not_depend_on_the_others():
    """A row of weight 1, where nothing is placed yet, beside one that is half placed.

    Seen to fail with the sum u + 1 (c - u) taken for c, which rounds.
    """
    logits = torch.randn(2, 2, 4, 5, generator=seeded())  # by class and row

    def denoiser(tokens, levels, sites, labels):
        return torch.stack([logits[label, int(row)] for label, row in zip(labels, tokens[:, 0], strict=True)])

    tokens = torch.tensor([[0] * 4, [1] * 4])
    levels = torch.tensor([[0.0] * 4, [1.0, 1.0, 0.0, 0.0]])
    both = guided(denoiser, 3.0, 1, power=1.0)
    labels = torch.zeros(2, dtype=torch.int64)
    together = both(tokens, levels, torch.arange(4), labels)
    for k in range(2):
        alone = both(tokens[k : k + 1], levels[k : k + 1], torch.arange(4), labels[k : k + 1])
        assert torch.equal(together[k], alone[0])
    assert torch.equal(together[0], logits[0, 0])
