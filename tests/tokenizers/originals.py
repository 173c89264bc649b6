"""The originals of the tokenizers: their publishers' own modules, with drawn weights, saved as published."""

import argparse
import contextlib
import copy
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ggm_image.tokenizers.registry import find_tokenizer
from tests.tokenizers import layouts

WIDEST_LATENT = 64  # of the reduced sizes


class Original:
    """A publisher's module behind one interface: images in [-1, 1], tokens (N, H, W).

    Args:
        module: encoder, decoder, quantize and what lies between.
        unit_range: whether its own pixels lie in [0, 1].
    """

    def __init__(self, module: nn.Module, *, unit_range: bool = False) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.unit_range = unit_range

    def latents(self, images: Tensor) -> Tensor:
        z = self.module.encoder((images + 1) / 2 if self.unit_range else images)
        return self.module.quant_conv(z) if hasattr(self.module, "quant_conv") else z

    def tokens(self, z: Tensor) -> Tensor:
        indices: Tensor = self.module.quantize(z)[2][2]
        return indices.view(len(z), *z.shape[2:])

    def scores(self, z: Tensor) -> Tensor:
        """(N, H, W, V) in double precision: least at the code to choose."""
        flat = z.permute(0, 2, 3, 1).double()
        return torch.cdist(flat.flatten(0, 2), self.codebook().double()).view(*flat.shape[:3], -1)

    def codebook(self) -> Tensor:
        weight: Tensor = self.module.quantize.embedding.weight
        return weight

    def entries(self, tokens: Tensor, width: int) -> Tensor:
        entries: Tensor = self.module.quantize.get_codebook_entry(tokens.flatten(), (*tokens.shape, width))
        return entries

    def decoded(self, tokens: Tensor) -> Tensor:
        """What the decoder gives, in its own range."""
        z = self.entries(tokens, self.codebook().shape[1])
        if hasattr(self.module, "post_quant_conv"):
            z = self.module.post_quant_conv(z)
        images: Tensor = self.module.decoder(z)
        return images

    def decode(self, tokens: Tensor) -> Tensor:
        images = self.decoded(tokens)
        return (2 * images - 1 if self.unit_range else images).clamp(-1, 1)

    def draw(self, images: Tensor) -> None:
        """Weights under which norms and biases matter, many codes are used, and few pixels leave their range."""
        for parameter in self.module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        z = self.latents(images).transpose(0, 1).flatten(1)
        self.draw_codes(z.mean(dim=1), z.std(dim=1))
        last = self.module.decoder.conv_out
        made = self.decoded(self.tokens(self.latents(images)))
        factor, centre = (0.2, 0.5) if self.unit_range else (0.4, 0.0)
        last.weight.mul_(factor / made.std())
        last.bias.fill_(centre)

    def draw_codes(self, mean: Tensor, std: Tensor) -> None:
        weight = self.codebook()
        weight.copy_(mean + std * torch.randn_like(weight))


class Gumbel(Original):
    """Its own index is drawn with noise, even in evaluation: compared is the mode of that draw."""

    def tokens(self, z: Tensor) -> Tensor:
        tokens: Tensor = self.module.quantize.proj(z).argmax(dim=1)
        return tokens

    def scores(self, z: Tensor) -> Tensor:
        proj = self.module.quantize.proj
        scores: Tensor = -F.conv2d(z.double(), proj.weight.double(), proj.bias.double()).permute(0, 2, 3, 1)
        return scores

    def codebook(self) -> Tensor:
        weight: Tensor = self.module.quantize.embed.weight
        return weight

    def draw_codes(self, mean: Tensor, std: Tensor) -> None:
        super().draw_codes(mean, std)
        proj = self.module.quantize.proj
        proj.weight.copy_(torch.randn_like(proj.weight) / std[:, None, None])
        proj.bias.copy_(-proj.weight[:, :, 0, 0] @ mean)


