"""Initialise the network of a run: at random, with similar embeddings for similar codes, or from a trained model."""

from collections.abc import Callable
from dataclasses import fields

import torch

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.errors import UserError
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.pipelines.model_folder import find_model
from ggm_image.pipelines.model_weights import load_network
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.evaluation import own_tokenizer

_FREE = ("classes", "grid")  # positions are rotary, so no weight belongs to a site


def initialize_network(
    network: Transformer, config: GeneratorConfig, manifest: Manifest, say: Callable[[str], None]
) -> None:
    """Fill an untrained network as the config asks."""
    if config.start:
        trained, names = trained_network(config.start, config.network, manifest)
        kept = _copy(network, trained, names, manifest.class_names)
        classes = f", classes known to it: {', '.join(kept)}" if kept else ", none of its classes"
        say(f"start: {config.start}{classes if manifest.class_names else ''}")
    elif config.train.start_from_codes and manifest.modality == "text":
        say(f"train.start_from_codes has no effect: the codes of tokenizer {manifest.tokenizer_name} have no vectors")
    elif config.train.start_from_codes:
        try:
            vectors = own_tokenizer(manifest).codebook_embeddings()
        except (UserError, OSError, NotImplementedError) as error:
            say(f"all codes start at random, which takes longer: {error}")
            return
        network.start_from_codes(vectors, torch.Generator().manual_seed(config.train.seed))


def trained_network(start: str, wanted: NetworkConfig, manifest: Manifest) -> tuple[Transformer, list[str]]:
    """The network of a trained model that a run on a token cache can start from, and the names of its classes.

    Args:
        wanted: sizes of the run's network; classes and grid may be others than the model's.
    """
    model = find_model(start)
    if model.tokenizer_sha256 != manifest.tokenizer_sha256:
        raise UserError(
            "start must be a model of the tokenizer of the tokens",
            f"{start} is of {model.tokenizer_name} ({model.tokenizer_sha256[:12]}), the tokens of "
            f"{manifest.tokenizer_name} ({manifest.tokenizer_sha256[:12]})",
            f"encode the images with --tokenizer {model.tokenizer_source or model.tokenizer_name}",
        )
    for field in fields(NetworkConfig):
        theirs, ours = getattr(model.network, field.name), getattr(wanted, field.name)
        if field.name not in _FREE and theirs != ours:
            raise UserError(
                f"network.{field.name} must be that of the model in start",
                f"{ours} against {theirs}",
                f"set network.{field.name}={theirs}",
            )
    return load_network(model)[0], model.class_names


@torch.no_grad()
def _copy(network: Transformer, trained: Transformer, theirs: list[str], ours: list[str]) -> list[str]:
    """Take over every weight; classes by their names, and the null class for names that are new. Returns the known."""
    null = trained.classes.weight[-1]
    state = trained.state_dict()
    known = [name for name in ours if name in theirs]
    rows = [trained.classes.weight[theirs.index(name)] if name in theirs else null for name in ours]
    state["classes.weight"] = torch.stack([*rows, null])
    network.load_state_dict(state)
    return known
