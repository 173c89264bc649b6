"""The one validator: ranges in types, errors of one line that name the entry, and plain dataclasses of plugins."""

import dataclasses
from dataclasses import asdict, field, replace
from typing import Annotated, Any

import numpy as np
import pytest

from ggm_image.errors import UserError, explained, suggest
from ggm_image.validation import Fraction, PositiveFloat, PositiveInt, build, checked, one_of, renamed_fields

COLOURS = {"red": 1}


@checked("paint")
class Paint:
    litres: PositiveInt = 1
    share: Fraction = 0.5
    price: PositiveFloat | None = None
    colour: Annotated[str, one_of(COLOURS)] = "red"
    name: str = ""

    def __post_init__(self) -> None:
        if self.name == "water":
            raise UserError("water is no paint", self.litres, "name another")


@checked()
class House:
    paint: Paint = field(default_factory=Paint)
    rooms: list[PositiveInt] = field(default_factory=list)


@dataclasses.dataclass(kw_only=True)
class Plain:
    codes: int = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"paint": {"litres": 0}}, "paint.litres must be greater than 0 (0); change it in the config"),
        ({"paint": {"litres": True}}, "paint.litres must be a number (True)"),
        ({"paint": {"litres": "many"}}, "paint.litres must be a valid integer"),
        ({"paint": {"share": float("nan")}}, "paint.share must be a finite number (nan)"),
        ({"paint": {"price": -1}}, "paint.price must be greater than 0 (-1)"),
        ({"paint": {"colour": "rde"}}, "paint.colour must be one of red (rde)"),
        ({"paint": {"name": "water"}}, "water is no paint (1); name another"),
        ({"paint": {"liters": 1}}, "unknown config key (paint.liters); did you mean paint.litres?"),
        ({"litres": 1}, "unknown config key (litres); did you mean paint.litres?"),
        ({"qqq": 1}, "unknown config key (qqq); choose one of paint, rooms"),
        ({"paint": 3}, "config key paint must hold keys (3)"),
        ({"rooms": [1, 0]}, "rooms.1 must be greater than 0 (0)"),
        ({1: 2}, "1: Keys should be strings"),
        ([], "config must hold keys ([])"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        build(House, values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_an_instance_is_checked_when_it_is_made() -> None:
    with pytest.raises(UserError, match=r"paint\.litres must be greater than 0"):
        Paint(litres=0)
    with pytest.raises(UserError, match=r"paint\.share"):
        replace(Paint(), share=2.0)
    with pytest.raises(UserError, match=r"unknown config key \(paint\.litre\); did you mean paint\.litres"):
        Paint(litre=1)  # type: ignore[call-arg]


def test_values_are_of_their_types() -> None:
    made = build(House, {"paint": {"litres": np.int64(2), "share": np.float32(0.25), "name": 5}, "rooms": (1e3,)})
    assert repr(asdict(made)) == repr(
        {"paint": {"litres": 2, "share": 0.25, "price": None, "colour": "red", "name": "5"}, "rooms": [1000]}
    )


def test_a_registry_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="must be one of red"):
        Paint(colour="blue")
    monkeypatch.setitem(COLOURS, "blue", 2)
    assert Paint(colour="blue").colour == "blue"


def test_a_plain_dataclass_of_a_plugin() -> None:
    assert build(Plain, {"codes": 4}).codes == 4
    with pytest.raises(UserError, match=r"unknown config key \(code\); did you mean codes"):
        build(Plain, {"code": 4})


@checked("shed", renamed={"pots": "tins"})
class Shed:
    tins: PositiveInt = 1


@checked("shed", renamed={"spade": "tool"})
class ToolShed(Shed):
    tool: str = ""


@checked()
class Garden:
    shed: ToolShed = field(default_factory=ToolShed)


def test_old_names_of_fields_are_read() -> None:
    assert renamed_fields(Garden) == {"shed.pots": "shed.tins", "shed.spade": "shed.tool"}
    assert asdict(build(Garden, {"shed": {"pots": 3, "spade": "fork"}})) == {"shed": {"tins": 3, "tool": "fork"}}
    with pytest.raises(UserError, match=r"^shed\.tins must be greater than 0 \(0\)"):
        build(Garden, {"shed": {"pots": 0}})
    with pytest.raises(UserError, match=r"^config key shed\.pots is the old name of shed\.tins \(both\); remove"):
        build(Garden, {"shed": {"pots": 1, "tins": 2}})
    with pytest.raises(UserError, match=r"^unknown config key \(shed\.pot\)"):
        build(Garden, {"shed": {"pot": 1}})


def test_suggestions() -> None:
    assert suggest("cta", ["cat", "dog"], "see --help") == "did you mean cat?"
    assert suggest("horse", ["cat", "dog"], "see --help") == "see --help"
    assert suggest("ca", ["cat", "car"], "", n=2) == "did you mean cat or car?"


def test_broken_data_is_explained() -> None:
    with (
        pytest.raises(UserError, match=r"a file must hold a name \(x: KeyError: 'name'\); give one"),
        explained("a file must hold a name", "give one", got="x"),
    ):
        dict[str, str]()["name"]
    own = UserError("a", "b", "c")
    with pytest.raises(UserError) as error, explained("x", "y"):
        raise own
    assert error.value is own
    with pytest.raises(OSError, match="disk"), explained("x", "y"):
        raise OSError("disk")
