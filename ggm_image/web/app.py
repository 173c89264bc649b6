"""The page's layout in Gradio, and which action each control starts."""

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ggm_image.web.actions import MOST_RESULTS, MOST_SAMPLES, Actions
from ggm_image.web.images import open_upload, shown
from ggm_image.web.jobs import Finished
from ggm_image.web.updates import gallery_updates, progress_updates, shown_errors, status_text

CSS = """
.gradio-container {max-width: 1200px !important; margin: 0 auto !important}
.status progress {width: 100%; height: .6rem; appearance: none; border: 0; background: var(--border-color-primary)}
.status progress::-webkit-progress-bar {background: var(--border-color-primary)}
.status progress::-webkit-progress-value {background: var(--color-accent)}
.status progress::-moz-progress-bar {background: var(--color-accent)}
.status p {margin: .2rem 0 0}
.images img {image-rendering: pixelated}
.images .grid-wrap {min-height: 0 !important; max-height: none !important}
.prose table, .prose pre {display: block; max-width: 100%; overflow-x: auto}
.card {max-width: calc(100vw - 4.5rem); overflow-x: auto}
.prose th, .prose td {white-space: nowrap}
footer {display: none !important}
"""
BRUSH = "#e61e1e"
IMAGE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"]


def system_theme() -> gr.themes.Base:
    """Gradio's look with the system's fonts, so that nothing is downloaded."""
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "monospace"])
    return theme.set(block_info_text_color="*neutral_500")  # of the hints: the default is too light to read on white


