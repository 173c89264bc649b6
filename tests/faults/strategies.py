"""What the property tests share: values that mean something to a parser, and damage to files."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ggm_image.errors import UserError
from ggm_image.training.config import GeneratorConfig
from ggm_image.validation import _keys

T = TypeVar("T")


def examples(most: int) -> settings:
    """The same draws every time, on any machine however slow, and nothing kept."""
    return settings(
        max_examples=most,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def tried(call: Callable[[], T]) -> T | None:
    """What a call gives, or None where it refuses its input."""
    try:
        return call()
    except UserError:
        return None


# Words that mean something to a parser, which letters drawn one by one seldom make.
WORDS = (
    "${", "}", "${train.seed}", "${oc.env:HOME}", "\\${a}", "???", "{", "[", "]", ",", ":", "=", ".", "..", "null", "~",
    "nan", ".inf", "-1", "0", "1e400", "0x1F", "1_0", "true", "!!python/name:os.system", "&a", "*a", "<<", "|", "#",
    "'", '"', "\t", "\n", "\x00", "\x85", "é", "٣", "\ud800", "9" * 5000, "f" * 300, " ",
)  # fmt: skip
texts = st.one_of(
    st.text(max_size=12), st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=5).map("".join)
)
written_texts = texts.filter(lambda text: text.isascii() or text.encode("utf-8", "replace").decode() == text)
numbers = st.one_of(st.integers(-2, 9), st.sampled_from([1 << 16, 1 << 39, 1 << 63, -(1 << 63), 10**400]))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.floats(), written_texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(written_texts, inner, max_size=3)),
    max_leaves=5,
)
KEYS = _keys(GeneratorConfig, "")
keys = st.one_of(st.sampled_from(KEYS), texts)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with up to four changes: overwritten, cut out, put in, doubled, or cut off."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(made))), draw(st.integers(1, 16))
        match draw(st.sampled_from(["overwrite", "cut out", "put in", "double", "cut off"])):
            case "overwrite":
                made[at : at + length] = draw(st.binary(min_size=1, max_size=length))
            case "cut out":
                del made[at : at + length]
            case "put in":
                made[at:at] = draw(st.binary(min_size=1, max_size=length))
            case "double":
                made[at:at] = made[at : at + length]
            case "cut off":
                del made[at:]
    return bytes(made)
