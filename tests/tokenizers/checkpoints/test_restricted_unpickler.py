"""Pickles: a name is never looked up, a call never made, and depth and size are bounded."""

import contextlib
from pathlib import Path

import pytest

from ggm_image.errors import UserError
from ggm_image.tokenizers.checkpoints import reader
from ggm_image.tokenizers.checkpoints.restricted_unpickler import RestrictedUnpickler


def test_calls_that_nobody_has_forbidden_are_not_made_either(tmp_path: Path) -> None:
    """Seen to fail with calls of unknown functions carried out."""
    marker = tmp_path / "ran"
    source = b"c" + b"distutils_of_somebody\nrun\n" + b"(" + f"V{marker}\n".encode() + b"tR."
    assert str(RestrictedUnpickler({}, {}).run(source)[0]) == "distutils_of_somebody.run"
    # numpy's runstring is exec under another name, and importing this module is what a real unpickler would do
    source = b"cnumpy.testing._private.utils\nrunstring\n(Vopen('" + str(marker).encode() + b"','w')\n}tR."
    assert str(RestrictedUnpickler({}, {}).run(source)[0]) == "numpy.testing._private.utils.runstring"
    assert not marker.exists()


@pytest.mark.parametrize(
    "names",
    [("os", "system"), ("glob", "os.system"), ("torch.nn", "os.system"), ("torch.nn", "functional.torch.hub.load"),
     ("torch", "load"), ("torch.hub", "load"), ("torch.storage", "_load_from_bytes"), ("builtins", "getattr"),
     ("__builtin__", "eval"), ("operator", "attrgetter"), ("torch.jit", "load"), ("torch.ops", "load_library"),
     ("torch.utils.cpp_extension", "load_inline")],
)  # fmt: skip
def test_names_that_are_refused(names: tuple[str, str]) -> None:
    module, name = names
    source = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93."
    with pytest.raises(UserError, match="it names"):
        RestrictedUnpickler({}, {}).run(source)


@pytest.mark.parametrize(("text", "read"), [(rb"a\d", "a\\d"), (rb"a\777", None), (rb"\x", None)])
def test_escapes_that_mean_nothing_are_no_warning(text: bytes, read: str | None) -> None:
    """pickletools decodes text of protocol 0 as Python source code. Seen to fail with a DeprecationWarning."""
    source = b"S'" + text + b"'\n."
    if read is None:
        with pytest.raises(UserError, match="a whole pickle"):
            RestrictedUnpickler({}, {}).run(source)
    else:
        assert RestrictedUnpickler({}, {}).run(source) == (read, len(source))


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (b"(" * 100_000 + b".", "deep"),
        (b"]" + b"\x94(h\x00" * 501 + b".", "deep"),
        (b"N0" * 1_000_001 + b".", "million"),
        (b"h\x05.", "whole pickle"),
        (b"(.", "whole pickle"),
        (b"N(.", "whole pickle"),
        (b"\x82\x01.", "EXT1"),
        (b"Pabc\n.", "PERSID"),
        (b"]0", "whole pickle"),
        (b"", "whole pickle"),
        (b"\xff.", "whole pickle"),
        (b"B\xff\xff\xff\x7fabc.", "whole pickle"),
        (b"I" + b"9" * 5000 + b"\n.", "whole pickle"),
    ],
)
def test_pickles_that_are_no_checkpoints(source: bytes, match: str) -> None:
    with pytest.raises(UserError, match=match):
        RestrictedUnpickler({}, {}).run(source)


DEEP = b")" + b"\x85" * 100_000  # ((((...),),),)
LAUGHS = b"]" + b"".join(b"\x94]\x94(h" + bytes([2 * k]) + b"h" + bytes([2 * k]) + b"e" for k in range(100))
"""[] in two places of a list, that in two places of the next, a hundred times: 2^100 if it were written out."""


@pytest.mark.parametrize("nested", [DEEP, LAUGHS], ids=["deep", "wide"])
@pytest.mark.parametrize(
    "source",
    [
        b"%b)R.",  # called
        b"cx\ny\n(%bl\x85R.",  # an argument
        b"%b\x8c\x01a\x93.",  # a module's name
        b"ctorch._utils\n_rebuild_tensor_v2\n(\x8c\x01sK\x00%b)\x89}tR.",  # a tensor's size
        b"%bQ.",  # a storage
        b"}%bNs.",  # a key
        b"ccollections\nOrderedDict\n%b\x85R.",
    ],
)
def test_nothing_nested_is_ever_written_out(source: bytes, nested: bytes) -> None:
    """Seen to fail (it never ended, or overflowed the stack) with the function's text kept for what a call gives."""
    machine = RestrictedUnpickler(dict(reader._BUILDERS), {}, reader._persistent(lambda *_: None))
    with contextlib.suppress(UserError):
        machine.run(b"\x80\x04" + source.replace(b"%b", nested))


def test_depth_without_marks_is_harmless() -> None:
    # tuples of one need no mark; nothing here recurses into them, not even to hash or to throw them away
    deep, _ = RestrictedUnpickler({}, {}).run(b")" + b"\x85" * 200_000 + b".")
    assert isinstance(deep, tuple)
    made, _ = RestrictedUnpickler({}, {}).run(b"})" + b"\x85" * 200_000 + b"Ns.")
    assert [str(key) for key in made] == ["tuple"]
