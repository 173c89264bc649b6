"""The signal map: windows, batches and padding."""

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.network import Transformer
from ggm_image.pipelines.image import Model


def test_signal_of_any_size_is_the_mean_over_windows(model: Model) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (16, 30, 3), dtype=np.uint8)
    found = model.signal(Image.fromarray(pixels))
    assert found.shape == (4, 7)
    left = model.signal(Image.fromarray(pixels[:, :16]))
    right = model.signal(Image.fromarray(pixels[:, 12:28]))
    expected = torch.cat([left[:, :3], (left[:, 3:] + right[:, :1]) / 2, right[:, 1:]], dim=1)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match="at least 4 pixels"):
        model.signal(Image.new("RGB", (3, 16)))


def test_signal_judges_windows_in_batches(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # seen to fail with a network call for every window
    pixels = np.random.default_rng(5).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    rows: list[int] = []
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda x, *rest: rows.append(len(x)) or forward(x, *rest))
    found = model.signal(Image.fromarray(pixels), block=4)
    assert rows == [model.kernel_batch] * 2 * 4  # 20 windows in two batches, 16 sites in blocks of 4
    corner = model.signal(Image.fromarray(pixels[:16, :16]), block=4)
    torch.testing.assert_close(found[:4, :4], corner)


def test_a_grid_does_not_depend_on_the_others_that_are_judged(model: Model) -> None:
    """Every call has the same number of rows. Seen to fail with a last batch that is not padded."""
    tokens = torch.randint(0, 32, (model.kernel_batch + 2, 4, 4), generator=torch.Generator().manual_seed(1))
    shapes = []
    forward = Transformer.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "forward", lambda self, *a: shapes.append(len(a[0])) or forward(self, *a))
        found = model.signal_of_tokens(tokens)
    assert set(shapes) == {model.kernel_batch}
    assert torch.equal(model.signal_of_tokens(tokens[-1:])[0], found[-1])