def build_page(actions: Actions) -> gr.Blocks:
    """The page."""
    first = actions.names[0]
    page = gr.Blocks(title="ggm-image", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        gr.Markdown("# ggm-image")
        model = gr.Dropdown(actions.names, value=first, label="Model", visible=len(actions.names) > 1)
        opened = gr.State(None, time_to_live=3600)
        with gr.Tabs() as tabs:
            with gr.Tab("Sample", id="sample"):
                sampling = _sample_tab(actions, model)
            with gr.Tab("Inpaint", id="inpaint"):
                painting = _inpaint_tab(actions, model, opened)
            with gr.Tab("Signal", id="signal"):
                looking = _signal_tab(actions, model, opened)
            with gr.Tab("About", id="about"):
                card = gr.Markdown(_card(actions, first), elem_classes="card")

        _connect_images(opened, tabs, sampling, painting, looking)
        _connect_model(actions, model, card, sampling, painting, looking)

        def leave(request: gr.Request) -> None:
            for kind in ("sample", "inpaint", "signal"):
                actions.jobs.cancel(_key(request, kind))

        page.unload(leave)
    page.queue(default_concurrency_limit=4, max_size=32)
    return page


def _connect_images(
    opened: gr.State, tabs: gr.Tabs, sampling: dict[str, Any], painting: dict[str, Any], looking: dict[str, Any]
) -> None:
    """An image that is uploaded in one tab, or chosen in a gallery, is opened for both Inpaint and Signal."""

    def open_file(path: str) -> Any:
        """Open an uploaded image for Inpaint and Signal."""
        image = shown_errors(open_upload, path)
        return image, shown(image), shown(image), f"{Path(path).name}: {image.width} x {image.height} pixels"

    def take(images: list[Image.Image] | None, event: gr.SelectData) -> Any:
        """Open an image of a gallery."""
        image = (images or [])[event.index]
        # Without a selection: its frame would stay around the next image that the gallery shows there.
        return image, shown(image), shown(image), "", gr.Tabs(selected="inpaint"), gr.Gallery(selected_index=None)

    views = [opened, painting["editor"], looking["image"]]
    for tab, name in ((painting, "open_image"), (looking, "open_signal_image")):
        tab["upload"].upload(open_file, tab["upload"], [*views, tab["status"]], api_name=name)
    for tab in (sampling, painting):
        outputs = [*views, painting["status"], tabs, tab["gallery"]]
        tab["gallery"].select(take, tab["images"], outputs, api_visibility="private")


def _connect_model(
    actions: Actions,
    model: gr.Dropdown,
    card: gr.Markdown,
    sampling: dict[str, Any],
    painting: dict[str, Any],
    looking: dict[str, Any],
) -> None:
    """Another model has other classes, presets and another card."""

    def change_model(name: str) -> Any:
        """Show another model's classes and presets."""
        found = actions.describe(name)
        classes, presets = found.class_names, list(found.presets)
        preset = _default_preset(presets)
        one_class = gr.Dropdown(choices=_optional(classes), value="", visible=bool(classes))
        settings = gr.Radio(choices=presets, value=preset), float(found.settings(preset).guidance)
        several = gr.Dropdown(choices=classes, value=[], visible=bool(classes))
        return several, one_class, one_class, *settings, *settings, _card(actions, name)

    changed = [tab["classes"] for tab in (sampling, painting, looking)]
    changed += [*sampling["settings"][:2], *painting["settings"][:2], card]
    model.change(change_model, model, changed, api_visibility="private")


def _sample_tab(actions: Actions, model: gr.Dropdown) -> dict[str, Any]:
    found = actions.describe(actions.names[0])
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            classes = gr.Dropdown(
                found.class_names,
                multiselect=True,
                label="Classes",
                info="Several take turns; all of them if none is chosen.",
                visible=bool(found.class_names),
            )
            count = gr.Slider(1, MOST_SAMPLES, value=16, step=1, label="Number of images")
            settings = _settings(actions, model, found)
            start, stop = _buttons("Sample")
        with gr.Column(scale=2, min_width=320):
            status = gr.HTML(status_text(""), elem_classes="status")
            gallery = _gallery("Samples", "Click an image to inpaint it.")
            download = gr.DownloadButton("Download images and manifest", interactive=False)
    images = gr.State([], time_to_live=3600)
    # The images stay in the session, so that a click on the gallery opens the image and not its enlarged view.
    inputs = [model, classes, count, *settings]

    def sample(request: gr.Request, *values: Any) -> Iterator[Any]:
        """Sample images."""
        yield from gallery_updates(shown_errors(actions.sample, _key(request, "sample"), *values))

    _connect(actions, "sample", sample, inputs, [status, gallery, images, download], start, stop)
    return {"classes": classes, "settings": settings, "gallery": gallery, "images": images}


def _inpaint_tab(actions: Actions, model: gr.Dropdown, opened: gr.State) -> dict[str, Any]:
    found = actions.describe(actions.names[0])
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            upload = gr.UploadButton("Open an image", file_types=IMAGE_TYPES)
            gr.Markdown("Paint over what to replace.")
            editor = _mask_editor()
        with gr.Column(scale=1, min_width=280):
            classes = gr.Dropdown(
                _optional(found.class_names), value="", label="Class", visible=bool(found.class_names)
            )
            count = gr.Slider(1, MOST_RESULTS, value=4, step=1, label="Number of results")
            settings = _settings(actions, model, found)
            with gr.Accordion("Extend the image", open=False), gr.Row():
                sides = [
                    gr.Number(0, label=f"{side} (pixels)", precision=0, minimum=0, min_width=110)
                    for side in ("Left", "Top", "Right", "Bottom")
                ]
            with gr.Accordion("Edge of the mask", open=False), gr.Row():
                dilate = gr.Number(0, label="Dilate (pixels)", precision=0, minimum=0, min_width=110)
                feather = gr.Number(0, label="Feather (pixels)", precision=0, minimum=0, min_width=110)
            start, stop = _buttons("Inpaint")
    # Below both columns: on a phone the settings then come before the results.
    status = gr.HTML(status_text(""), elem_classes="status")
    gallery = _gallery("Results", "Click a result to inpaint it again.")
    download = gr.DownloadButton("Download results and manifest", interactive=False)
    images = gr.State([], time_to_live=3600)
    inputs = [model, opened, editor, classes, count, *settings, *sides, dilate, feather]

    def inpaint(
        request: gr.Request, name: str, image: Any, edited: Any, class_name: str, *values: Any
    ) -> Iterator[Any]:
        """Inpaint the opened image where the editor's layers are painted."""
        # An emptied number field arrives as None.
        n, preset, guidance, seed, left, top, right, bottom, grow, blend = values
        steps = shown_errors(
            actions.inpaint,
            _key(request, "inpaint"),
            name,
            image,
            (edited or {}).get("layers") or [],
            class_name or None,
            n,
            preset,
            guidance,
            seed,
            extend=(left or 0, top or 0, right or 0, bottom or 0),
            dilate=grow or 0,
            feather=blend or 0,
        )
        yield from gallery_updates(steps)

    _connect(actions, "inpaint", inpaint, inputs, [status, gallery, images, download], start, stop)
    shown_parts = {"upload": upload, "editor": editor, "status": status, "gallery": gallery, "images": images}
    return {**shown_parts, "classes": classes, "settings": settings}


def _mask_editor() -> gr.ImageEditor:
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


def _signal_tab(actions: Actions, model: gr.Dropdown, opened: gr.State) -> dict[str, Any]:
    found = actions.describe(actions.names[0])
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = gr.UploadButton("Open an image", file_types=IMAGE_TYPES)
            image = gr.Image(
                label="Image", show_label=False, interactive=False, buttons=[], elem_classes="images", type="pil"
            )
            level = gr.Slider(
                0.05,
                0.95,
                value=0.9,
                step=0.05,
                label="Signal level",
                info="Share of tokens that you expect to be signal.",
            )
            classes = gr.Dropdown(
                _optional(found.class_names), value="", label="Class", visible=bool(found.class_names)
            )
            start, stop = _buttons("Show signal")
        with gr.Column(scale=2, min_width=320):
            status = gr.HTML(status_text(""), elem_classes="status")
            gr.Markdown("The redder, the less a token looks like signal.")
            result = gr.Image(
                label="Signal map",
                show_label=False,
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],
                elem_classes="images",
            )

    def signal(request: gr.Request, name: str, source: Any, share: float, class_name: str) -> Iterator[Any]:
        """The signal map of the opened image."""
        steps = shown_errors(actions.signal, _key(request, "signal"), name, source, share, class_name or None)
        for update in progress_updates(steps):
            if isinstance(update, Finished):
                yield status_text(""), update.result
            else:
                yield update, gr.skip()

    inputs, outputs = [model, opened, level, classes], [status, result]
    _connect(actions, "signal", signal, inputs, outputs, start, stop)

    def again(request: gr.Request, name: str, source: Any, share: float, class_name: str) -> Iterator[Any]:
        if source is not None:
            yield from signal(request, name, source, share, class_name)

    # Moving the slider shows the new map at once; only its last position counts.
    level.release(again, inputs, outputs, show_progress="hidden", api_visibility="private", trigger_mode="always_last")
    return {"upload": upload, "image": image, "status": status, "classes": classes}


