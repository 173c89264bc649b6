"""The VQGAN layer against taming's own quantizer, and its checks."""

import pytest
import torch
from taming.modules.vqvae.quantize import VectorQuantizer

from ggm_image.errors import UserError
from ggm_image.tokenizers.vq import vqgan
from ggm_image.tokenizers.vq.vqgan import VQGAN, Codebook
from tests.models import TINY_VQGAN


@pytest.fixture(scope="module")
def tokenizer() -> VQGAN:
    torch.manual_seed(0)
    model = VQGAN(TINY_VQGAN, name="tiny").eval().requires_grad_(False)
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


@pytest.mark.parametrize(("codes", "width", "grid"), [(1024, 16, 8), (16384, 256, 4), (512, 4, 16)])
def test_indices_are_those_of_taming(codes: int, width: int, grid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # seen to fail with argmax, without the squares of the codes, and with chunks put together in another order
    torch.manual_seed(1)
    theirs = VectorQuantizer(codes, width, beta=0.25)
    torch.nn.init.normal_(theirs.embedding.weight)
    ours = Codebook(codes, width)
    ours.load_state_dict(theirs.state_dict())
    z = torch.randn(6, width, grid, grid)
    expected = theirs(z)[2][2].view(6, grid, grid)
    flat = z.permute(0, 2, 3, 1).reshape(-1, width)
    assert torch.equal(ours.nearest(flat).view(6, grid, grid), expected)

    # in chunks, sums may round differently: an index may differ only where two codes are equally near
    monkeypatch.setattr(vqgan, "DISTANCES_IN_MEMORY", 7 * codes)
    chunked = ours.nearest(flat).view(6, grid, grid)
    differ = (chunked != expected).flatten()
    distances = torch.cdist(flat[differ].double(), ours.embedding.weight.double())
    best = distances.gather(1, expected.flatten()[differ, None])
    assert torch.allclose(best, distances.gather(1, chunked.flatten()[differ, None]), atol=1e-5)
    assert int(differ.sum()) <= 1


def test_first_code_wins_a_tie() -> None:
    book = Codebook(4, 2)
    book.embedding.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert book.nearest(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).tolist() == [0, 1]
    assert book.nearest(torch.empty(0, 2)).tolist() == []


def test_codes_are_compared_in_full_precision() -> None:
    """Seen to fail with the products in bfloat16."""
    book = Codebook(256, 8)
    torch.nn.init.normal_(book.embedding.weight)
    z = torch.randn(500, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = book.nearest(z)
    assert torch.equal(found, book.nearest(z))


def test_codes_survive_a_round_trip_through_latents(tokenizer: VQGAN) -> None:
    tokens = torch.arange(32).view(2, 4, 4)
    z = tokenizer.codes(tokens)
    assert torch.equal(tokenizer.quantize.nearest(z.permute(0, 2, 3, 1).reshape(-1, 4)).view(2, 4, 4), tokens)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (32, 16), (8, 24)])
def test_shapes_of_any_multiple_of_the_cell(tokenizer: VQGAN, h: int, w: int) -> None:
    tokens = tokenizer.encode(torch.rand(2, 3, h, w) * 2 - 1)
    assert tokens.shape == (2, h // 4, w // 4)
    assert tokens.dtype == torch.int64
    images = tokenizer.decode(tokens)
    assert images.shape == (2, 3, h, w)
    assert float(images.abs().max()) <= 1


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"floats of shape"),
        (torch.zeros(2, 1, 16, 16), r"\(2, 1, 16, 16\)"),
        (torch.zeros(3, 16, 16), r"\(3, 16, 16\)"),
        (torch.zeros(2, 3, 15, 16), "multiples of 4"),
        (torch.full((1, 3, 16, 16), torch.nan), "finite"),
    ],
)
def test_bad_images_are_refused(tokenizer: VQGAN, images: torch.Tensor, match: str) -> None:
    with pytest.raises(UserError, match=match):
        tokenizer.encode(images)


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        (torch.full((1, 4, 4), 32), r"\[0, 32\).*got 32 to 32.*another tokenizer"),
        (torch.full((1, 4, 4), -1), r"got -1"),
        (torch.zeros(1, 16, dtype=torch.int64), r"\(N, H, W\)"),
        (torch.zeros(1, 4, 4), "integers"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_tokens_are_refused(tokenizer: VQGAN, tokens: torch.Tensor, match: str) -> None:
    with pytest.raises(UserError, match=match):
        tokenizer.decode(tokens)
