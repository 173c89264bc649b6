"""Locate configs, tokenizers and shipped models, in an installed wheel or in a checkout."""

from pathlib import Path
from typing import Literal

from ggm_image.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent


def resource_dir(kind: Literal["configs", "tokenizers", "assets"]) -> Path:
    """The folder of one kind of resource: ``configs``, ``tokenizers`` or ``assets``."""
    installed = _PACKAGE / "_resources" / kind
    if installed.is_dir():
        return installed
    # Only a checkout has pyproject.toml here. In site-packages, `tokenizers` is another project's package.
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / kind).is_dir():
        return checkout / kind
    raise UserError(f"the installation lacks its {kind}", installed, "install ggm-image again")
