"""YAML: of runs, of models and of tokenizers, and what is said against it on the command line."""

import copy
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.faults.bad_sources import copied
from tests.faults.corpus import DONE, EITHER, REFUSED, Case, World

LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10)
)
TEXTS: dict[str, str | bytes] = {
    "of no bytes": b"",
    "a comment": "# nothing\n",
    "a list": "- 1\n- 2\n",
    "a word": "word",
    "a number": "5",
    "null": "null",
    "no UTF-8": b"a: \xff\xfe\n",
    "UTF-16": "a: 1\n".encode("utf-16"),
    "zeros": bytes(100),
    "an escape sequence": "a: \x1b[31m\n",
    "a tab for an indent": "a:\n\t- 1\n",
    "an open bracket": "a: [1, 2\n",
    "an open quote": 'a: "b\n',
    "a key twice": "data: {}\ndata: {}\n",
    "a tag that runs code": "a: !!python/object/apply:os.system [id]\n",
    "an unknown tag": "a: !x 1\n",
    "a billion laughs": LAUGHS,
    "a billion laughs in a known key": LAUGHS.replace("a9:", "presets:"),
    "an anchor that holds itself": "presets: &a {b: *a}\n",
    "a list that holds itself": "presets: {a: &a [*a]}\n",
    "an unknown anchor": "a: *b\n",
    "5,000 brackets": "a: " + "[" * 5000,
    "5,000 brackets that close": "a: " + "[" * 5000 + "]" * 5000,
    "500 levels": "".join(" " * k + f"a{k}:\n" for k in range(500)),
    "a number of 5,000 digits": "presets: {a: " + "9" * 5000 + "}\n",
    "a number of 5,000 digits as a key": "9" * 5000 + ": 1\n",
    "a megabyte of letters": "a: " + "x" * (1 << 20),
    "200,000 keys": "".join(f"k{k}: 1\n" for k in range(200_000)),
    "a reference": "presets: {a: '${data.holdout}'}\n",
    "a reference to itself": "presets: {a: '${presets.a}'}\n",
    "a reference to nothing": "presets: {a: '${no.thing}'}\n",
    "a look into the environment": "presets: {a: '${oc.env:HOME}'}\n",
    "an unknown resolver": "presets: {a: '${x:1}'}\n",
    "an open reference": "presets: {a: '${data'}\n",
    "a value to be filled in": "presets: ???\n",
    "a date": "presets: {a: 2020-01-01}\n",
    "bytes": "presets: {a: !!binary aGVsbG8=}\n",
    "a set": "presets: {a: !!set {b, c}}\n",
    "a key that is null": "null: 1\n",
    "a key that is a number": "1: 2\n",
    "a key that is a list": "? [1, 2]\n: 3\n",
    "a key with a dot": "train.steps: 3\n",
    "an empty key": "'': 3\n",
    "a merge of a word": "<<: word\n",
    "two documents": "a: 1\n---\nb: 2\n",
}
VALUES: dict[str, Any] = {
    "null": None, "a word": "word", "an empty text": "", "a list": [1, 2], "an empty list": [], "a table": {"a": 1},
    "true": True, "zero": 0, "a negative number": -3, "a fraction": 0.5, "NaN": float("nan"), "infinity": float("inf"),
    "10^30": 10**30, "a number of 5,000 digits": "9" * 5000, "a date": datetime.date(2020, 1, 1),
    "an escape sequence": "\x1b[31m", "a reference": "${oc.env:HOME}", "a line break": "a\nb",
}  # fmt: skip


def cases(world: World) -> dict[str, list[Case]]:
    return {
        "yaml": list(_texts(world)),
        "overrides": list(_overrides(world)),
        "model configs": list(_models(world)),
        "tokenizer configs": list(_tokenizers(world)),
    }


def _written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def _texts(w: World) -> Iterator[Case]:
    for what, text in TEXTS.items():
        uses: dict[str, Callable[[Path], list[str]]] = {
            "a run": lambda f, t=text: w.train(f / "run", config=_written(f / "c.yaml", t)),
            "a tokenizer's run": lambda f, t=text: w.train_tokenizer(f / "run", config=_written(f / "c.yaml", t)),
            "a model": lambda f, t=text: w.sample(
                f / "out.png", model=copied(w.root / "model", f / "model", "config.yaml", lambda p: _written(p, t))
            ),
            "a tokenizer": lambda f, t=text: w.encode(
                w.root / "pictures",
                f / "out",
                tokenizer=copied(w.root / "tokenizer", f / "own", "config.yaml", lambda p: _written(p, t)),
            ),
            "a published tokenizer": lambda f, t=text: [
                "convert",
                str(
                    copied(w.root / "tokenizer", f / "in", "model.yaml", lambda p: _written(p, t)) / "model.safetensors"
                ),
                str(f / "out"),
            ],
        }
        for use, make in uses.items():
            allowed = EITHER if use == "a published tokenizer" or "run" in use else REFUSED
            yield Case(f"the config of {use} is {what}", make, allowed)