def _settings(actions: Actions, model: gr.Dropdown, found: Any) -> list[Any]:
    """Preset, guidance and seed; guidance follows the preset until it is changed."""
    names = list(found.presets)
    default = _default_preset(names)
    with gr.Group():
        preset = gr.Radio(names, value=default, label="Preset")
        with gr.Row():
            guidance = gr.Number(
                found.settings(default).guidance, label="Guidance", info="1 disables it.", min_width=110
            )
            seed = gr.Number(0, label="Seed", info="A whole number.", precision=0, min_width=110)
        other = gr.Button("Another seed", size="sm")

    def follow(name: str, chosen: str) -> float:
        """The guidance scale of a preset."""
        return float(actions.describe(name).settings(chosen).guidance)

    preset.change(follow, [model, preset], guidance, show_progress="hidden", api_visibility="private")
    other.click(lambda: secrets.randbelow(10**6), None, seed, show_progress="hidden", api_visibility="private")
    return [preset, guidance, seed]


def _default_preset(names: Sequence[str]) -> str:
    return "best" if "best" in names else names[0]


def _buttons(text: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(text, variant="primary", min_width=110), gr.Button("Cancel", min_width=110)


def _gallery(label: str, hint: str) -> gr.Gallery:
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


def _connect(
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
        return status_text("Cancelled." if actions.jobs.cancel(_key(request, kind)) else "No job is running.")

    stop.click(cancel, None, outputs[0], queue=False, cancels=[event], api_name=f"cancel_{kind}")


def _optional(classes: Sequence[str]) -> list[tuple[str, str]]:
    return [("no class", ""), *((name, name) for name in classes)]


def _key(request: gr.Request, kind: str) -> str:
    return f"{getattr(request, 'session_hash', None)}/{kind}"


def _card(actions: Actions, name: str) -> str:
    """The model's card; what it links to inside its folder is not served."""
    found = actions.describe(name)
    path = found.folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", text)
    sizes = found.network
    facts = f"**{found.name}**: {sizes.grid[1]} x {sizes.grid[0]} tokens of {sizes.codebook_size:,} codes, "
    facts += f"{sizes.classes} classes, tokenizer {found.tokenizer_name}."
    return f"{facts}\n\n{text or 'This model has no card.'}"
