"""A run of `train-tokenizer`: train on images, export a tokenizer folder, resume after interruptions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from omegaconf import OmegaConf
from torch import Tensor

from ggm_image.data.encode import check_image_size
from ggm_image.data.sources.image_files import ImageSource, open_source
from ggm_image.data.sources.prefetch import Prefetch
from ggm_image.errors import UserError, printable
from ggm_image.image.io import save_png
from ggm_image.image.preprocess import to_model, to_uint8
from ggm_image.image.visualize import image_grid
from ggm_image.io.config_schema import load_config, save_config
from ggm_image.io.files import held, remove_temporaries, sha256_file, write_text
from ggm_image.io.safetensors import save_weights
from ggm_image.runtime.precision import choose_precision
from ggm_image.tokenizers.vq.vqgan import VQGAN, VQGANConfig
from ggm_image.training.batches import ResumableSampler, fits_on_device, move_together
from ggm_image.training.checkpoint import has_checkpoint, kind_of_run, load_checkpoint, save_checkpoint
from ggm_image.training.loggers import check_loggers
from ggm_image.training.logging import to_stderr
from ggm_image.training.run_record import TOKENIZER_FREE_TO_CHANGE, check_resumed, tokenizer_record
from ggm_image.training.signals import GracefulStop
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from ggm_image.training.vqgan.cost_estimate import check_memory
from ggm_image.training.vqgan.trainer import FROZEN, TokenizerTrainer, starting_point

MEMORY_LIMIT = 4 << 30  # bytes of decoded images that are kept; more are decoded again every epoch


class TrainingImages:
    """Decoded images by row, on a device: kept there or in memory where they fit, else decoded by a pool of threads."""

    def __init__(self, source: ImageSource, size: int, workers: int, device: torch.device) -> None:
        self.prefetch = Prefetch(source, size, workers=workers)
        self.rows, self.device = len(source), device
        self._kept: UInt8[Tensor, "count 3 size size"] | None = None
        if self.rows * 3 * size * size <= MEMORY_LIMIT:
            self._kept = self._decode(torch.arange(self.rows))
            if fits_on_device(self._kept.nbytes, device):
                self._kept = self._kept.to(device)

    def _decode(self, rows: Tensor) -> UInt8[Tensor, "n 3 size size"]:
        decoded: list[Tensor] = []
        for _, batch in self.prefetch.batches(rows.tolist(), 256):
            for image in batch:
                if isinstance(image, UserError):
                    raise image
                decoded.append(image)
        return torch.stack(decoded)

    def __getitem__(self, rows: Tensor) -> UInt8[Tensor, "n 3 size size"]:
        if self._kept is not None and self._kept.device.type == self.device.type:
            return self._kept[move_together([rows], self.device)[0]]
        found = self._kept[rows] if self._kept is not None else self._decode(rows)
        if self.device.type == "cuda":
            found = found.pin_memory()
        return found.to(self.device, non_blocking=True)


def train_tokenizer(
    config_path: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    overrides: list[str] | tuple[str, ...] = (),
    resume: bool = False,
    device: str = "cpu",
    workers: int = 2,
    force: bool = False,
) -> Path:
    """Train a tokenizer and export it as a tokenizer folder.

    Args:
        config_path: YAML of a `TokenizerTrainConfig`.
        data: image folder or tar.
        out: folder of the run: config.yaml, checkpoints, log.csv, images, and the tokenizer in ``tokenizer/``.
        resume: continue from the last checkpoint in ``out``.
        force: start although the run seems to need more memory than is available.

    Returns:
        The exported tokenizer folder.

    Raises:
        UserError: for a wrong config or data, a run that exists, another process that uses it, or a loss that is not
            finite, or too little memory.
    """
    config, out = load_tokenizer_config(config_path, overrides), Path(out)
    # All checks come before the first write, so that a refused run leaves the folder unchanged.
    if has_checkpoint(out) and not resume:
        raise UserError("the folder holds a run", out, "add --resume to continue it, or give another folder")
    state = load_checkpoint(out) if resume else None
    source = open_source(data)
    config.train.precision, line = choose_precision(config.train.precision, torch.device(device))
    if line:
        to_stderr(line)
    # A checkpoint of a different run, or of other images, must not be resumed.
    record = tokenizer_record(config, source)
    if state is not None:
        fix = f"resume with the run's own config and images, or start a new run with start={out / 'tokenizer'}"
        check_resumed(state.get("record", {}), record, TOKENIZER_FREE_TO_CHANGE, to_stderr, fix)
    if not force:
        check_memory(config, images=len(source), kept_bytes=MEMORY_LIMIT, device=device)
    check_loggers(config.train.logger)
    run = TokenizerRun(config, device, out, source, record, workers)
    if state is not None:
        run.load_checkpoint(state)
    # The lock keeps other processes from training in the same folder.
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        remove_temporaries(out, *(out / name for name in run.FOLDERS))
        save_config(out / "config.yaml", config)
        run.fit()
    return out / "tokenizer"


def load_tokenizer_config(path: str | Path, overrides: Sequence[str] = ()) -> TokenizerTrainConfig:
    """The config of a run, with the architecture of the tokenizer that it starts from."""
    config = load_config(TokenizerTrainConfig, path, overrides)
    if config.start:
        start = starting_point(config.start)
        config.architecture = start.config
        if config.train.decoder_only:
            _check_exact(start, config.train.weights_dtype)
    elif config.train.decoder_only:
        raise UserError("train.decoder_only needs a tokenizer to start from", "start is empty", "add start=NAME|DIR")
    return config


def _check_exact(tokenizer: VQGAN, dtype: str) -> None:
    """Raise UserError if the weights that stay would be rounded: some images would then have other tokens."""
    for name, value in tokenizer.state_dict().items():
        if name.startswith(FROZEN) and not torch.equal(value.to(getattr(torch, dtype)).to(value.dtype), value):
            what = "train.weights_dtype must hold the encoder's weights exactly"
            raise UserError(what, f"{dtype} rounds {name}", "set train.weights_dtype=float32")


class TokenizerRun(TokenizerTrainer):
    """A trainer with its images and its folder.

    Args:
        record: what defines the run, see `run_record`; stored with every checkpoint.
    """

    COLUMNS = ("minutes", "pixel", "psnr", "commitment", "perplexity", "dead", "restarted", "perceptual",
               "adversarial", "adversarial_weight", "matching", "matching_weight", "discriminator",
               "learning_rate")  # fmt: skip
    FOLDERS = ("tokenizer", "reconstructions")
    LOG_CHECKPOINTS = False
    MAY_BE_INFINITE = ("psnr",)  # where an image is met exactly

    def __init__(
        self,
        config: TokenizerTrainConfig,
        device: str,
        out: Path,
        source: ImageSource,
        record: Mapping[str, Any],
        workers: int,
    ) -> None:
        super().__init__(config, device, out)
        self.record = dict(record)
        self.images = TrainingImages(source, check_image_size(self.model, None), workers, self.device)
        self.order = ResumableSampler(self.images.rows, config.train.batch_size, config.train.seed)

    def load_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Resume exactly where ``state`` was taken; `train_tokenizer` has compared its record."""
        with kind_of_run("train-tokenizer"):
            self.load_state_dict(state["trainer"])
            self.order.load_state_dict(state["order"])

    def advance(self) -> dict[str, Any]:
        values = self.train_step(self.augmented(self.images[self.order.next()]))
        return {"gradient_norm": self.gradient_norm} | values

    def report(self, numbers: Mapping[str, float], steps_per_second: float, left: str) -> tuple[dict[str, float], str]:
        row = {name: value for name, value in numbers.items() if name != "gradient_norm"} | {
            "perplexity": self.codebook.perplexity(),
            "dead": self.codebook.dead(),
            "restarted": int(self.restarted),
            "learning_rate": self.rate,
        }
        self.restarted = 0
        return row, (
            f"step {self.step}  {100 * self.progress:.1f}%  psnr {row['psnr']:.2f} dB  perplexity "
            f"{row['perplexity']:.0f}  dead {row['dead']:.0f}  {left}"
        )

    def measure(self, stop: GracefulStop) -> None:
        path, every = self.out / "reconstructions" / f"{self.step:07d}.png", self.train.sample_every
        if every and self.step % every == 0 and not path.exists():
            stop.optional(lambda: self._reconstruct(path))
            if self.log is not None and path.exists():
                self.log.show(self.step, "reconstructions", path)

    def _reconstruct(self, path: Path) -> None:
        try:
            save_png(reconstructions(self, self.images), path)
        except Exception as error:  # no error in this image may end hours of training
            self.say(f"no reconstructions: {type(error).__name__}: {printable(error)}")

    def save(self) -> None:
        state = {"record": self.record, "trainer": self.state_dict(), "order": self.order.state_dict()}
        save_checkpoint(self.out, state)

    def finish(self) -> None:
        export_tokenizer(self.out / "tokenizer", self.config, self, self.images.rows)


