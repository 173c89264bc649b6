"""Decoding ahead: in order, bounded, and with the reader's errors."""

import threading
from collections.abc import Iterator

import pytest
import torch

from ggm_image.data.sources.prefetch import decoded
from ggm_image.errors import UserError


def picture(entry: int) -> torch.Tensor | UserError:
    return UserError("bad", entry, "fix it") if entry % 7 == 3 else torch.full((3, 1, 1), entry)


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_everything_comes_once_and_in_order(ahead: int, batch_size: int) -> None:
    entries: list[int] = []
    for group, images in decoded(iter(range(30)), picture, batch_size, workers=3, ahead=ahead):
        assert len(group) <= batch_size
        for entry, found in zip(group, images, strict=True):
            assert isinstance(found, UserError) if entry % 7 == 3 else found[0, 0, 0] == entry
        entries += group
    assert entries == list(range(30))


# Seen to fail with one more group read at the start.
@pytest.mark.parametrize("ahead", [0, 2])
def test_no_more_is_read_than_is_told(ahead: int) -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    groups = decoded(endless(), picture, 5, workers=2, ahead=ahead)
    for number in range(1, 6):
        next(groups)
        assert read <= 5 * (number + ahead)
    groups.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_of_the_reader_comes_out_after_what_was_read(ahead: int) -> None:
    def breaking() -> Iterator[int]:
        yield from range(10)
        raise UserError("archive is not whole", "x.tar", "fetch it again")

    groups = decoded(breaking(), picture, 5, workers=2, ahead=ahead)
    assert [next(groups)[0], next(groups)[0]] == [list(range(5)), list(range(5, 10))]
    with pytest.raises(UserError, match="not whole"):
        next(groups)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("error", [MemoryError, SystemExit])
def test_a_thread_that_dies_ends_the_work_and_leaves_no_other(ahead: int, error: type[BaseException]) -> None:
    """Never a hang, and never a group without the images that the thread had."""

    def dying(entry: int) -> torch.Tensor | UserError:
        if entry == 7:
            raise error("no more")
        return picture(entry)

    groups = decoded(iter(range(100)), dying, 5, workers=3, ahead=ahead)
    assert next(groups)[0] == list(range(5))
    with pytest.raises(error, match="no more"):
        next(groups)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]
