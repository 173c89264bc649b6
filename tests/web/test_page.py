"""The page over its HTTP API, as a browser uses it."""

import io
import json
import re
import threading
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ggm_image.pipelines.load import load_model
from tests.web.browser import Browser, Refused
from tests.web.conftest import Page

pytestmark = pytest.mark.xdist_group("web")
SAMPLE = ["model", ["cat", "ship"], 3, "fast", None, 5, 1.0]
SETTINGS = ["fast", None, 5, 0, 0, 0, 0, 0, 0]  # preset, guidance, seed, sides, dilate, feather


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def editor(browser: Browser, folder: Path, size: tuple[int, int], box: tuple[int, ...] | None) -> dict[str, Any]:
    """What the browser sends of the editor: a layer with a painted box, or an empty one."""
    layer = Image.new("RGBA", size)
    if box:
        layer.paste((230, 30, 30, 255), box)
    layer.save(folder / "layer.png")
    return {"background": None, "layers": [browser.upload(folder / "layer.png")], "composite": None, "id": None}


def unzip(content: bytes) -> tuple[list[np.ndarray], dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
        [manifest] = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
    return images, manifest


def test_samples_are_those_of_the_library(page: Page) -> None:
    browser = Browser(page.url)
    status, gallery, _, download = browser.call("sample", *SAMPLE)
    images, manifest = unzip(browser.file(download))
    expected = load_model(page.model, device="cpu").sample(
        3, classes=["cat", "ship", "cat"], seed=5, preset="fast", output="np"
    )
    assert np.array_equal(np.stack(images), expected)
    assert manifest["classes"] == ["cat", "ship", "cat"]
    assert manifest["seed"] == 5
    assert len(gallery) == 3
    assert "3 images, seed 5" in status


def test_samples_follow_a_guide(page: Page, image: Path, tmp_path: Path) -> None:
    browser = Browser(page.url)
    browser.call("open_guide", browser.upload(image))
    model = load_model(page.model, device="cpu")
    for classes, expected_classes in (([], None), (["cat", "ship"], ["cat", "ship"])):
        *_, download = browser.call("sample", "model", classes, 2, "fast", None, 5, 0.3)
        images, manifest = unzip(browser.file(download))
        expected = model.sample(
            2, classes=expected_classes, seed=5, preset="fast", guide=image, strength=0.3, output="np"
        )
        assert np.array_equal(np.stack(images), expected)
        assert manifest["classes"] == expected_classes
        assert manifest["guide"]["strength"] == 0.3
    Image.new("RGBA", (8, 8)).save(tmp_path / "empty.png")
    browser.call("open_guide", browser.upload(tmp_path / "empty.png"))
    messages: list[str] = []
    with pytest.raises(Refused, match="transparent everywhere"):
        browser.call("sample", *SAMPLE, on_update=lambda message: messages.append(json.dumps(message)))
    assert any("transparent everywhere" in message for message in messages)  # it stays when the pop-up has gone


def test_what_to_expect_of_a_large_hole_is_said_before_and_after(page: Page, tmp_path: Path) -> None:
    browser, messages = Browser(page.url), list[str]()
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "large.png")
    browser.call("open_image", browser.upload(tmp_path / "large.png"))
    painted = editor(browser, tmp_path, (64, 64), (8, 8, 56, 56))
    note = lambda message: messages.append(json.dumps(message))  # noqa: E731
    status, *_ = browser.call("inpaint", "model", painted, "", 1, *SETTINGS, on_update=note)
    assert "expect few details" in status
    assert any("expect few details" in message and " of " in message for message in messages[:-1])


def test_inpainting_keeps_known_pixels(page: Page, tmp_path: Path, image: Path) -> None:
    browser = Browser(page.url)
    *_, opened = browser.call("open_image", browser.upload(image))
    assert "20 x 24 pixels" in str(opened)
    drawn = editor(browser, tmp_path, (500, 600), (100, 100, 300, 300))  # the editor shows the image 25 times as large
    status, _, _, download = browser.call("inpaint", "model", drawn, "cat", 2, *SETTINGS)
    results, manifest = unzip(browser.file(download))
    before = np.asarray(Image.open(image))
    hole = np.zeros((24, 20), dtype=bool)
    hole[4:12, 4:12] = True
    for result in results:
        assert np.array_equal(result[~hole], before[~hole])
        assert not np.array_equal(result[hole], before[hole])
    assert manifest["hole_pixels"] == 64
    assert manifest["classes"] == "cat"
    assert "inpainted" in status
    with pytest.raises(Refused, match="nothing is to be inpainted"):
        browser.call("inpaint", "model", editor(browser, tmp_path, (500, 600), None), "", 1, *SETTINGS)


