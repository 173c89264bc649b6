"""Many short runs in several processes, each of one thread: tasks in, rows out, and nothing done twice."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from ggm_image.errors import UserError
from ggm_image.io.files import write_json
from ggm_image.runtime.progress import progress_bar

Row = dict[str, Any]


def read_results(path: Path, rows: str) -> Row:
    """What a file of results holds: its ``protocol``, a dict, and its list of ``rows``, under the name given.

    Raises:
        UserError: the file is damaged, or of another kind.
    """
    try:
        saved = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            "results cannot be read", f"{path}: {error}", "remove the file, or give another --out"
        ) from error
    if (
        not isinstance(saved, dict)
        or not isinstance(saved.get("protocol"), dict)
        or not isinstance(saved.get(rows), list)
    ):
        raise UserError("results are of another kind", path, "give another --out")
    return saved


class Results:
    """Rows of JSON in one file, each with the task that it answers; written after every row.

    Args:
        path: the file; what it holds is taken over.
        protocol: what all rows depend on; a file of another protocol is refused.
    """

    def __init__(self, path: Path, protocol: Row) -> None:
        self.path, self.protocol = path, json.loads(json.dumps(protocol))
        saved = read_results(path, "rows") if path.exists() else {"protocol": self.protocol, "rows": []}
        if saved["protocol"] != self.protocol:
            differ = [key for key in self.protocol if saved["protocol"].get(key) != self.protocol[key]]
            raise UserError(f"{path} was made by another protocol", ", ".join(differ), "give another --out")
        self.rows: list[Row] = saved["rows"]

    def of(self, **task: Any) -> list[Row]:
        """The rows whose task has these entries."""
        return [row for row in self.rows if all(row["task"].get(key) == value for key, value in task.items())]

    def add(self, row: Row) -> None:
        self.rows.append(row)
        write_json(self.path, {"protocol": self.protocol, "rows": self.rows})

    def run(
        self, tasks: list[Row], work: Callable[[Row, Row], Row], context: Row, *, processes: int, label: str
    ) -> None:
        """Do the tasks that have no row yet. ``work(context, task)`` is a function of a module; its answer is the row.

        What the answer does not depend on, such as where files lie, belongs into ``context``. With 0 processes the
        tasks are done here, one after the other.

        Raises:
            UserError: the first one that a task raises, once the running tasks are done.
        """
        done = [row["task"] for row in self.rows]
        missing = [task for task in json.loads(json.dumps(tasks)) if task not in done]
        if not missing:
            return
        if not processes:
            for task in missing:
                self.add({"task": task, **work(context, task)})
            return
        threads = max(1, torch.get_num_threads() // processes)
        with (
            ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _set_up, (threads,)) as pool,
            progress_bar(total=len(missing), unit="task", label=label) as advance,
        ):
            waiting = {pool.submit(work, context, task): task for task in missing}
            try:
                for future in as_completed(waiting):
                    self.add({"task": waiting[future], **future.result()})
                    advance(1)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if not isinstance(error, Exception):  # Ctrl-C or SIGTERM: nobody waits for what runs
                    for worker in multiprocessing.active_children():
                        worker.terminate()
                raise


def _set_up(threads: int) -> None:
    """A process of the pool: its threads, and its end should the one that started it be killed."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
