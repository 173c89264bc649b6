"""The page with a tiny model, served by the command itself on a free port."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.models import tiny_model_folder


@dataclass(frozen=True)
class Page:
    """A served page.

    Attributes:
        url: of the page, without a slash at its end.
        model: folder of its model.
    """

    url: str
    model: Path


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'ggm-image[demo]'")
    folder = tiny_model_folder(tmp_path_factory.mktemp("model"))
    rows = [f"| {' | '.join(20 * [cell])} |" for cell in ("heading", "---", "value")]
    wide = f"# Tiny\n\n    {'a very long command ' * 20}\n\n" + "\n".join(rows)
    (folder / "README.md").write_text(wide)
    command = [sys.executable, "-m", "ggm_image.cli.main", "demo", "--model", str(folder), "--port", "0"]
    log = tmp_path_factory.mktemp("log") / "stderr"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with (
        open(log, "wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True) as process,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), log.read_text()
        yield Page(url, folder)
        process.terminate()
        process.wait(timeout=90)
    assert "/ggm_image/web/" not in log.read_text()  # Gradio prints tracebacks of values that are no choice
