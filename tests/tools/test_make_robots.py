"""Avatars from parts in robohash's folder layout, with parts drawn here."""

import importlib
import sys
from itertools import islice, product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ggm_image.errors import UserError

TOOLS = Path(__file__).parents[2] / "tools"
COLOURS = {"blue": (40, 80, 220), "red": (220, 40, 40)}
ROBOT_LAYERS = ("000#Mouth", "001#Eyes", "002#01Body", "003#02Face")
RED, GREEN = (255, 0, 0, 255), (0, 255, 0, 255)


@pytest.fixture
def robots(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("benchmarks", "experiments", "figures"):
        monkeypatch.syspath_prepend(TOOLS / folder)
    module = importlib.import_module("make_robots")
    monkeypatch.delitem(sys.modules, "make_robots")
    return module


def draw_part(path: Path, box: tuple[int, int, int, int], colour: tuple[int, ...], side: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (side, side))
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    image.save(path)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Three designs of each layer; file numbers in another order in each colour, as robohash has them."""
    root = tmp_path / "sets"
    for shift, (colour, rgb) in enumerate(COLOURS.items()):
        for layer, folder in enumerate(ROBOT_LAYERS):
            for design in range(1, 4):
                name = f"{(design + shift) % 3:03d}#{colour}_part-{design:02d}.png"
                box = (10 * layer, 20 * design, 10 * layer + 30, 20 * design + 30)
                draw_part(root / "set1" / colour / folder / name, box, rgb)
    for k, name in enumerate(("set2", "set3", "set4")):
        for layer, folder in enumerate(("000#02Eyes", "001#01Face", "002#03Nose")):
            for design in range(1, 4):
                path = root / name / folder / f"{3 - design:03d}#final{design}.png"
                draw_part(path, (20 * layer, 0, 20 * layer + 25, 25 * design), (80 * k, 60 * layer, 60 * design))
    return root


def pixels(folder: Path) -> dict[str, bytes]:
    """Pixels of each image below a folder, by its path."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (64, 64))
            found[path.relative_to(folder).as_posix()] = image.tobytes()
    return found


def test_class_folders_are_complete_and_seeded(robots: ModuleType, sets: Path, tmp_path: Path) -> None:
    made = []
    for name, seed, train in (("a", 0, 5), ("b", 0, 5), ("c", 1, 5), ("d", 0, 2)):
        arguments = [str(tmp_path / name), "--parts", str(sets), "--val", "3", "--train", str(train)]
        assert robots.run(robots.main, [*arguments, "--seed", str(seed)]) == 0
        made.append(pixels(tmp_path / name))
    counts = {"robot-blue": 1, "robot-red": 1, "monster": 2, "head": 2}
    expected = {
        f"{split}/{name}/{k:05d}.png"
        for name, weight in counts.items()
        for split, count in (("train", 5), ("val", 3))
        for k in range(count * weight)
    }
    assert set(made[0]) == expected
    assert made[0] == made[1]
    assert made[0] != made[2]
    val = {name: data for name, data in made[0].items() if name.startswith("val/")}
    assert val == {name: data for name, data in made[3].items() if name.startswith("val/")}


def test_no_combination_occurs_twice(robots: ModuleType, sets: Path) -> None:
    """Not even in two colours. Seen to fail with a generator of combinations for each class or split."""
    kinds = robots.find_kinds(sets)
    assert [list(kind.layers) for kind in kinds] == [["robot-blue", "robot-red"], ["monster"], ["head"]]
    for kind, val in zip(kinds, (10, 4, 4), strict=True):
        planned = robots.plan(kind, {"val": val, "train": val}, "0")
        found = [parts for group in planned.values() for parts in group]
        assert len(found) == len(set(found)) == 2 * val * kind.weight * len(kind.layers)
    every = set(robots.plan(kinds[1], {"val": 6, "train": 7}, "0")["val", "monster"])
    every |= set(robots.plan(kinds[1], {"val": 6, "train": 7}, "0")["train", "monster"])
    assert len(every) == 26
    with pytest.raises(UserError, match="too few different combinations of parts"):
        robots.plan(kinds[1], {"val": 6, "train": 8}, "0")


def test_combinations_are_uniform_and_the_same_everywhere(robots: ModuleType) -> None:
    assert sorted(robots.combinations((2, 3, 2), "any")) == list(product(range(2), range(3), range(2)))
    assert list(islice(robots.combinations((10, 10, 10), "0 0"), 3)) == [(3, 8, 9), (1, 4, 3), (1, 6, 7)]
    found = np.array(list(islice(robots.combinations((4, 5, 1000), "0"), 4000)))
    assert np.bincount(found[:, 0]).min() > 900
    assert np.bincount(found[:, 1]).min() > 720


def test_a_design_has_one_number_in_every_colour(robots: ModuleType, sets: Path) -> None:
    """Layers are drawn by the name behind the #, designs go by the last number. Seen to fail with files by name."""
    robot = robots.find_kinds(sets)[0]
    for colour in COLOURS:
        layers = robot.layers[f"robot-{colour}"]
        assert [layer[0].parent.name for layer in layers] == [ROBOT_LAYERS[k] for k in (2, 3, 1, 0)]
        assert [[path.name[-6:-4] for path in layer] for layer in layers] == [["01", "02", "03"]] * 4
    (sets / "set1" / "red" / "000#Mouth" / "001#red_part-03.png").rename(sets / "set1" / "red" / "000#Mouth" / "4.png")
    with pytest.raises(UserError, match="same designs"):
        robots.find_kinds(sets)


def test_layers_cover_each_other(robots: ModuleType) -> None:
    back, front = Image.new("RGBA", (256, 256)), Image.new("RGBA", (256, 256))
    ImageDraw.Draw(back).rectangle((0, 0, 127, 255), fill=RED)
    ImageDraw.Draw(front).rectangle((64, 0, 191, 255), fill=GREEN)
    image = np.asarray(robots.compose([back, front]))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    columns = [tuple(map(int, image[32, x])) for x in (4, 24, 40, 60)]
    assert columns == [RED[:3], GREEN[:3], GREEN[:3], robots.BACKGROUND]


def test_transparent_pixels_do_not_bleed(robots: ModuleType, tmp_path: Path) -> None:
    """Colour under alpha 0 is not mixed into the edge. Seen to fail with the bands resized one by one."""
    rgba = np.zeros((100, 100, 4), dtype=np.uint8)
    rgba[..., 1] = 255  # invisible green
    rgba[30:70, 30:70] = RED
    Image.fromarray(rgba).save(tmp_path / "part.png")
    part = np.asarray(robots.open_part(tmp_path / "part.png", robots.FRAMES["set1"])).astype(int)
    assert part.shape == (256, 256, 4)
    assert part[part[..., 3] > 16, 1].max() <= 16


def test_the_frame_selects_a_square(robots: ModuleType, tmp_path: Path) -> None:
    """Also one that reaches beyond the part's image, where it is transparent."""
    draw_part(tmp_path / "part.png", (0, 0, 99, 99), RED)
    whole = np.asarray(robots.open_part(tmp_path / "part.png", (0.1, 0.2, 0.6, 0.7)))
    assert (whole == RED).all()
    shifted = np.asarray(robots.open_part(tmp_path / "part.png", (0.0, -0.5, 1.0, 0.5)))
    assert shifted[:120, :, 3].max() == 0
    assert (shifted[136:] == RED).all()


def test_bad_folders(
    robots: ModuleType, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "note.txt").write_text("mine")
    cases = [(full, sets, "output folder must be new or empty"), (tmp_path / "new", tmp_path, "no coloured robots")]
    for out, parts, message in cases:
        assert robots.run(robots.main, [str(out), "--parts", str(parts), "--train", "2", "--val", "1"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {message} (")
    assert [path.name for path in full.iterdir()] == ["note.txt"]
    monkeypatch.setattr(robots, "find_spec", lambda name: None)
    assert robots.run(robots.main, [str(tmp_path / "new")]) == 2
    assert "pip install 'ggm-image[robots]'" in capsys.readouterr().err
    broken = next((sets / "set3" / "001#01Face").iterdir())
    broken.write_bytes(b"no image")
    assert robots.run(robots.main, [str(tmp_path / "new"), "--parts", str(sets), "--train", "2", "--val", "1"]) == 2
    assert str(broken) in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name not in ("sets", "full")]
