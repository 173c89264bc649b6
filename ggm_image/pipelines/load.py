"""Load a trained model with its tokenizer."""

from pathlib import Path
from typing import Any

import torch

from ggm_image.errors import UserError
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.model_folder import find_model
from ggm_image.pipelines.model_weights import load_network
from ggm_image.pipelines.text import TextModel
from ggm_image.runtime.cuda_graph import check_cuda_graphs
from ggm_image.runtime.devices import choose_device
from ggm_image.runtime.numerics import isolate
from ggm_image.tokenizers.registry import load_tokenizer


@isolate
def load_model(
    name_or_path: str | Path = "cifar10",
    *,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    compiled: bool = False,
    cuda_graphs: bool | None = None,
) -> Any:
    """A trained model with its tokenizer, ready to sample: a `Model` of images or a `TextModel`, by its tokenizer.

    Args:
        name_or_path: a shipped model's name, a folder with ``config.yaml`` and ``model.safetensors``, or ``owner/name``
            on the Hugging Face Hub, with ``@revision`` for another revision than ``main``.
        tokenizer: name or folder of its tokenizer, where that has moved since the training.
        device: where to put it, see `choose_device`; the GPU by default where there is one, as on the command line.
        compiled: see `Model.compile`.
        cuda_graphs: whether network calls are recorded as CUDA graphs and replayed. Samples are the same, and small
            batches are faster. None: on CUDA, each shape from its third call on. True: from its first call on. False:
            never.

    Returns:
        The model.

    Raises:
        UserError: if it is not there, is damaged, its tokenizer is not the one that it was trained with, or there is
            no such device, or CUDA graphs are asked for on another device than CUDA.
    """
    chosen = choose_device(device)
    check_cuda_graphs(cuda_graphs, chosen)
    folder = find_model(name_or_path)
    source = tokenizer or folder.tokenizer
    with torch.random.fork_rng(devices=[]):  # building a network initialises it at random
        loaded = load_tokenizer(source, device=chosen)
        if loaded.sha256 != folder.tokenizer_sha256:
            raise UserError(
                f"model {folder.name} was trained with tokenizer {folder.tokenizer_name} "
                f"{folder.tokenizer_sha256[:16]}...",
                f"{source} is {loaded.sha256[:16]}...",
                "name the right one, or copy the one that came with the model",
            )
        network, sha256 = load_network(folder)
    if loaded.modality == "text":
        if compiled:
            raise UserError("a model of text cannot be compiled yet", folder.name, "leave compiled out")
        return TextModel(folder, network, sha256, loaded, chosen, cuda_graphs=cuda_graphs)
    model = Model(folder, network, sha256, loaded, chosen, tokenizer_source=source, cuda_graphs=cuda_graphs)
    if compiled:
        model.compile()
    return model