def test_outpainting_adds_pixels_around_the_image(page: Page, tmp_path: Path, image: Path) -> None:
    browser = Browser(page.url)
    browser.call("open_image", browser.upload(image))
    options = ["fast", None, 5, 4, 0, 8, 0, 0, 0]
    _, _, _, download = browser.call("inpaint", "model", editor(browser, tmp_path, (20, 24), None), "", 1, *options)
    [result], manifest = unzip(browser.file(download))
    assert result.shape == (24, 32, 3)
    assert np.array_equal(result[:, 4:24], np.asarray(Image.open(image)))
    assert manifest["classes"] is None


def test_signal_map_of_an_image(page: Page, tmp_path: Path, image: Path) -> None:
    browser = Browser(page.url)
    browser.call("open_signal_image", browser.upload(image))
    _, result = browser.call("signal", "model", 0.9, "")
    assert Image.open(io.BytesIO(browser.file(result))).size[1] >= 240


def test_bad_uploads_are_refused_in_a_sentence(page: Page, tmp_path: Path) -> None:
    browser = Browser(page.url)
    (tmp_path / "notes.png").write_text("not an image")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    for name, message in (
        ("notes.png", r"image cannot be read \(notes.png: not an image"),
        ("large.png", r"at most 4.2 million pixels \(10000 x 10000 is 100.0 million\); resize it"),
    ):
        with pytest.raises(Refused, match=message):
            browser.call("open_image", browser.upload(tmp_path / name))
    with pytest.raises(Refused, match="there is no image to inpaint"):
        browser.call("inpaint", "model", None, "", 1, *SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({2: 65}, "64"),
        ({4: 1e9}, "guidance must be less than or equal to 1000"),
        ({3: "worst"}, "worst"),
        ({0: "/etc/passwd"}, "/etc/passwd"),
    ],
)
def test_requests_out_of_range_are_refused(page: Page, change: dict[int, Any], message: str) -> None:
    values = [change.get(k, value) for k, value in enumerate(SAMPLE)]
    with pytest.raises(Refused, match=re.escape(message)):
        Browser(page.url).call("sample", *values)


def test_two_clients_at_once_get_their_own_samples(page: Page) -> None:
    def work(seed: int) -> np.ndarray:
        values = [*SAMPLE[:5], seed, 1.0]
        browser = Browser(page.url)
        *_, download = browser.call("sample", *values)
        return np.stack(unzip(browser.file(download))[0])

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(work, (1, 2))
    model = load_model(page.model, device="cpu")
    for seed, found in ((1, one), (2, two)):
        classes = ["cat", "ship", "cat"]
        assert np.array_equal(found, model.sample(3, classes=classes, seed=seed, preset="fast", output="np"))


def test_cancelling_ends_the_job(page: Page) -> None:
    browser, steps = Browser(page.url), []
    assert "No job is running" in browser.call("cancel_sample")[0]
    running = threading.Event()

    def note(message: dict[str, Any]) -> None:
        steps.append(json.dumps(message))
        if " of " in steps[-1]:
            running.set()

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(browser.call, "sample", "model", [], 64, "exact", None, 0, 1.0, on_update=note)
        assert running.wait(60)
        other = Browser(page.url)
        other.session = browser.session
        request = {"data": [], "fn_index": browser.functions["cancel_sample"]["id"], "session_hash": browser.session}
        answer = json.loads(browser._post("/gradio_api/run/cancel_sample", json.dumps(request).encode()))
        assert "Cancelled" in answer["data"][0]
        status, *_ = job.result(60)
    assert "Cancelled" in str(status)
    status, *_ = Browser(page.url).call("sample", *SAMPLE)  # the device is free again
    assert "3 images" in status


def test_page_names_no_other_host(page: Page) -> None:
    with urllib.request.urlopen(page.url) as answer:
        body, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    for tag in re.findall(r"<(?:script|link|meta|img|iframe)\b[^>]*>", body):
        assert "//" not in tag.replace(page.url, "/"), tag
    config = json.loads(re.search(r"window.gradio_config = (\{.*?\});</script>", body, flags=re.S).group(1))
    assert config["analytics_enabled"] is False
    assert not re.search(r"fonts.g(oogleapis|static)", body)