def _spelt(value: Any) -> str:
    """A value as in YAML on one line."""
    if isinstance(value, str):
        return value if value.isdigit() else yaml.safe_dump(value, default_style='"').strip()
    return yaml.safe_dump(value, default_flow_style=True, width=1 << 20).strip().removesuffix("\n...").strip()


_ODD = ("null", "a word", "a list", "a table", "a negative number", "NaN", "infinity", "10^30", "a reference", "zero")
_KEYS = (
    "network.codebook_size", "network.classes", "network.grid", "network.width", "network.depth", "network.heads",
    "network.mlp_ratio", "network.condition_width", "network.theta", "network.tied_head", "tokenizer.name", "data.val",
    "data.holdout", "objective.name", "objective.contrast", "objective.keep", "train.max_minutes", "train.batch_size",
    "train.learning_rate", "train.final_share", "train.warmup_steps", "train.weight_decay", "train.betas", "train.clip",
    "train.ema_decay", "train.class_dropout", "train.precision", "train.seed", "train.log_every",
    "train.validate_every", "train.validate_images", "train.sample_every", "train.checkpoint_minutes",
    "train.weights_dtype", "presets", "format_version",
)  # fmt: skip
_TOKENIZER_KEYS = (
    "name", "start", "architecture.n_embed", "architecture.embed_dim", "architecture.ddconfig.ch",
    "architecture.ddconfig.ch_mult", "architecture.ddconfig.num_res_blocks", "architecture.ddconfig.attn_resolutions",
    "architecture.ddconfig.resolution", "architecture.ddconfig.z_channels", "loss.l1", "loss.commitment",
    "loss.adversarial_start", "loss.discriminator_width", "loss.discriminator_layers", "loss.discriminator_rate",
    "train.batch_size", "train.learning_rate", "train.final_share", "train.warmup_steps", "train.ema_decay",
    "train.codebook_decay", "train.restart_every", "train.restart_until", "train.log_every", "train.sample_every",
    "train.checkpoint_minutes", "train.precision", "train.seed", "train.weights_dtype", "train.max_minutes",
)  # fmt: skip


def _overrides(w: World) -> Iterator[Case]:
    for text in (
        "", "=", "=5", "train", "train=5", "train.steps", "train.steps=", "train.steps==1", "train.steps.x=1",
        "train..steps=1", ".=1", ".train.steps=1", "[0]=1", "train[steps]=1", "train.betas[0]=0.5", "train.betas=[0.9]",
        "train.betas=[a,b]", "train.steps=[", "train.steps={", "train.steps='", "train.steps=1e3", "train.steps=1_0",
        "train.steps=0x10", "train.step=1", "tarin.steps=1", "train.steps=1 train.clip=2", "train.steps= 1 ",
        "train.steps=\n1", "a" * 10_000 + "=1", "presets.a.b=1", "presets.best.sweeps=-1", "x\x1b[31m=1", "é=1",
        "train.steps=&a [*a]", "train.steps=" + "9" * 5000, "train.steps=${train.steps}", "train.steps=!!python/none",
    ):  # fmt: skip
        yield Case(f"an override {text[:40]!r}", lambda f, t=text: w.train(f / "run", t))  # type: ignore[misc]
    for keys, command in ((_KEYS, w.train), (_TOKENIZER_KEYS, w.train_tokenizer)):
        for number, key in enumerate(keys):
            for what in (_ODD[number % 4], *_ODD[4 + number % 2 :: 2]):
                override = f"{key}={_spelt(VALUES[what])}"
                # no case shall train on for ever because a number of images or steps was enormous and right
                yield Case(
                    f"{command.__name__} with {key} set to {what}",
                    lambda f, o=override, c=command: c(f / "run", o),  # type: ignore[misc]
                )


