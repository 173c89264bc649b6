"""The wrappers of a denoiser: guidance and truncation."""

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.sampler import guided, sample, sample_signal, truncated
from ggm_image.schedule import Schedule
from tests.sampler.recorder import Recorder, seeded


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
