"""Options of all commands: their groups in ``--help``, and the names that registries hold."""

from importlib import import_module

import click
import pytest
from click.testing import CliRunner

from ggm_image.cli.main import COMMANDS
from ggm_image.cli.options import GROUPS, GroupedCommand, NameOf, how, what, where


def commands() -> dict[str, click.Command]:
    found = {}
    for name, (place, _) in COMMANDS.items():
        module, function = place.split(":")
        found[name] = getattr(import_module(module), function)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_in_a_group_and_is_one_sentence(name: str) -> None:
    command = commands()[name]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert getattr(parameter, "group", None) in GROUPS, parameter.opts
            text = parameter.help or ""
            assert text.rstrip().endswith((".", "[default: 1]")), parameter.opts
            assert "\n" not in text
            assert len(text) <= 110 or parameter.opts[0] in ("--order", "--metrics"), (parameter.opts, len(text))


def test_help_lists_what_how_and_where_in_this_order() -> None:
    @click.command(cls=GroupedCommand)
    @click.argument("image")
    @where(click.option("--out"))
    @how(click.option("--seed"), click.option("--device"))
    @what(click.option("--model"))
    def command(**options: str) -> None: ...

    shown = CliRunner().invoke(command, ["--help"]).output
    places = [
        shown.index(word) for word in ("What:", "--model", "How:", "--seed", "--device", "Where:", "--out", "Other:")
    ]
    assert places == sorted(places)
    assert shown.index("--help") > places[-1]
    assert shown.count("IMAGE") == 1  # in the line of usage


def test_names_of_a_registry_are_read_when_a_command_is_called() -> None:
    registry = {"one": 1}

    @click.command()
    @click.option("--name", type=NameOf(registry))
    def command(name: str) -> None:
        click.echo(name)

    assert CliRunner().invoke(command, ["--name", "two"]).exit_code == 2
    registry["two"] = 2
    assert CliRunner().invoke(command, ["--name", "two"]).output == "two\n"
    assert "[one|two]" in CliRunner().invoke(command, ["--help"]).output
