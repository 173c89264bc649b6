"""The page's layout in Gradio, and which action each control starts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ggm_image.web.actions import MOST_RESULTS, MOST_SAMPLES, STRENGTH, Actions
from ggm_image.web.controls import (
    IMAGE_TYPES,
    connect_job,
    default_preset,
    image_gallery,
    job_key,
    mask_editor,
    optional_classes,
    sampler_settings,
    start_and_cancel,
)
from ggm_image.web.images import open_upload, shown
from ggm_image.web.jobs import Finished
from ggm_image.web.updates import gallery_updates, progress_updates, shown_errors, status_text

CSS = """
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: 0 auto !important}
button {white-space: nowrap}
.status progress {width: 100%; height: .6rem; appearance: none; border: 0; background: var(--border-color-primary)}
.status progress::-webkit-progress-bar {background: var(--border-color-primary)}
.status progress::-webkit-progress-value {background: var(--color-accent)}
.status progress::-moz-progress-bar {background: var(--color-accent)}
.status p {margin: .2rem 0 0}
.images img {image-rendering: pixelated}
.images .grid-wrap {min-height: 0 !important; max-height: none !important}
.prose table, .prose pre {display: block; max-width: 100%; overflow-x: auto}
.prose table {border: 0 !important}
.card {max-width: calc(100vw - 4.5rem); overflow-x: auto}
.prose th, .prose td {white-space: nowrap}
footer {display: none !important}
"""


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
                actions.jobs.cancel(job_key(request, kind))

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
        preset = default_preset(presets)
        one_class = gr.Dropdown(choices=optional_classes(classes), value="", visible=bool(classes))
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
                info="Several take turns. Without one: all of them, or no class with a guide.",
                visible=bool(found.class_names),
            )
            count = gr.Slider(1, MOST_SAMPLES, value=16, step=1, label="Number of images")
            settings = sampler_settings(actions, model, found)
            guide, strength = _guide_controls()
            start, stop = start_and_cancel("Sample")
        with gr.Column(scale=2, min_width=320):
            status = gr.HTML(status_text(""), elem_classes="status")
            gallery = image_gallery("Samples", "Click an image to inpaint it.")
            download = gr.DownloadButton("Download images and manifest", interactive=False)
    images = gr.State([], time_to_live=3600)
    # The images stay in the session, so that a click on the gallery opens the image and not its enlarged view.
    inputs = [model, classes, count, *settings, guide, strength]

    def sample(request: gr.Request, *values: Any) -> Iterator[Any]:
        """Sample images."""
        yield from gallery_updates(shown_errors(actions.sample, job_key(request, "sample"), *values))

    connect_job(actions, "sample", sample, inputs, [status, gallery, images, download], start, stop)
    return {"classes": classes, "settings": settings, "gallery": gallery, "images": images}


def _guide_controls() -> tuple[gr.State, gr.Slider]:
    """A guide image and its strength; the state holds the image as it was uploaded."""
    guide = gr.State(None, time_to_live=3600)
    with gr.Accordion("Follow an image", open=False):
        with gr.Row():
            upload = gr.UploadButton("Open a guide", file_types=IMAGE_TYPES, size="sm", min_width=110)
            remove = gr.Button("Remove it", size="sm", min_width=110)
        view = gr.Image(
            label="Guide", show_label=False, interactive=False, buttons=[], height=160, image_mode=None, format="png"
        )
        strength = gr.Slider(
            0.01,
            2,
            value=STRENGTH,
            step=0.01,
            label="Strength",
            info="1 follows closely, 0.3 enlarges a small image, 0.01 varies it.",
        )

    def open_guide(path: str) -> Any:
        """Open an image for the samples to follow."""
        image = shown_errors(open_upload, path)
        return image, shown(image)

    upload.upload(open_guide, upload, [guide, view], api_name="open_guide")
    remove.click(lambda: (None, None), None, [guide, view], show_progress="hidden", api_visibility="private")
    return guide, strength


def _pixels(name: str) -> gr.Number:
    return gr.Number(0, label=f"{name} (pixels)", precision=0, minimum=0, min_width=110)


def _inpaint_tab(actions: Actions, model: gr.Dropdown, opened: gr.State) -> dict[str, Any]:
    found = actions.describe(actions.names[0])
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            upload = gr.UploadButton("Open an image", file_types=IMAGE_TYPES)
            gr.Markdown("Paint over what to replace.")
            editor = mask_editor()
        with gr.Column(scale=1, min_width=280):
            classes = gr.Dropdown(
                optional_classes(found.class_names), value="", label="Class", visible=bool(found.class_names)
            )
            count = gr.Slider(1, MOST_RESULTS, value=4, step=1, label="Number of results")
            settings = sampler_settings(actions, model, found, "Needs a class.")
            with gr.Accordion("Extend the image", open=False):
                # Two by two: four in one row leave the last one alone in a second row.
                with gr.Row():
                    left, right = _pixels("Left"), _pixels("Right")
                with gr.Row():
                    top, bottom = _pixels("Top"), _pixels("Bottom")
            with gr.Accordion("Edge of the mask", open=False), gr.Row():
                dilate, feather = _pixels("Dilate"), _pixels("Feather")
            start, stop = start_and_cancel("Inpaint")
    # Below both columns: on a phone the settings then come before the results.
    status = gr.HTML(status_text(""), elem_classes="status")
    gallery = image_gallery("Results", "Click a result to inpaint it again.")
    download = gr.DownloadButton("Download results and manifest", interactive=False)
    images = gr.State([], time_to_live=3600)
    inputs = [model, opened, editor, classes, count, *settings, left, top, right, bottom, dilate, feather]

    def inpaint(
        request: gr.Request, name: str, image: Any, edited: Any, class_name: str, *values: Any
    ) -> Iterator[Any]:
        """Inpaint the opened image where the editor's layers are painted."""
        # An emptied number field arrives as None.
        n, preset, guidance, seed, left, top, right, bottom, grow, blend = values
        steps = shown_errors(
            actions.inpaint,
            job_key(request, "inpaint"),
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

    def show_again(image: Image.Image | None) -> Any:
        """The editor's bin removes the image with the strokes; the image comes back."""
        return None if image is None else shown(image)

    editor.clear(show_again, opened, editor, show_progress="hidden", api_visibility="private")
    connect_job(actions, "inpaint", inpaint, inputs, [status, gallery, images, download], start, stop)
    return {
        "upload": upload,
        "editor": editor,
        "status": status,
        "classes": classes,
        "settings": settings,
        "gallery": gallery,
        "images": images,
    }


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
                optional_classes(found.class_names), value="", label="Class", visible=bool(found.class_names)
            )
            start, stop = start_and_cancel("Show signal")
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
        steps = shown_errors(actions.signal, job_key(request, "signal"), name, source, share, class_name or None)
        for update in progress_updates(steps):
            if isinstance(update, Finished):
                yield status_text(""), update.result
            else:
                yield update, gr.skip()

    inputs, outputs = [model, opened, level, classes], [status, result]
    connect_job(actions, "signal", signal, inputs, outputs, start, stop)

    def again(request: gr.Request, name: str, source: Any, share: float, class_name: str) -> Iterator[Any]:
        if source is not None:
            yield from signal(request, name, source, share, class_name)

    # Moving the slider shows the new map at once; only its last position counts.
    level.release(again, inputs, outputs, show_progress="hidden", api_visibility="private", trigger_mode="always_last")
    return {"upload": upload, "image": image, "status": status, "classes": classes}


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