def averaged(trainer: TokenizerTrainer, config: VQGANConfig) -> VQGAN:
    """The tokenizer with the moving average of the weights."""
    model = VQGAN(config).to(trainer.device)
    model.load_state_dict(trainer.ema.state)
    return model.eval()


def reconstructions(trainer: TokenizerTrainer, images: TrainingImages) -> UInt8[Tensor, "3 h w"]:
    """Eight images above what the tokenizer makes of them."""
    shown = images[torch.arange(min(8, images.rows))]
    model = averaged(trainer, trainer.model.config)
    painted = to_uint8(model.decode(model.encode(to_model(shown))))
    return image_grid(torch.cat([shown, painted]).cpu(), columns=len(shown))


def export_tokenizer(folder: Path, config: TokenizerTrainConfig, trainer: TokenizerTrainer, images: int) -> Path:
    """Write a tokenizer folder: the averaged weights and their config.yaml with the hash."""
    save_weights(folder / "model.safetensors", trainer.ema.state, getattr(torch, config.train.weights_dtype))
    sha256 = sha256_file(folder / "model.safetensors")
    own = {"identity": trainer.start_sha256, "decoder": sha256} if config.train.decoder_only else {}
    entries = {
        "name": config.name,
        "licence": config.licence,
        "architecture": asdict(config.architecture),
        "weights": {"sha256": sha256, **own, "url": None, "mirrors": []},
        "reported": {},
        "training": {
            "images": images,
            "steps": trainer.step,
            "minutes": round(trainer.clock.seconds / 60, 1),
            "loss": asdict(config.loss),
            "train": asdict(config.train),
        },
    }
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(entries)))
    return folder
