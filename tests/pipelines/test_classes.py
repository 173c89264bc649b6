"""Names of classes as they are typed."""

import numpy as np
import pytest

from ggm_image.errors import UserError
from ggm_image.pipelines.classes import class_label, class_labels, turns

NAMES = ["cat", "dog", "tench, Tinca tinca", "7", "Cat"]


@pytest.mark.parametrize(
    ("given", "label"), [("cat", 0), ("Cat", 4), ("CAT", 0), (" dog ", 1), ("7", 3), (1, 1), (np.int64(4), 4), ("2", 2)]
)
def test_one(given: object, label: int) -> None:
    assert class_label(NAMES, given) == label


@pytest.mark.parametrize("given", ["dgo", 5, -1, True, 1.0, "-1", "cat,dog", None])
def test_none(given: object) -> None:
    with pytest.raises(UserError, match="no such class"):
        class_label(NAMES, given)
    with pytest.raises(UserError, match="the model has no classes"):
        class_label([], given)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["cat"], [0]),
        (["cat", "dog"], [0, 1]),
        (["dog,cat"], [1, 0]),
        (["dog, cat", "dog"], [1, 0, 1]),
        (["tench, Tinca tinca"], [2]),
        (["dog,tench, Tinca tinca,cat"], [1, 2, 0]),
        (["7,0"], [3, 0]),
    ],
)
def test_several(given: list[str], labels: list[int]) -> None:
    assert class_labels(NAMES, given) == labels


@pytest.mark.parametrize(("given", "got"), [(["cat,dgo"], "got 'dgo'"), (["cat,"], "got ''"), ([""], "got ''")])
def test_unknown(given: list[str], got: str) -> None:
    with pytest.raises(UserError, match=got):
        class_labels(NAMES, given)


def test_turns_depend_on_the_number_alone() -> None:
    assert turns([4, 1, 0], range(5)) == [4, 1, 0, 4, 1]
    assert turns([4, 1, 0], range(5))[3:] == turns([4, 1, 0], range(3, 5))
    assert turns(["a"], range(7, 9)) == ["a", "a"]
