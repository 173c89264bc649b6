"""``models`` and ``tokenizers``: what is known, as text and as JSON."""

import json

import pytest

from tests.cli.commands import run


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--json") == 0
    models = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"cifar10", "robots64"} <= models.keys()
    assert all(row["megabytes"] > 1 and set(row["figures"]) <= set(row["presets"]) for row in models.values())
    assert run("tokenizers", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "codes", "downscale", "reported"} <= rows[0].keys()
    assert run("tokenizers") == 0
    assert "cifar10-f4-4096" in capsys.readouterr().out
