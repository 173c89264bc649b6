"""Controls that the tabs of the page share."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ggm_image.web.actions import Actions
from ggm_image.web.updates import status_text

BRUSH = "#e61e1e"
IMAGE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"]


def mask_editor() -> gr.ImageEditor:
    """Shows the opened image and lets the user paint over it in one colour, nothing else."""
    return gr.ImageEditor(
        label="Mask",
        show_label=False,
        height=480,
        type="pil",
        format="png",
        sources=[],
        transforms=[],
        layers=False,
        buttons=[],
        brush=gr.Brush(default_size=40, colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
        eraser=gr.Eraser(default_size=40),
        canvas_size=(512, 512),
        placeholder="Open an image, or click a sample.",
    )


def sampler_settings(actions: Actions, model: gr.Dropdown, found: Any, hint: str = "1 disables it.") -> list[Any]:
    """Preset, guidance with a hint, and seed; guidance follows the preset until it is changed."""
    names = list(found.presets)
    default = default_preset(names)
    with gr.Group():
        preset = gr.Radio(names, value=default, label="Preset")
        with gr.Row():
            guidance = gr.Number(found.settings(default).guidance, label="Guidance", info=hint, min_width=110)
            seed = gr.Number(0, label="Seed", info="A whole number.", precision=0, min_width=110)
        other = gr.Button("Another seed", size="sm")

    def follow(name: str, chosen: str) -> float:
        """The guidance scale of a preset."""
        return float(actions.describe(name).settings(chosen).guidance)

    preset.change(follow, [model, preset], guidance, show_progress="hidden", api_visibility="private")
    other.click(lambda: secrets.randbelow(10**6), None, seed, show_progress="hidden", api_visibility="private")
    return [preset, guidance, seed]


def default_preset(names: Sequence[str]) -> str:
    return "best" if "best" in names else names[0]


def start_and_cancel(text: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(text, variant="primary", min_width=110), gr.Button("Cancel", min_width=110)


def image_gallery(label: str, hint: str) -> gr.Gallery:
    gr.Markdown(hint)
    return gr.Gallery(
        label=label,
        show_label=False,  # it would cover the first image
        columns=4,
        height="auto",
        allow_preview=False,
        object_fit="contain",
        format="png",
        buttons=[],
        interactive=False,
        elem_classes="images",
        type="pil",
    )


def connect_job(
    actions: Actions,
    kind: str,
    function: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    start: gr.Button,
    stop: gr.Button,
) -> None:
    """Start a job by one button and cancel it, waiting or running, by the other."""
    # The jobs themselves wait for the device; a second limit would keep a session from seeing its place.
    event = start.click(
        function, inputs, outputs, show_progress="hidden", api_name=kind, concurrency_limit=4, trigger_mode="once"
    )

    def cancel(request: gr.Request) -> str:
        """Cancel this session's job."""
        return status_text("Cancelled." if actions.jobs.cancel(job_key(request, kind)) else "No job is running.")

    stop.click(cancel, None, outputs[0], queue=False, cancels=[event], api_name=f"cancel_{kind}")


def optional_classes(classes: Sequence[str]) -> list[tuple[str, str]]:
    return [("no class", ""), *((name, name) for name in classes)]


def job_key(request: gr.Request, kind: str) -> str:
    return f"{getattr(request, 'session_hash', None)}/{kind}"
