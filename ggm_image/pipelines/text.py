"""A trained model of text and its tokenizer: sample texts, fill gaps, tell signal from noise.

    model = load_model("runs/books/model")
    texts = model.sample(4, seed=0)                                   # four bytes objects
    samples = model.infill("It was the ____ of times", n=4)           # every known byte stays

A text depends on (seed, its index, the settings, what is known) alone: every text has a random generator of its own,
and the network always sees batches of one fixed size, padded, because kernels are not batch-invariant. The network
always sees a row of the length that it was trained on. Where there is less text, it lies in the middle, and the sites
around it are masked, as training shows them; where there is more, it is filled in windows from left to right.

Known text between gaps is tokenized piece by piece, so its bytes never change. With a tokenizer whose words
begin with their space (BPE), a single space before a gap is given to the gap: its first token is sampled among the
codes that begin with a space and continue. A gap inside a word starts a new token.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import ggm_image
from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path, sha256_file
from ggm_image.network import Transformer
from ggm_image.pipelines.base import autocast, image_generator, pad_batch, sample_batch, seed_of_window
from ggm_image.pipelines.model_folder import TEXT_TOKENIZER, NetworkFolder
from ggm_image.pipelines.network_calls import NetworkCalls
from ggm_image.pipelines.save import save_model
from ggm_image.pipelines.text_gaps import LONGEST_TEXT, Gap, plan_windows, split_gaps
from ggm_image.runtime.numerics import isolate
from ggm_image.runtime.precision import native_bf16
from ggm_image.runtime.progress import progress_bar
from ggm_image.sampler.settings import Settings, check_count, check_seed
from ggm_image.sampler.token_signal import signal_probability
from ggm_image.tokenizers.bpe import BPETokenizer
from ggm_image.tokenizers.text import TextTokenizer

MAX_TEXTS = 1_000_000
TEXT_BATCH = {"cpu": 8, "cuda": 128}
"""Rows of one network call, padded where there are fewer texts."""


class TextModel:
    """A trained network with its tokenizer of text. Make one with `ggm_image.load_model`.

    Attributes:
        folder: what its ``config.yaml`` says.
        name: of the folder.
        modality: "text".
        presets: settings by name; ``exact`` is the paper's chain without truncation.
        length: L, tokens of the rows that it was trained on.
    """

    modality = "text"

    def __init__(
        self,
        folder: NetworkFolder,
        network: Transformer,
        sha256: str,
        tokenizer: TextTokenizer,
        device: str | torch.device,
        *,
        cuda_graphs: bool | None = None,
    ) -> None:
        self.folder, self.name, self.sha256, self.tokenizer = folder, folder.name, sha256, tokenizer
        self.presets = {name: Settings.of(dict(entries)) for name, entries in folder.presets.items()}
        self.device = torch.device(device)
        self.half = native_bf16(self.device)
        self.network = network.to(self.device, torch.bfloat16 if self.half else torch.float32).eval()
        self._calls = NetworkCalls(cuda_graphs)
        self.length = folder.network.grid[1]
        self.kernel_batch = TEXT_BATCH.get(self.device.type, 8)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything of the model that a text depends on, for manifests."""
        return {
            "model_sha256": self.sha256,
            **self.tokenizer.identity,
            "kernel_batch": self.kernel_batch,
            "precision": "bf16" if self.half else "fp32",
        }

    def settings(self, preset: str = "best", **changes: Any) -> Settings:
        """A preset with changes; None leaves the preset's value.

        Raises:
            UserError: for an unknown preset or a value out of range.
        """
        return Settings.of_preset(self.presets, preset, changes)

    def save(self, folder: str | Path) -> Path:
        """Write the model and its tokenizer to a new folder that `load_model` reads. It can be moved.

        Args:
            folder: it must not exist, or be empty.

        Returns:
            Its path.

        Raises:
            UserError: the folder holds files, or the model's own files are gone or have changed.
        """
        return save_model(self.folder, folder, add_tokenizer=self._add_tokenizer, sha256=self.sha256)

    def _add_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's file, unless it is known by its name."""
        if not isinstance(self.tokenizer, BPETokenizer):
            return
        with atomic_path(folder / TEXT_TOKENIZER) as temporary:
            shutil.copyfile(self.tokenizer.path, temporary)
        if sha256_file(folder / TEXT_TOKENIZER) != self.tokenizer.sha256:
            raise UserError("the tokenizer changed on disk", self.tokenizer.path, "load the model again")

    @isolate
    def sample(
        self,
        n: int = 1,
        *,
        length: int | None = None,
        seed: int = 0,
        preset: str = "best",
        settings: Settings | None = None,
        **changes: Any,
    ) -> list[bytes]:
        """Sample texts.

        Args:
            n: how many.
            length: tokens of each, which are bytes with the tokenizer ``bytes``; those of a training row by default.
            seed: any integer; text k of a seed is the same for every n.
            preset: ``fast``, ``best`` or ``exact``; ``settings`` instead for any other.
            settings: see `Settings`; guidance has no effect, as there are no classes.
            **changes: entries of `Settings` to change, for example ``temperature=0.8``; or ``keep_block``, see `fill`.

        Returns:
            n texts of ``length`` tokens. They need not be UTF-8.

        Raises:
            UserError: for an unknown preset or setting, or a value out of range.
        """
        size = check_count(self.length if length is None else length, "the length", least=1, most=LONGEST_TEXT)
        return self.fill(np.full(size, -1), n=n, seed=seed, preset=preset, settings=settings, **changes)

    @isolate
    def infill(
        self,
        text: str | bytes,
        *,
        n: int = 1,
        length: int | None = None,
        mask: str | bytes | None = None,
        seed: int = 0,
        preset: str = "best",
        settings: Settings | None = None,
        **changes: Any,
    ) -> list[bytes]:
        """Fill the gaps of a text; every other byte stays.

        Args:
            text: with gaps, see `split_gaps`.
            length: tokens of every gap; by default as many as its mask characters make, see `template`.
            mask: the mask character, of which every run is then a gap; by default four or more ``_``.
            seed, preset, settings: as in `sample`.
            **changes: entries of `Settings` to change.

        Returns:
            n texts.

        Raises:
            UserError: no gap, or a value out of range.
        """
        known, after_space = self.template(split_gaps(text, length=length, mask=mask))
        return self.fill(known, n=n, seed=seed, preset=preset, settings=settings, after_space=after_space, **changes)

    def template(self, parts: Sequence[bytes | Gap]) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " s"]]:
        """The tokens of a text with gaps, for `fill`.

        A gap whose length is not given gets a token for each of its mask characters, or with a tokenizer of pieces one
        for as many characters as a token of the known text has bytes on average, at least one.

        Args:
            parts: of `split_gaps`.

        Returns:
            (t,) the token where known, -1 in the gaps; and (s,) the sites that a space before a gap belongs to.
        """
        codes = [self.tokenizer.codes(part) if isinstance(part, bytes) else part for part in parts]
        known = [part for part in codes if not isinstance(part, Gap)]
        tokens, text_bytes = sum(map(len, known)), sum(len(part) for part in parts if isinstance(part, bytes))
        bytes_per_token = text_bytes / tokens if tokens else float(self.tokenizer.code_lengths.mean())
        rows: list[np.ndarray] = []
        spaces: list[int] = []
        for part in codes:
            if not isinstance(part, Gap):
                rows.append(part)
                continue
            if rows and len(rows[-1]) and self._goes_on_after_space.any() and rows[-1][-1] == self._space:
                rows[-1] = rows[-1][:-1]
                spaces.append(sum(map(len, rows)))
            size = part.tokens or max(1, round(part.characters / bytes_per_token))
            rows.append(np.full(size, -1))
        return np.concatenate([row.astype(np.int64) for row in rows]), np.array(spaces, dtype=np.int64)

    @cached_property
    def _space(self) -> int:
        """The code of a space alone."""
        return int(self.tokenizer.codes(b" ")[0])

    @cached_property
    def _goes_on_after_space(self) -> Bool[Tensor, " v"]:
        """The codes that begin with a space and continue; none for bytes."""
        return torch.tensor([len(code) > 1 and code[:1] == b" " for code in self.tokenizer.code_bytes])

    @isolate
    def fill(
        self,
        known: Int[np.ndarray, " t"],
        *,
        n: int = 1,
        seed: int = 0,
        preset: str = "best",
        settings: Settings | None = None,
        after_space: Int[np.ndarray, " s"] | None = None,
        keep_block: bool = False,
        **changes: Any,
    ) -> list[bytes]:
        """Sample the unknown tokens of a text, given the known ones.

        Args:
            known: (t,) the token where known, -1 where to be sampled.
            seed, preset, settings: as in `sample`.
            after_space: (s,) unknown sites whose token must begin with a space and continue; none by default.
            keep_block: sample as many sites in one network call as the settings say, however few are unknown. By
                default that is scaled down by the unknown share of a row, so that a gap gets the calls of a whole row,
                at most one for each token: neighbours that are sampled in one call do not see each other.
            **changes: entries of `Settings` to change.

        Returns:
            n texts of t tokens.
        """
        seed, n = check_seed(seed), check_count(n, "the number of texts", most=MAX_TEXTS)
        settings = settings or self.settings(preset)
        changes = {name: value for name, value in changes.items() if value is not None}
        settings = Settings.of(asdict(settings) | changes)
        keep_block = keep_block or "block" in changes
        if len(known) > LONGEST_TEXT:
            raise UserError(f"a text must have at most {LONGEST_TEXT:,} tokens", len(known), "give a part of it")
        tokens = torch.from_numpy(known.astype(np.int64)).expand(n, -1).clone()  # (n, t)
        windows = plan_windows(known < 0, self.length)
        spaces = np.zeros(0, np.int64) if after_space is None else after_space
        batches = [range(start, min(start + self.kernel_batch, n)) for start in range(0, n, self.kernel_batch)]
        with progress_bar(total=len(windows) * len(batches), unit="window", label="sample") as advance:
            for rows in batches:
                for turn, (start, end, kept) in enumerate(windows):
                    own = seed if turn == 0 else seed_of_window(seed, turn)
                    part = tokens[rows.start : rows.stop, start:end]
                    how = settings if keep_block else _scaled(settings, int((part[0] < 0).sum()) / self.length)
                    inside = torch.from_numpy(spaces[(spaces >= start) & (spaces < end)] - start)
                    filled = self._fill_window(part, rows.start, own, how, inside)
                    tokens[rows.start : rows.stop, start:kept] = filled[:, : kept - start]
                    advance(1)
        return self.tokenizer.decode(tokens.unsqueeze(1))

    def _fill_window(
        self, known: Int[Tensor, "m t"], first: int, seed: int, settings: Settings, after_space: Int[Tensor, " s"]
    ) -> Int[Tensor, "m t"]:
        """Texts ``first .. first + m - 1`` of at most a row's length, all with the same sites unknown."""
        m, width = known.shape
        size = self.kernel_batch
        tokens = sample_batch(
            self._restricted(self._denoiser(width), after_space),
            settings,
            [image_generator(seed, first + k) for k in range(size)],
            device=self.device,
            half=self.half,
            height=1,
            width=width,
            codebook_size=self.tokenizer.codebook_size,
            known=pad_batch(known, size).to(self.device),
        )
        return tokens[:m].cpu()

    def _denoiser(self, width: int) -> Callable[..., Tensor]:
        """The network for texts of ``width`` tokens in the middle of a row whose other sites are masked."""
        before = (self.length - width) // 2

        def denoiser(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
            if width == self.length:
                return self._calls(self.network, tokens, levels, sites, labels, (1, width))
            row = tokens.new_full((len(tokens), self.length), self.tokenizer.codebook_size)
            row[:, before : before + width] = tokens
            around = levels.new_zeros(len(tokens), self.length)
            around[:, before : before + width] = levels
            return self._calls(self.network, row, around, sites + before, labels, (1, self.length))

        return denoiser

    def _restricted(self, denoiser: Callable[..., Tensor], after_space: Int[Tensor, " s"]) -> Callable[..., Tensor]:
        """The denoiser with the sites ``after_space`` restricted to the codes that begin with a space and continue."""
        if not len(after_space):
            return denoiser
        chosen, ruled_out = after_space.to(self.device), ~self._goes_on_after_space.to(self.device)

        def restricted(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
            here = torch.isin(sites, chosen).unsqueeze(-1)  # (k, 1), or a row of sites for each text
            logits = denoiser(tokens, levels, sites, labels)
            return logits.masked_fill(here & ruled_out, -torch.inf)

        return restricted

    @isolate
    def signal(self, text: str | bytes, *, level: float = 0.9, block: int = 4) -> Float[Tensor, " t"]:
        """The model's probability, byte by byte, that its token is signal and not noise, given all others.

        A text that is longer than a row is judged in windows that overlap by half; the mean is taken.

        Args:
            text: at least one byte.
            level: share in (0, 1) of the tokens that are expected to be signal.
            block: tokens judged in one network call.

        Returns:
            (t,) probabilities, on the CPU.

        Raises:
            UserError: an empty or too long text, or a level out of range.
        """
        tokens = self.tokenizer.encode([text])[0]  # (1, t)
        total = tokens.shape[1]
        if not 1 <= total <= LONGEST_TEXT:
            got = f"{total} tokens"
            raise UserError(f"text must have 1 to {LONGEST_TEXT:,} tokens", got, "give another, or a part of it")
        width, step = min(total, self.length), max(1, self.length // 2)
        starts = torch.tensor(sorted({*range(0, total - width, step), total - width}))
        rows = torch.stack([tokens[0, start : start + width] for start in starts.tolist()])
        sums, counts = torch.zeros(2, total)
        for row, start in zip(self.signal_of_rows(rows, level=level, block=block), starts.tolist(), strict=True):
            sums[start : start + width] += row
            counts[start : start + width] += 1
        lengths = torch.from_numpy(self.tokenizer.code_lengths[tokens[0].numpy()])
        return (sums / counts).repeat_interleave(lengths)

    @isolate
    def signal_of_rows(self, rows: Int[Tensor, "n t"], *, level: float = 0.9, block: int = 4) -> Float[Tensor, "n t"]:
        """As `signal`, token by token, of several texts of one length, at most a row's."""
        width, found = rows.shape[1], []
        for batch in rows.split(self.kernel_batch):
            with torch.inference_mode(), autocast(self.device, self.half):
                probability = signal_probability(
                    self._denoiser(width),
                    pad_batch(batch, self.kernel_batch).to(self.device),
                    height=1,
                    width=width,
                    codebook_size=self.tokenizer.codebook_size,
                    level=level,
                    block=min(block, width),
                )
            found.append(probability[: len(batch)].cpu())
        return torch.cat(found)

    def manifest(self, n: int, *, length: int, seed: int, settings: Settings) -> dict[str, Any]:
        """Everything that is needed to sample the same texts again."""
        return {
            "model": self.name,
            **({"revision": self.folder.revision} if self.folder.revision else {}),
            "modality": self.modality,
            "tokenizer": self.tokenizer.name,
            **self.identity,
            "seed": check_seed(seed),
            "count": int(n),
            "length": length,
            "settings": asdict(settings),
            "device": self.device.type,
            "versions": {"ggm_image": ggm_image.__version__, "torch": torch.__version__},
        }


def _scaled(settings: Settings, share: float) -> Settings:
    """The settings for a share of a row's sites: as many network calls as for the whole row, at most one for each."""
    first = settings.first_block and max(1, int(settings.first_block * share))
    return replace(settings, block=max(1, int(settings.block * share)), first_block=first)
