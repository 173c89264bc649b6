"""Small tokenizers in the layouts that others publish, weights drawn from a seed: files to load, made again each time.

``originals.json`` beside this module holds what the originals' own modules gave for these weights: their token indices
and pixels of what they decode. It was recorded with the originals' public code, which is not part of this project; each
loaded these files by ``load_state_dict(strict=True)``, loss aside.
"""

import argparse
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

SIDE = 32  # pixels of the images
PICTURES = 4
CH_MULT = [1, 2, 2]  # three levels: cells of 4 pixels
ORIGINALS: dict[str, Any] = json.loads((Path(__file__).parent / "originals.json").read_text(encoding="utf-8"))


def pictures() -> Tensor:
    """(4, 3, 32, 32) in [-1, 1]: smooth, with grain; of a seed with which no two codes are nearly equally near."""
    rng = np.random.default_rng(25)
    coarse = rng.uniform(-1, 1, (PICTURES, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    return torch.from_numpy((0.8 * coarse + 0.2 * rng.uniform(-1, 1, coarse.shape)).astype(np.float32))


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """A parameter's values, from its name alone."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.startswith("quantize.embed"):
        pass
    elif len(shape) == 1:
        values = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    else:
        values /= np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def ddconfig(
    *, z_channels: int = 32, attn_type: str | None = None, attention: tuple[int, ...] = (64,)
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "double_z": False,
        "z_channels": z_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": CH_MULT,
        "num_res_blocks": 1,
        "attn_resolutions": list(attention),
        "dropout": 0.0,
    }
    return made if attn_type is None else made | {"attn_type": attn_type}


def taming_shapes(
    *, z: int, codes: int, width: int, attention: bool = True, middle: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of taming's VQModel with `CH_MULT`, one residual block a level."""
    made: dict[str, tuple[int, ...]] = {}

    def conv(name: str, a: int, b: int, kernel: int = 3) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = (b, a, kernel, kernel), (b,)

    def norm(name: str, width: int) -> None:
        made[f"{name}.weight"] = made[f"{name}.bias"] = (width,)

    def residual(name: str, a: int, b: int) -> None:
        norm(f"{name}.norm1", a)
        conv(f"{name}.conv1", a, b)
        norm(f"{name}.norm2", b)
        conv(f"{name}.conv2", b, b)
        if a != b:
            conv(f"{name}.nin_shortcut", a, b, 1)

    def attend(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle_of(name: str, width: int) -> None:
        residual(f"{name}.mid.block_1", width, width)
        if middle:
            attend(f"{name}.mid.attn_1", width)
        residual(f"{name}.mid.block_2", width, width)

    conv("encoder.conv_in", 3, 32)
    for k, (a, b) in enumerate([(32, 32), (32, 64), (64, 64)]):
        residual(f"encoder.down.{k}.block.0", a, b)
        if k == 2 and attention:
            attend(f"encoder.down.{k}.attn.0", b)
        if k < 2:
            conv(f"encoder.down.{k}.downsample.conv", b, b)
    middle_of("encoder", 64)
    norm("encoder.norm_out", 64)
    conv("encoder.conv_out", 64, z)
    conv("decoder.conv_in", z, 64)
    middle_of("decoder", 64)
    for k, (a, b) in enumerate([(64, 32), (64, 64), (64, 64)]):
        residual(f"decoder.up.{k}.block.0", a, b)
        residual(f"decoder.up.{k}.block.1", b, b)
        if k == 2 and attention:
            attend(f"decoder.up.{k}.attn.0", b)
            attend(f"decoder.up.{k}.attn.1", b)
        if k > 0:
            conv(f"decoder.up.{k}.upsample.conv", b, b)
    norm("decoder.norm_out", 32)
    conv("decoder.conv_out", 32, 3)
    conv("quant_conv", z, width, 1)
    conv("post_quant_conv", width, z, 1)
    made["quantize.embedding.weight"] = (codes, width)
    return made


def weights(shapes: Mapping[str, tuple[int, ...]], *, grey: float = 0.0) -> dict[str, Tensor]:
    """Drawn parameters; images come out around ``grey``, mostly inside of their range."""
    made = {name: drawn(name, shape) for name, shape in shapes.items()}
    made["decoder.conv_out.weight"] *= 0.4
    made["decoder.conv_out.bias"] += grey
    return made


def lightning(path: Path, state: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """A checkpoint and its config as taming's main.py leaves them, callbacks, loss and all."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    loss = {
        "loss.discriminator.main.0.weight": torch.ones(8, 3, 4, 4),
        "loss.perceptual_loss.lin0.weight": torch.ones(2),
    }
    checkpoint = {
        "epoch": 12,
        "global_step": 12345,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {ModelCheckpoint: {"best_model_path": PosixPath("/a/b"), "best_model_score": torch.tensor(1.0)}},
        "checkpoint_callback": ModelCheckpoint(monitor=None),
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
        "hyper_parameters": OmegaConf.create(config),
        "args": argparse.Namespace(gpus="0,", score=np.float64(3)),
        "state_dict": {**state, **loss},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)


def vq_config(target: str, codes: int, width: int, sizes: dict[str, Any]) -> dict[str, Any]:
    loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {"disc_start": 1}}
    params = {"embed_dim": width, "n_embed": codes, "ddconfig": sizes, "lossconfig": loss}
    return {"base_learning_rate": 4.5e-6, "target": target, "params": params}


def write_yaml(path: Path, model: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({"model": model, "data": {"target": "main.Data"}})))


def taming(folder: Path) -> Path:
    """``last.ckpt`` and ``model.yaml``."""
    config = vq_config("taming.models.vqgan.VQModel", 256, 16, ddconfig())
    lightning(folder / "last.ckpt", weights(taming_shapes(z=32, codes=256, width=16)), config)
    write_yaml(folder / "model.yaml", config)
    return folder / "last.ckpt"


def first_stage(folder: Path) -> Path:
    """The tokenizer inside a transformer's checkpoint, in the folders of a run."""
    config = vq_config("taming.models.vqgan.VQModel", 256, 16, ddconfig())
    outer = {
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "first_stage_config": config,
            "cond_stage_config": {"target": "taming.modules.misc.coord.CoordStage"},
        },
    }
    state = {f"first_stage_model.{k}": v for k, v in weights(taming_shapes(z=32, codes=256, width=16)).items()}
    state |= {"transformer.tok_emb.weight": torch.ones(4, 4), "cond_stage_model.encoder.weight": torch.ones(1)}
    lightning(folder / "checkpoints" / "last.ckpt", state, outer)
    write_yaml(folder / "configs" / "2020-11-13T21-41-45-project.yaml", outer)
    (folder / "configs" / "2020-11-13T21-41-45-lightning.yaml").write_text("lightning: {trainer: {gpus: '0,'}}\n")
    return folder


def latent_diffusion(folder: Path) -> Path:
    """``model.ckpt`` and a ``config.yaml`` that is not ours; narrow latents, no attention anywhere."""
    sizes = ddconfig(z_channels=4, attn_type="none", attention=())
    config = vq_config("ldm.models.autoencoder.VQModelInterface", 300, 4, sizes)
    shapes = taming_shapes(z=4, codes=300, width=4, attention=False, middle=False)
    lightning(folder / "model.ckpt", weights(shapes), config)
    write_yaml(folder / "config.yaml", config)
    return folder


def gumbel(folder: Path) -> Path:
    config = vq_config("taming.models.vqgan.GumbelVQ", 256, 32, ddconfig())
    shapes = taming_shapes(z=32, codes=256, width=32)
    del shapes["quantize.embedding.weight"]
    shapes |= {
        "quantize.proj.weight": (256, 32, 1, 1),
        "quantize.proj.bias": (256,),
        "quantize.embed.weight": (256, 32),
    }
    lightning(folder / "last.ckpt", weights(shapes), config)
    write_yaml(folder / "last.yaml", config)
    return folder / "last.ckpt"


def diffusers_names(name: str) -> str:
    """diffusers' name for one of taming's."""
    name = name.replace("encoder.down.", "encoder.down_blocks.").replace("mid.block_1.", "mid_block.resnets.0.")
    name = re.sub(r"decoder\.up\.(\d)", lambda m: f"decoder.up_blocks.{len(CH_MULT) - 1 - int(m[1])}", name)
    name = name.replace("mid.block_2.", "mid_block.resnets.1.").replace("mid.attn_1.", "mid_block.attentions.0.")
    name = name.replace(".block.", ".resnets.").replace(".attn.", ".attentions.")
    name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    name = name.replace("downsample.", "downsamplers.0.").replace("upsample.", "upsamplers.0.")
    name = re.sub(r"(attentions\.\d)\.norm\.", r"\1.group_norm.", name)
    name = re.sub(r"(attentions\.\d)\.([qkv])\.", r"\1.to_\2.", name)
    return name.replace("proj_out.", "to_out.0.")


def diffusers_folder(folder: Path, *, unit_range: bool, old_names: bool = False) -> Path:
    """config.json and diffusion_pytorch_model.safetensors, alone or as a pipeline's ``vqvae``."""
    middle = not unit_range
    shapes = taming_shapes(z=16, codes=512, width=16, attention=middle, middle=middle)
    state = {}
    for name, value in weights(shapes, grey=0.5 if unit_range else 0.0).items():
        theirs = diffusers_names(name)
        if "attentions" in theirs and value.ndim == 4:
            value = value[:, :, 0, 0].contiguous()
        if old_names:
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                theirs = theirs.replace(new, old)
        state[theirs] = value
    attention = "Attn" if middle else ""
    config: dict[str, Any] = {
        "_class_name": "VQModel",
        "_diffusers_version": "0.25.0",
        "act_fn": "silu",
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2 + [f"{attention}DownEncoderBlock2D"],
        "in_channels": 3,
        "latent_channels": 16,
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "norm_type": "group",
        "num_vq_embeddings": 512,
        "out_channels": 3,
        "sample_size": 32 if unit_range else 256,
        "scaling_factor": 0.18215,
        "up_block_types": [f"{attention}UpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2,
        "vq_embed_dim": None,
    }
    if unit_range:
        config |= {"mid_block_add_attention": False, "lookup_from_codebook": True, "force_upcast": True}
    home = folder / "vqvae" if unit_range else folder
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.json").write_text(json.dumps(config))
    save_file(state, home / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder


def llamagen(folder: Path) -> Path:
    """``{"model": state dict}`` in a .pt without any config."""
    state = {}
    for name, value in weights(taming_shapes(z=32, codes=512, width=8)).items():
        name = name.replace("mid.block_1.", "mid.0.").replace("mid.attn_1.", "mid.1.").replace("mid.block_2.", "mid.2.")
        name = re.sub(r"decoder\.up\.(\d)", lambda m: f"decoder.conv_blocks.{len(CH_MULT) - 1 - int(m[1])}", name)
        state[name.replace("encoder.down.", "encoder.conv_blocks.").replace(".block.", ".res.")] = value
    folder.mkdir(parents=True, exist_ok=True)
    rest = {"discriminator": {"a": torch.ones(1)}, "steps": 3, "args": argparse.Namespace(vq_model="VQ-8")}
    torch.save({"model": state | {"quantize.codebook_used": torch.zeros(65536)}, **rest}, folder / "vq_ds4.pt")
    return folder / "vq_ds4.pt"


def maskgit_shapes() -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {}

    def residual(name: str, a: int, b: int) -> None:
        made.update({f"{name}.norm1.weight": (a,), f"{name}.norm1.bias": (a,)})
        made.update({f"{name}.norm2.weight": (b,), f"{name}.norm2.bias": (b,)})
        made.update({f"{name}.conv1.weight": (b, a, 3, 3), f"{name}.conv2.weight": (b, b, 3, 3)})
        if a != b:
            made[f"{name}.nin_shortcut.weight"] = (b, b, 1, 1)

    made["encoder.conv_in.weight"] = (32, 3, 3, 3)
    made.update({"decoder.conv_in.weight": (64, 16, 3, 3), "decoder.conv_in.bias": (64,)})
    for k, (a, b) in enumerate([(32, 32), (32, 64), (64, 64)]):
        residual(f"encoder.down.{k}.block.0", a, b)
    for k, (a, b) in enumerate([(64, 32), (64, 64), (64, 64)]):
        residual(f"decoder.up.{k}.block.0", a, b)
        if k:
            made.update(
                {f"decoder.up.{k}.upsample_conv.weight": (b, b, 3, 3), f"decoder.up.{k}.upsample_conv.bias": (b,)}
            )
    for part, width in (("encoder", 64), ("decoder", 32)):
        residual(f"{part}.mid.0", 64, 64)
        made.update({f"{part}.norm_out.weight": (width,), f"{part}.norm_out.bias": (width,)})
    made.update({"encoder.conv_out.weight": (16, 64, 1, 1), "encoder.conv_out.bias": (16,)})
    made.update({"decoder.conv_out.weight": (3, 32, 3, 3), "decoder.conv_out.bias": (3,)})
    made["quantize.embedding.weight"] = (256, 16)
    return made


def maskgit(folder: Path) -> Path:
    """A bare state dict in a .bin, in torch's format of before 1.6."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "maskgit-vqgan.bin"
    torch.save(weights(maskgit_shapes(), grey=0.5), path, _use_new_zipfile_serialization=False)
    return path


def maskgit_folder(folder: Path) -> Path:
    """The same with open-muse's config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "MaskGitVQGAN", "channel_mult": CH_MULT, "hidden_channels": 32, "num_res_blocks": 1,
              "num_channels": 3, "num_embeddings": 256, "quantized_embed_dim": 16, "z_channels": 16, "resolution": 256,
              "dropout": 0.0, "attn_resolutions": [16]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(weights(maskgit_shapes(), grey=0.5), folder / "pytorch_model.bin")
    return folder


LAYOUTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "taming": ("taming", taming),
    "first stage": ("taming", first_stage),
    "latent-diffusion": ("taming", latent_diffusion),
    "gumbel": ("gumbel", gumbel),
    "diffusers": ("diffusers", lambda folder: diffusers_folder(folder, unit_range=False)),
    "diffusers, old names": ("diffusers", lambda folder: diffusers_folder(folder, unit_range=False, old_names=True)),
    "aMUSEd": ("diffusers", lambda folder: diffusers_folder(folder, unit_range=True)),
    "LlamaGen": ("llamagen", llamagen),
    "MaskGIT": ("maskgit", maskgit),
    "MaskGIT, open-muse": ("maskgit", maskgit_folder),
}
"""What is published: the family that it must be told to be, and a function from a folder to the path to load."""

SAME_WEIGHTS = {"first stage": "taming", "diffusers, old names": "diffusers", "MaskGIT, open-muse": "MaskGIT"}
"""Layouts whose recorded results are another's."""
