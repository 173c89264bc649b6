"""A model as a folder that can be moved: weights, config, and the tokenizer unless it is a known one."""

import shutil
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_folder, sha256_file, write_text
from ggm_image.pipelines.model_folder import CONFIG, TOKENIZER, WEIGHTS, NetworkFolder

EXTRAS = ("README.md", "LICENSE", "quality.json")


def save_model(
    model: NetworkFolder, out: str | Path, *, add_tokenizer: Callable[[Path], None], sha256: str = ""
) -> Path:
    """Write a model folder that does not depend on other files, whole or not at all.

    Args:
        out: a folder that does not exist or is empty.
        add_tokenizer: writes the model's tokenizer into a folder, or nothing where it is found by its name.
        sha256: of the weights, if they were loaded before.

    Returns:
        The new folder.

    Raises:
        UserError: ``out`` holds files, or the model is incomplete, damaged or has changed.
    """
    model.check_weights()
    out = Path(out)
    with atomic_folder(out) as folder:
        add_tokenizer(folder / TOKENIZER)
        shutil.copyfile(model.weights, folder / WEIGHTS)
        if sha256 and sha256_file(folder / WEIGHTS) != sha256:
            raise UserError("the weights changed on disk", model.weights, "load the model again")
        config = {**model.config, "tokenizer": {**model.config["tokenizer"], "source": ""}}
        write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
        for name in EXTRAS:
            if (model.folder / name).is_file():
                shutil.copyfile(model.folder / name, folder / name)
    return out
