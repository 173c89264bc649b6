"""Modules without memory, made without torch's compiler; and what sampling on a CPU must not import."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from ggm_image.runtime.meta import shapes_only
from tests.models import tiny_model_folder


def test_modules_have_shapes_and_no_memory() -> None:
    with shapes_only():
        made = nn.Sequential(nn.Linear(3, 4), nn.Embedding(5, 6), nn.Conv2d(1, 2, 3), nn.GroupNorm(2, 4))
        nn.init.trunc_normal_(made[0].weight, std=0.1)  # type: ignore[arg-type]
        nn.init.normal_(made[1].weight)  # type: ignore[arg-type]
        made[1].weight.data.uniform_(-1, 1)  # type: ignore[union-attr, operator]
    assert all(x.is_meta for x in made.state_dict().values())
    assert [tuple(x.shape) for x in made.parameters()] == [(4, 3), (4,), (5, 6), (2, 1, 3, 3), (2,), (4,), (4,)]


def test_tensors_with_memory_are_filled_as_ever() -> None:
    real = torch.zeros(4)
    with shapes_only():
        nn.init.normal_(real)
        real[:2].uniform_(2, 3)
    assert bool((real[:2] >= 2).all())
    assert bool((real[2:] != 0).all())


SCRIPT = """
import sys
from ggm_image.cli.main import main
code = main(sys.argv[1:])
heavy = ("torch._dynamo", "torch._inductor", "torchvision.models", "timm", "scipy")
print("imported:", code, *[name for name in heavy if name in sys.modules])
"""


def test_sampling_on_a_cpu_does_not_import_compilers_and_model_zoos(tmp_path: Path) -> None:
    # seen to fail with timm's layers, and with random initial values on the meta device
    folder = tiny_model_folder(tmp_path)
    arguments = ["sample", "--model", folder, "-n", "2", "--device", "cpu", "--out", tmp_path / "x.png"]
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "imported: 0", (done.stdout, done.stderr)
