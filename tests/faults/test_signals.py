"""SIGTERM as a cluster sends it, 30 seconds before SIGKILL: every command ends by itself, and can be resumed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.stories import NAMES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_termination_is_clean_and_leaves_no_trace(name: str) -> None:
    """Seen to fail without a handler: encode died of the signal, with exit code -15."""
    arguments = [sys.executable, "-m", "tests.faults.soak", "--kills", "3", "--seed", "2", "--only", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*arguments, "--signal", "TERM"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "3 kills" in done.stdout
