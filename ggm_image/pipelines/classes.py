"""Class names as they are given: one, or several that take turns. Nothing here needs the network's weights."""

import operator
from collections.abc import Sequence
from typing import Any

from ggm_image.errors import UserError, suggest


def class_label(names: Sequence[str], name_or_index: Any) -> int:
    """The label of a class name (in any case, unless that is another's name) or index.

    Of names that are numbers themselves, text is a name before it is an index; an integer is always an index.

    Args:
        name_or_index: a ``str``, or an integer, NumPy's included.
    """
    lower = [name.lower() for name in names]
    if isinstance(name_or_index, str):
        text = name_or_index.strip().lower()
        if name_or_index in names:
            return list(names).index(name_or_index)
        if text in lower:
            return lower.index(text)
        index = int(text) if text.isdecimal() and len(text) < 10 else None
    else:
        try:
            index = None if isinstance(name_or_index, bool) else operator.index(name_or_index)
        except TypeError:
            index = None
        text = str(name_or_index).lower()
    if index is not None and 0 <= index < len(names):
        return index
    if not names:
        raise UserError("the model has no classes", f"got {name_or_index!r}", "leave out the class")
    fix = suggest(text, lower, f"choose one of {', '.join(names)}", n=3, cutoff=0.4)
    raise UserError("no such class", f"got {name_or_index!r}", fix)


def class_labels(names: Sequence[str], given: Sequence[str]) -> list[int]:
    """The labels of ``--class``, which may be given several times, each time as one class or several with commas.

    A class whose own name has commas is found before the text is split: the longest name that fits is taken.

    Args:
        given: at least one text.
    """
    labels = []
    for text in given:
        parts = text.split(",")
        at = 0
        while at < len(parts):
            for end in range(len(parts), at, -1):
                part = ",".join(parts[at:end])
                try:
                    labels.append(class_label(names, part if part in names else part.strip()))
                except UserError:
                    if end == at + 1:
                        raise
                else:
                    at = end
                    break
    return labels


def turns(classes: Sequence[Any], rows: range) -> list[Any]:
    """The class of each image by its number: image k gets entry k mod the number of classes."""
    return [classes[k % len(classes)] for k in rows]