class LlamaGen(Original):
    """Codes are chosen by angle, and the decoder gets them with a length of 1."""

    def scores(self, z: Tensor) -> Tensor:
        flat = F.normalize(z.permute(0, 2, 3, 1).double(), dim=-1)
        codes = F.normalize(self.codebook().double(), dim=-1)
        return torch.cdist(flat.flatten(0, 2), codes).view(*flat.shape[:3], -1)

    def entries(self, tokens: Tensor, width: int) -> Tensor:
        n, h, w = tokens.shape
        entries: Tensor = self.module.quantize.get_codebook_entry(tokens.flatten(), (n, width, h, w))
        return entries


class MaskGIT(Original):
    def tokens(self, z: Tensor) -> Tensor:
        indices: Tensor = self.module.quantize(z)[1]
        return indices.view(len(z), *z.shape[2:])

    def entries(self, tokens: Tensor, width: int) -> Tensor:
        entries: Tensor = self.module.quantize.get_codebook_entry(tokens.flatten(1))
        return entries


def package(name: str, path: Path, **entries: Any) -> types.ModuleType:
    """A package of a folder whose own ``__init__`` is not run."""
    made = types.ModuleType(name)
    made.__path__ = [str(path)]
    vars(made).update(entries)
    return made


@contextlib.contextmanager
def originals_at(checkouts: Path) -> Iterator[None]:
    """Make the repositories importable inside of the block, without what they need for training only.

    The package index has a taming too, which ours is built of: outside of the block it is what is imported.
    """
    repositories = [checkouts / name for name in ("latent-diffusion", "diffusers/src", "LlamaGen")]
    taming, muse = checkouts / "taming-transformers" / "taming", checkouts / "open-muse" / "muse"
    titok = checkouts / "1d-tokenizer" / "modeling" / "modules"
    for folder in (*repositories, taming, muse, titok):
        if not folder.is_dir():
            sys.exit(f"error: {folder} is missing; clone the repository there")
    before, path = dict(sys.modules), list(sys.path)
    for name in [name for name in sys.modules if name.split(".")[0] == "taming"]:
        del sys.modules[name]
    # taming's main.py imports a trainer of Lightning 1.0; the models take this one function from it, for their loss.
    main: Any = types.ModuleType("main")
    main.instantiate_from_config = lambda config: nn.Identity()
    sys.modules |= {"main": main, "taming": package("taming", taming), "titok": package("titok", titok)}
    sys.modules["muse"] = package("muse", muse, __version__="0")
    sys.path[:0] = [str(folder) for folder in repositories]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.split(".")[0] in ("taming", "main", "accelerate")]:
            del sys.modules[name]
        sys.modules |= {name: module for name, module in before.items() if name not in sys.modules}


Sizes = dict[str, Any]
"""``architecture`` of a config.yaml."""

NO_LOSS = {"target": "torch.nn.Identity"}


def build_taming(sizes: Sizes) -> Original:
    from taming.models.vqgan import VQModel

    plain = {key: value for key, value in sizes["ddconfig"].items() if key != "attn_type"}
    return Original(VQModel(plain | {"double_z": False}, NO_LOSS, sizes["n_embed"], sizes["embed_dim"]))


def build_gumbel(sizes: Sizes) -> Original:
    from taming.models.vqgan import GumbelVQ

    plain = {key: value for key, value in sizes["ddconfig"].items() if key != "attn_type"} | {"double_z": False}
    # Its temperature is scheduled in training only.
    schedule = {"target": "torch.nn.Identity"}
    return Gumbel(GumbelVQ(plain, NO_LOSS, sizes["n_embed"], sizes["embed_dim"], schedule))


def build_ldm(sizes: Sizes) -> Original:
    from ldm.models.autoencoder import VQModelInterface

    ddconfig = sizes["ddconfig"] | {"double_z": False}
    return Original(
        VQModelInterface(sizes["embed_dim"], ddconfig=ddconfig, lossconfig=NO_LOSS, n_embed=sizes["n_embed"])
    )


