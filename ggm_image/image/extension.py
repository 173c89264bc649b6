"""What ``--extend`` asks for: pixels to add around an image. Nothing here imports torch."""

from dataclasses import dataclass

from ggm_image.errors import UserError

MAX_SIDE = 16384
"""Pixels; a longer side is taken for a mistyped number."""


@dataclass(frozen=True)
class Extension:
    """Pixels to be added on each side of an image."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    @staticmethod
    def parse(text: str) -> "Extension":
        """From ``left=32,top=16``."""
        sides: dict[str, int] = {}
        for part in text.split(","):
            side, _, pixels = (word.strip() for word in part.partition("="))
            if (
                side not in ("left", "top", "right", "bottom")
                or side in sides
                or not (pixels.isdecimal() and len(pixels) < 10)
            ):
                fix = "write sides and pixels, for example left=32,top=16"
                raise UserError("sides to extend are left, top, right and bottom, each once", repr(part), fix)
            sides[side] = int(pixels)
        return Extension(**sides)

    def __post_init__(self) -> None:
        for side in ("left", "top", "right", "bottom"):
            if not 0 <= getattr(self, side) <= MAX_SIDE:
                got = f"{side} {getattr(self, side)}"
                raise UserError(f"pixels to add must lie in [0, {MAX_SIDE}]", got, "give fewer pixels")
