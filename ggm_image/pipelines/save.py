"""A model as a folder that can be moved: weights, config, and the tokenizer unless it is a known one."""

import shutil
from pathlib import Path

from omegaconf import OmegaConf

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_folder, sha256_file, write_text
from ggm_image.io.resources import resource_dir
from ggm_image.pipelines.model_folder import CONFIG, TOKENIZER, WEIGHTS, NetworkFolder
from ggm_image.tokenizers.convert import convert_tokenizer
from ggm_image.tokenizers.registry import find_tokenizer

EXTRAS = ("README.md", "LICENSE", "quality.json")


def save_model(model: NetworkFolder, out: str | Path, *, tokenizer: str | Path | None = None, sha256: str = "") -> Path:
    """Write a model folder that does not depend on other files, whole or not at all.

    The tokenizer is written into it as safetensors, unless it is one of ``ggm-image tokenizers``, which is found by its
    name.

    Args:
        out: a folder that does not exist or is empty.
        tokenizer: name or folder of its tokenizer, where that has moved.
    """
    model.check_weights()
    spec = find_tokenizer(tokenizer or model.tokenizer)
    out = Path(out)
    with atomic_folder(out) as folder:
        if spec.folder.resolve().parent != resource_dir("tokenizers").resolve():
            written = convert_tokenizer(spec, folder / TOKENIZER, name=model.tokenizer_name)
            identity = written.identity or written.sha256
            if identity != model.tokenizer_sha256:
                got = f"{spec.folder} is {identity[:16]}..., not {model.tokenizer_sha256[:16]}..."
                raise UserError("this is not the model's tokenizer", got, "name the one that it was trained with")
        shutil.copyfile(model.weights, folder / WEIGHTS)
        if sha256 and sha256_file(folder / WEIGHTS) != sha256:
            raise UserError("the weights changed on disk", model.weights, "load the model again")
        config = {**model.config, "tokenizer": {**model.config["tokenizer"], "source": ""}}
        write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
        for name in EXTRAS:
            if (model.folder / name).is_file():
                shutil.copyfile(model.folder / name, folder / name)
    return out
