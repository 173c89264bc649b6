"""What a running job sends to the page: progress, previews, results and errors."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ggm_image.errors import UserError
from ggm_image.web.actions import Images
from ggm_image.web.images import shown
from ggm_image.web.jobs import Cancelled, Finished, Step

SHOWN_SECONDS = 15
"""Of a message that lies over the page."""


def progress_updates(steps: Iterator[Step | Finished]) -> Iterator[Any]:
    """Progress of a job as HTML, or as a `Step` where it has a preview; at the end `Finished`.

    Raises:
        gr.Error: for an error of the user, which the page shows and does not log.
    """
    yield status_text("Waiting for the device.")
    try:
        for step in steps:
            yield step if isinstance(step, Finished) else (progress_bar(step) if step.preview is None else step)
    except Cancelled:
        yield status_text("Cancelled.")
    except UserError as error:
        yield status_text(str(error))  # stays on the page; the message over it disappears
        raise _shown(error) from error


def gallery_updates(steps: Iterator[Step | Finished]) -> Iterator[Any]:
    """Updates of a tab's status, gallery, images and download button."""
    for update in progress_updates(steps):
        if isinstance(update, Finished):
            done: Images = update.result
            button = gr.DownloadButton(value=str(done.download), interactive=True)
            yield status_text(done.note), [shown(image) for image in done.images], done.images, button
        elif isinstance(update, Step):
            yield progress_bar(update), [shown(image) for image in update.preview], gr.skip(), gr.skip()
        else:
            yield update, gr.skip(), gr.skip(), gr.skip()


def progress_bar(step: Step) -> str:
    """A bar with the steps done and the time left, as HTML."""
    left = "" if step.seconds_left is None else f", {_duration(step.seconds_left)} left"
    bar = f'<progress value="{step.done}" max="{step.total}" aria-label="Progress"></progress>'
    note = f"<p>{html.escape(step.note)}</p>" if step.note else ""
    return f"{bar}<p>{step.done} of {step.total} steps{left}</p>{note}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def status_text(text: str) -> str:
    """A line of text that screen readers announce, as HTML."""
    return f'<p role="status" aria-live="polite">{html.escape(text)}</p>'


def shown_errors(function: Callable[..., Any], *values: Any, **options: Any) -> Any:
    """The function's result; an error of the user becomes Gradio's, which the page shows and does not log."""
    try:
        return function(*values, **options)
    except UserError as error:
        raise _shown(error) from error


def _shown(error: UserError) -> gr.Error:
    return gr.Error(str(error), duration=SHOWN_SECONDS, print_exception=False)
