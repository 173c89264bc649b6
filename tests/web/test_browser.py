"""The page in Chromium, by mouse and keyboard."""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ggm_image.pipelines.model_folder import find_model
from tests.web.conftest import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("web"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt install chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(page: Page, chromium: Any) -> Iterator[Any]:
    """A tab with the page open; fails if the console shows an error or another host is asked for something."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    opened, errors, requests = context.new_page(), [], []
    opened.set_default_timeout(60_000)
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(page.url)
    opened.get_by_role("button", name="Sample", exact=True).wait_for()
    yield opened
    context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith((page.url, "data:", "blob:"))] == []


def button(tab: Any, name: str) -> Any:
    return tab.get_by_role("button", name=name, exact=True).locator("visible=true")


def wait_for_image(tab: Any, canvas: Any) -> None:
    """Wait until the editor shows an image and no stroke; a loaded machine takes long to draw."""
    canvas.wait_for()
    for _ in range(60):
        shown = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
        painted = (np.abs(shown - (230, 30, 30)) < 3).all(axis=2)
        if shown[180:-180, 150:-150].std() > 10 and painted.mean() < 0.001:
            return
        tab.wait_for_timeout(1000)
    raise AssertionError("the editor shows no image, or strokes on it")


def download(tab: Any, name: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    with tab.expect_download() as started:
        button(tab, name).click()
    with zipfile.ZipFile(started.value.path()) as archive:
        names = sorted(archive.namelist())
        images = [np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in names if n.endswith(".png")]
        return images, json.loads(archive.read(next(n for n in names if n.endswith(".json"))))


def test_sample_paint_and_inpaint(tab: Any) -> None:
    button(tab, "Sample").click()
    tab.get_by_text("16 images, seed 0").wait_for()
    before, _ = download(tab, "Download images and manifest")
    tab.locator("button.thumbnail-item >> visible=true").nth(2).click()
    canvas = tab.locator("canvas").first
    wait_for_image(tab, canvas)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x - 40, y)
    tab.mouse.down()
    tab.mouse.move(x + 40, y + 20, steps=8)
    tab.mouse.up()
    tab.wait_for_timeout(1000)
    button(tab, "Inpaint").click()
    tab.get_by_text("pixels inpainted").wait_for()
    results, manifest = download(tab, "Download results and manifest")
    assert 0 < manifest["hole_pixels"] < 200
    changed = np.stack([(result != before[2]).any(axis=2) for result in results])
    assert changed.any()
    assert changed.any(axis=0).sum() <= manifest["hole_pixels"]
    assert not changed[:, :4].any()  # far from the stroke
    assert not changed[:, 12:].any()
    button(tab, "Clear canvas").click()  # takes the strokes away; the image stays
    wait_for_image(tab, canvas)


def test_another_model_brings_its_own_guidance(tab: Any) -> None:
    """And another seed is one click away."""
    guidance = tab.get_by_label("Guidance").locator("visible=true")
    guidance.fill("9")
    tab.get_by_label("Model").click()
    tab.get_by_role("option", name="cifar10").click()
    expected = find_model("cifar10").settings("best").guidance
    tab.wait_for_function("([e, value]) => Number(e.value) === value", arg=[guidance.element_handle(), expected])
    seed = tab.get_by_label("Seed").locator("visible=true")
    assert seed.input_value() == "0"
    button(tab, "Another seed").click()
    tab.wait_for_function("e => e.value !== '0'", arg=seed.element_handle())


def test_cancel_and_bad_uploads(tab: Any, tmp_path: Path) -> None:
    tab.get_by_label("exact").locator("visible=true").check()
    button(tab, "Sample").click()
    tab.get_by_text(re.compile("of [0-9]+ steps")).wait_for()
    button(tab, "Cancel").click()
    tab.get_by_text("Cancelled.").wait_for()
    tab.get_by_role("tab", name="Inpaint").click()
    (tmp_path / "notes.png").write_text("not an image")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    for name, message in (("notes.png", "image cannot be read"), ("large.png", "at most 4.2 million pixels")):
        with tab.expect_file_chooser() as chooser:
            button(tab, "Open an image").click()
        chooser.value.set_files(tmp_path / name)
        tab.get_by_text(message).first.wait_for()


def test_every_control_has_a_name_and_is_reached_by_keyboard(tab: Any) -> None:
    find = """() => [...document.querySelectorAll('button, input, select, textarea, [role=tab]')]
        .filter(e => e.offsetParent !== null && !e.disabled && e.type !== 'file')
        .map(e => [e.ariaLabel || e.title || e.innerText || [...(e.labels || [])].map(l => l.innerText).join(' ')
                   || e.placeholder || '', e.tabIndex])"""
    for name in ("Sample", "Inpaint", "Signal", "About"):
        tab.get_by_role("tab", name=name).click()
        tab.wait_for_timeout(500)
        controls = tab.evaluate(find)
        assert len(controls) >= 4
        assert [control for control in controls if not control[0].strip()] == []
    tab.get_by_role("tab", name="Sample").click()
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("() => document.activeElement.innerText || document.activeElement.ariaLabel || ''"))
    assert {"Sample", "Cancel"} <= {text.strip() for text in reached}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(page: Page, chromium: Any, scheme: str, width: int) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(page.url)
    for name in ("Sample", "Inpaint", "Signal", "About"):
        tab.get_by_role("tab", name=name).click()
        tab.wait_for_timeout(300)
        assert tab.evaluate("() => document.documentElement.scrollWidth") <= width
    context.close()
