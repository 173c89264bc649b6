"""What checks the shapes in signatures, see `tests/shapes.py`."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from torch import Tensor

from ggm_image.glauber import heat_bath
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from tests import shapes
from tests.models import tiny_model_folder


def test_shapes_are_checked_and_nothing_else() -> None:
    @jaxtyped(typechecker=shapes.check)
    def pick(values: Float[Tensor, "n v"], at: Int[Tensor, " n"], name: int = 0) -> Float[Tensor, " n"]:
        return values[0] if name == "wrong" else values.gather(1, at[:, None])[:, 0]

    values = torch.zeros(3, 4)
    assert pick(values, torch.tensor([0, 1, 2]), "any").shape == (3,)  # type: ignore[arg-type]
    for wrong in (torch.zeros(2, dtype=torch.int64), torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(TypeCheckError):
            pick(values, wrong)
    with pytest.raises(TypeCheckError, match="return value"):
        pick(values, torch.tensor([0, 1, 2]), "wrong")  # type: ignore[arg-type]


def test_decode_states_cells_and_pixels(tmp_path: Path) -> None:
    """Seen to fail when the grid and the image shared the names of their axes."""
    model = load_model(tiny_model_folder(tmp_path), device="cpu")
    decode = jaxtyped(typechecker=shapes.check)(Model.decode.__wrapped__)  # type: ignore[attr-defined]
    assert decode(model, torch.zeros(2, 4, 4, dtype=torch.int64)).shape == (2, 3, 16, 16)


@pytest.mark.skipif(os.environ.get("SHAPES", "") in ("", "0"), reason="the tests run without SHAPES=1")
def test_the_package_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        heat_bath(torch.zeros(2, 3), torch.zeros(5), torch.full((3,), 1 / 3))