def _leaves(table: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from _leaves(value, (*at, key))


def changed(table: dict[str, Any], at: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The table with one entry replaced; removed where the value is Ellipsis."""
    result = copy.deepcopy(table)
    inner = result
    for key in at[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return result


def _mutations(table: dict[str, Any], skip: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every entry left out, and set to some of the odd values in turn."""
    odd = list(VALUES.items())
    for number, at in enumerate(_leaves(table)):
        if at[0] in skip:
            continue
        name = ".".join(at)
        if at[-1] != "resolution":  # its default is right, and a hundred times the work
            yield f"without {name}", changed(table, at, ...)
        for k in range(4):
            what, value = odd[(4 * number + k) % len(odd)]
            yield f"with {name} set to {what}", changed(table, at, value)


def _dumped(table: dict[str, Any]) -> str:
    return yaml.safe_dump(table)


def _models(w: World) -> Iterator[Case]:
    table = yaml.safe_load((w.root / "model/config.yaml").read_text())
    special = {
        "with a class twice": (("class_names",), ["cat", "cat", "dog"]),
        "with too few classes": (("class_names",), ["cat"]),
        "with too many classes": (("class_names",), ["a", "b", "c", "d"]),
        "with classes that are numbers": (("class_names",), [1, 2.5, None]),
        "with another codebook": (("network", "codebook_size"), 31),
        "with a grid of 10^9": (("network", "grid"), [10**9, 10**9]),
        "with a grid of no rows": (("network", "grid"), [0, 4]),
        "with a grid of three": (("network", "grid"), [4, 4, 4]),
        "with a width of 10^9": (("network", "width"), 10**9),
        "with a depth of 10^9": (("network", "depth"), 10**9),
        "with no preset": (("presets",), {}),
        "with a preset of nothing": (("presets", "best"), {}),
        "with a preset of unknown order": (("presets", "best", "order"), "up"),
        "with a preset of an unknown curve": (("presets", "best", "curve"), "steep"),
        "with a preset of unknown sites": (("presets", "best", "site_order"), "spiral"),
        "with a share of NaN in a preset": (("presets", "best", "revise_share"), float("nan")),
        "with a share of -1 in a preset": (("presets", "best", "revise_share"), -1.0),
        "with noise in letters in a preset": (("presets", "best", "confidence_noise"), "much"),
        "with infinite noise in a preset": (("presets", "best", "confidence_noise"), float("inf")),
        "with half a sweep in a preset": (("presets", "best", "sweeps"), 0.5),
        "with 10^12 sweeps in a preset": (("presets", "best", "sweeps"), 10**12),
        "with a first block of 0 in a preset": (("presets", "best", "first_block"), 0),
        "with a block in letters in a preset": (("presets", "best", "block"), "four"),
        "with a tokenizer that is elsewhere": (("tokenizer", "source"), "/nowhere"),
        "with a tokenizer in the folder above": (("tokenizer", "source"), "../tokenizer"),
        "with another tokenizer": (("tokenizer", "sha256"), "0" * 64),
    }
    spoilt = [*_mutations(table, ("training",)), *((what, changed(table, at, v)) for what, (at, v) in special.items())]
    for what, made in spoilt:
        text = _dumped(made)

        def make(f: Path, text: str = text) -> list[str]:
            model = copied(w.root / "model", f / "model", "config.yaml", lambda p: _written(p, text))
            return ["sample", "--model", str(model), "--out", str(f / "out.png"), "-n", "1", "--device", "cpu"]

        yield Case(f"a model {what}", make)
    yield Case(
        "a model as it is",
        lambda f: w.sample(f / "out.png", model=copied(w.root / "model", f / "m", "x", lambda p: _written(p, ""))),
        DONE,
    )


def _tokenizers(w: World) -> Iterator[Case]:
    table = yaml.safe_load((w.root / "tokenizer/config.yaml").read_text())
    special = {
        "of an unknown family": (("family",), "pixels"),
        "of a family that is a list": (("family",), []),
        "of another family": (("family",), "llamagen"),
        "with weights above": (("weights", "file"), "../model.safetensors"),
        "with weights elsewhere": (("weights", "file"), "/dev/zero"),
        "with weights called by a list": (("weights", "file"), [1]),
        "with a hash of four": (("weights", "sha256"), "abcd"),
        "with urls of numbers": (("weights", "url"), 5),
        "with mirrors in a word": (("weights", "mirrors"), "word"),
        "with a size in letters": (("weights", "bytes"), "many"),
        "with a page": (("page",), "https://example.org"),
        "with 10^9 codes": (("architecture", "n_embed"), 10**9),
        "with 70,000 codes": (("architecture", "n_embed"), 70_000),
        "with no levels": (("architecture", "ddconfig", "ch_mult"), []),
        "with 40 levels": (("architecture", "ddconfig", "ch_mult"), [1] * 40),
        "with 10^9 channels": (("architecture", "ddconfig", "ch"), 10**9),
        "with 31 channels": (("architecture", "ddconfig", "ch"), 31),
        "with 10^9 blocks": (("architecture", "ddconfig", "num_res_blocks"), 10**9),
        "with a resolution of 10^9": (("architecture", "ddconfig", "resolution"), 10**9),
        "with a resolution of 15": (("architecture", "ddconfig", "resolution"), 15),
        "with another width": (("architecture", "embed_dim"), 5),
        "with reported figures in a word": (("reported",), "good"),
        "with data that is a list": (("data",), [1]),
    }
    spoilt = [*_mutations(table), *((what, changed(table, at, value)) for what, (at, value) in special.items())]
    for what, made in spoilt:
        text = _dumped(made)

        def make(f: Path, text: str = text) -> list[str]:
            own = copied(w.root / "tokenizer", f / "own", "config.yaml", lambda p: _written(p, text))
            return w.encode(w.root / "pictures", f / "out", tokenizer=own)

        yield Case(f"a tokenizer {what}", make)