def build_diffusers(sizes: Sizes) -> Original:
    from diffusers.models.autoencoders.vq_model import VQModel

    d, unit = sizes["ddconfig"], bool(sizes.get("unit_range"))
    levels = len(d["ch_mult"])
    has = ["Attn" if d["resolution"] >> level in d["attn_resolutions"] else "" for level in range(levels)]
    return Original(
        VQModel(
            down_block_types=tuple(f"{kind}DownEncoderBlock2D" for kind in has),
            up_block_types=tuple(f"{kind}UpDecoderBlock2D" for kind in reversed(has)),
            block_out_channels=tuple(d["ch"] * factor for factor in d["ch_mult"]),
            layers_per_block=d["num_res_blocks"],
            latent_channels=d["z_channels"],
            sample_size=d["resolution"],
            num_vq_embeddings=sizes["n_embed"],
            vq_embed_dim=sizes["embed_dim"],
            mid_block_add_attention=d["attn_type"] != "none",
            lookup_from_codebook=unit,
        ),
        unit_range=unit,
    )


def build_llamagen(sizes: Sizes) -> Original:
    from tokenizer.tokenizer_image.vq_model import Decoder, Encoder, ModelArgs, VQModel

    d = sizes["ddconfig"]
    mult = list(d["ch_mult"])
    module: Any = VQModel(
        ModelArgs(
            codebook_size=sizes["n_embed"],
            codebook_embed_dim=sizes["embed_dim"],
            encoder_ch_mult=mult,
            decoder_ch_mult=mult,
            z_channels=d["z_channels"],
        )
    )
    # The published module fixes 128 channels and two blocks a level; its parts do not.
    inner = {"ch": d["ch"], "ch_mult": mult, "num_res_blocks": d["num_res_blocks"], "z_channels": d["z_channels"]}
    module.encoder, module.decoder = Encoder(**inner), Decoder(**inner)
    return LlamaGen(module)


def build_titok(sizes: Sizes) -> Original:
    """MaskGIT's VQGAN of 1d-tokenizer, which publishes its parts."""
    from titok.maskgit_vqgan import Decoder, Encoder, VectorQuantizer

    fixed = {"dropout": 0.0, "attn_resolutions": (16,), "resample_with_conv": True}
    config = types.SimpleNamespace(**sizes, **fixed, num_resolutions=len(sizes["channel_mult"]))
    module: Any = nn.Module()
    module.encoder, module.decoder = Encoder(config), Decoder(config)
    module.quantize = VectorQuantizer(sizes["num_embeddings"], sizes["z_channels"], 0.25)
    return MaskGIT(module, unit_range=True)


def build_muse(sizes: Sizes) -> Original:
    if importlib.util.find_spec("accelerate") is None:  # for large files only
        accelerate: Any = types.ModuleType("accelerate")
        accelerate.utils = types.ModuleType("accelerate.utils")
        accelerate.utils.set_module_tensor_to_device = None
        sys.modules |= {"accelerate": accelerate, "accelerate.utils": accelerate.utils}
    from muse.modeling_maskgit_vqgan import MaskGitVQGAN

    width = sizes["z_channels"]
    return MaskGIT(MaskGitVQGAN(**(sizes | {"quantized_embed_dim": width, "attn_resolutions": (16,)})), unit_range=True)


def save_checkpoint(target: str, name: str = "last") -> Callable[[Original, Sizes, Path], Path]:
    """Lightning's wrapper with optimizer, callbacks and pickled config; the YAML beside it."""

    def save(original: Original, sizes: Sizes, folder: Path) -> Path:
        inner = sizes["ddconfig"] | {"double_z": False}
        config = layouts.vq_config(target, sizes["n_embed"], sizes["embed_dim"], inner)
        layouts.lightning(folder / f"{name}.ckpt", original.module.state_dict(), config)
        layouts.write_yaml(folder / ("config.yaml" if name == "model" else f"{name}.yaml"), config)
        return folder / f"{name}.ckpt"

    return save


