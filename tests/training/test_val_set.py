"""The validation set: classes by name, no image of the training set, and its NLL."""

from pathlib import Path

import pytest
import torch

from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.io.config_schema import load_config
from ggm_image.network import Transformer
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.dataset import TokenSet, labels_by_name, load_tokens
from ggm_image.training.evaluation import val_nll
from tests.training.toy import V, write_cache


def test_held_out_classes_are_matched_by_name(config: Path, cache: Path, tmp_path: Path) -> None:
    """Seen to fail at f183d35: labels were matched by number, and an empty class folder could not be used at all."""

    def val_set(names: tuple[str, ...]) -> tuple[set[tuple[int, int]], list[str]]:
        said: list[str] = []
        val = write_cache(tmp_path / "-".join(names), names=names, noise=0.0)
        settings = load_config(GeneratorConfig, config, [f"data.val={val}"])
        rows = load_tokens(settings, TokenCache.open(cache), said.append)[1]
        return set(zip(rows.tokens[:, 0].tolist(), rows.labels.tolist(), strict=True)), said

    assert val_set(("left", "right")) == ({(3, 0), (11, 1)}, [])
    assert val_set(("right", "left")) == ({(3, 1), (11, 0)}, [])
    assert val_set(("left", "right", "empty")) == ({(3, 0), (11, 1)}, [])
    numbered, said = val_set(("0", "1"))
    assert numbered == {(3, 0), (11, 1)}
    assert "matched by number" in said[0]
    with pytest.raises(UserError, match=r"training cache's classes only \(it also has frog, toad\)"):
        val_set(("frog", "toad"))
    with pytest.raises(UserError, match=r"\(it also has toad\)"):
        val_set(("left", "toad"))


def test_labels_of_two_caches() -> None:
    """Numbers are names too: "10" may come before "2" in one cache and after it in the other."""
    said: list[str] = []
    folders = sorted(str(k) for k in range(12))
    labels = torch.tensor([0, 1, 2, 11, -1])
    shards = [str(k) for k in range(12)]
    found = labels_by_name(labels, folders, [*shards[:-1], "other", "11"], "val", said.append)
    assert [("null" if k == 13 else [*shards[:-1], "other", "11"][k]) for k in found] == [
        *(folders[k] for k in labels[:-1]),
        "null",
    ]
    assert not said
    assert labels_by_name(torch.tensor([0, -1]), ["a"], [], "val", said.append).tolist() == [0, 0]
    assert labels_by_name(torch.tensor([-1, -1]), [], ["a", "b"], "val", said.append).tolist() == [2, 2]
    assert len(said) == 2
    with pytest.raises(UserError, match="it also has 2"):
        labels_by_name(torch.tensor([2]), ["0", "1", "2"], ["a", "b"], "val", said.append)


def test_a_held_out_image_and_its_mirror_image_are_never_trained_on(config: Path, tmp_path: Path) -> None:
    # Seen to fail when rows instead of images are held out.
    cache = TokenCache.open(write_cache(tmp_path / "both", flip=True, noise=1.0))  # no two rows alike
    settings = load_config(GeneratorConfig, config)
    training, val_set = load_tokens(settings, cache)
    assert len(training) == 80 - 2 * 4
    assert len(val_set) == 8
    tokens, _ = cache.load()
    rows = {tuple(t): i for i, t in enumerate(tokens.flatten(1).tolist())}
    held, trained = ({rows[tuple(t)] % 40 for t in part.tokens.tolist()} for part in (val_set, training))
    assert len(held) == 4
    assert not held & trained


def test_nll_of_a_uniform_network_is_ln_v_at_every_level() -> None:
    # Seen to fail with a level applied twice, and with a sum in place of a mean.
    from ggm_image.network import NetworkConfig

    network = Transformer(NetworkConfig(codebook_size=V, classes=2, grid=[3, 3], width=8, depth=1, heads=1))
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    val_set = TokenSet(torch.randint(0, V, (5, 9)).int(), torch.zeros(5, dtype=torch.long))
    values = val_nll(network, val_set, torch.full((V,), 1 / V), batch_size=2)
    for name, value in values.items():
        assert value == pytest.approx(torch.log(torch.tensor(float(V))).item(), abs=1e-5), name
