"""Many runs in several processes: they end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
SCRIPT = """
import os, signal, time
from pathlib import Path
from experiments import Results

def work(context, task):
    Path(context["out"], f"{os.getpid()}.pid").touch()
    time.sleep(60)
    return {}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    results = Results(Path("results.json"), {})
    results.run([{"n": 0}, {"n": 1}], work, {"out": "."}, processes=2, label="sleep")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(tmp_path: Path, number: signal.Signals) -> None:
    """Seen to fail: after kill -9 the workers went on with their tasks, beside those of the next run; and after Ctrl-C
    the process waited for them."""
    (tmp_path / "sleepers.py").write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TOOLS / 'experiments'}{os.pathsep}{TOOLS.parent}",
        "OMP_NUM_THREADS": "1",
    }
    parent = subprocess.Popen([sys.executable, "sleepers.py"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 100
    while len(workers := [int(path.stem) for path in tmp_path.glob("*.pid")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    parent.send_signal(number)
    parent.wait(timeout=30)
    assert len(workers) == 2
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