def save_first_stage(original: Original, sizes: Sizes, folder: Path) -> Path:
    """Inside a transformer's checkpoint, in the folders of a run."""
    first = layouts.vq_config("taming.models.vqgan.VQModel", sizes["n_embed"], sizes["embed_dim"], sizes["ddconfig"])
    outer = {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": {"first_stage_config": first}}
    state = {f"first_stage_model.{name}": value for name, value in original.module.state_dict().items()}
    layouts.lightning(folder / "checkpoints" / "last.ckpt", state | {"transformer.pos_emb": torch.ones(1, 4, 4)}, outer)
    layouts.write_yaml(folder / "configs" / "2020-11-13T21-41-45-project.yaml", outer)
    return folder


def save_pretrained(original: Original, sizes: Sizes, folder: Path) -> Path:
    original.module.save_pretrained(str(folder))
    return folder


def save_llamagen(original: Original, sizes: Sizes, folder: Path) -> Path:
    rest = {"optimizer": {"state": {}}, "steps": 3, "args": argparse.Namespace(vq_model="VQ-16")}
    torch.save({"model": original.module.state_dict()} | rest, folder / "vq.pt")
    return folder / "vq.pt"


def save_bin(original: Original, sizes: Sizes, folder: Path) -> Path:
    torch.save(original.module.state_dict(), folder / "maskgit-vqgan.bin")
    return folder / "maskgit-vqgan.bin"


@dataclass(frozen=True)
class Row:
    """One comparison: which sizes, whose module, how it is saved, images of which side."""

    known: str
    build: Callable[[Sizes], Original]
    save: Callable[[Original, Sizes, Path], Path]
    side: int


TAMING, LDM = "taming.models.vqgan.VQModel", "ldm.models.autoencoder.VQModelInterface"
ROWS: dict[str, Row] = {
    "taming VQModel, f = 16, 1024": Row("vqgan-imagenet-f16-1024", build_taming, save_checkpoint(TAMING), 64),
    "taming VQModel, f = 16, 16384": Row("vqgan-imagenet-f16-16384", build_taming, save_checkpoint(TAMING), 64),
    "the first, inside a transformer's": Row("vqgan-imagenet-f16-1024", build_taming, save_first_stage, 64),
    "taming GumbelVQ, f = 8, 8192": Row(
        "vqgan-openimages-f8-8192", build_gumbel, save_checkpoint("taming.models.vqgan.GumbelVQ"), 32
    ),
    "LDM VQModelInterface, vq-f4": Row("ldm-vq-f4", build_ldm, save_checkpoint(LDM, "model"), 32),
    "vq-f4-noattn": Row("ldm-vq-f4-noattn", build_ldm, save_checkpoint(LDM, "model"), 32),
    "vq-f8": Row("ldm-vq-f8", build_ldm, save_checkpoint(LDM, "model"), 32),
    "vq-f8-n256": Row("ldm-vq-f8-n256", build_ldm, save_checkpoint(LDM, "model"), 32),
    "vq-f16": Row("ldm-vq-f16", build_ldm, save_checkpoint(LDM, "model"), 64),
    "diffusers VQModel, f = 8, 16384": Row("ldm-vq-f8", build_diffusers, save_pretrained, 32),
    "diffusers VQModel, aMUSEd": Row("amused-f16", build_diffusers, save_pretrained, 64),
    "LlamaGen VQ-16": Row("llamagen-ds16-c2i", build_llamagen, save_llamagen, 64),
    "LlamaGen VQ-8": Row("llamagen-ds8-c2i", build_llamagen, save_llamagen, 32),
    "MaskGIT, 1d-tokenizer's .bin": Row("maskgit-vqgan-f16", build_titok, save_bin, 64),
    "MaskGIT, open-muse's folder": Row("maskgit-vqgan-f16", build_muse, save_pretrained, 64),
}


def reduced(known: str, channels: int) -> Sizes:
    """The sizes of a known tokenizer with fewer channels."""
    sizes = copy.deepcopy(find_tokenizer(known).architecture)
    if "hidden_channels" in sizes:
        sizes["hidden_channels"] = min(sizes["hidden_channels"], channels)
        if channels < 128:
            sizes["z_channels"] = min(sizes["z_channels"], WIDEST_LATENT)
        return sizes
    inner = sizes["ddconfig"]
    inner["ch"] = min(inner["ch"], channels)
    if channels < 128:
        inner["z_channels"] = min(inner["z_channels"], WIDEST_LATENT)
        sizes["embed_dim"] = min(sizes["embed_dim"], WIDEST_LATENT)
    return sizes
