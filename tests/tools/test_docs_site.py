"""What builds the documentation site: links, formulas, the command line, the modules of the API, no network."""

import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import click
import pytest

import ggm_image
from ggm_image.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]


def hook(name: str) -> ModuleType:
    """A hook of mkdocs, loaded by its path as mkdocs does."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "tools" / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_option_is_in_the_reference() -> None:
    """Seen to fail with options written only where a command has one group of them."""
    page = hook("command_line").commands_markdown()
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert f"## {name}\n" in page
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                long = next((option for option in parameter.opts if option.startswith("--")), parameter.opts[0])
                assert f'id="{name}{long}"' in page


def test_help_cannot_become_markup() -> None:
    command = click.Command("x", help="Read <b> as `a|b`.", params=[click.Option(["--y"], help="1 < 2 [ref]")])
    page = hook("command_line").command_markdown("x", command, click.Context(cli, info_name="ggm-image"))
    assert "<p>Read &lt;b&gt; as <code>a|b</code>.</p>" in page
    assert "<td>1 &lt; 2 [ref]</td>" in page


def test_groups_of_options_become_tables() -> None:
    class Grouped(click.Command):
        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            for title in ("What", "How"):
                with formatter.section(title):
                    formatter.write_dl([(f"--{title.lower()} N", f"{title}?")])

    page = hook("command_line").command_markdown("x", Grouped("x"), click.Context(cli))
    assert page.count("<table>") == 2
    assert all(piece in page for piece in ("<th>What</th>", "<th>How</th>", 'id="x--how"'))


def test_links_of_the_repository_become_links_of_the_site() -> None:
    """Seen to fail with links of files outside docs/ resolved as if they lay in it."""
    link = hook("repository_files").site_link
    known = {"assets/a.png", "CONTRIBUTING.md", "tokenizers/x/README.md"}
    assert link("../../assets/a.png", "results/quality.md", known) == "../assets/a.png"
    assert link("../CONTRIBUTING.md#tests", "install.md", known) == "CONTRIBUTING.md#tests"
    assert link("other.md", "results/quality.md", known) == "other.md"
    assert link("../../docs/results/quality.md#x", "tokenizers/x/README.md", known) == "../../results/quality.md#x"
    assert link("docs/install.md", "CONTRIBUTING.md", known) == "install.md"
    for target in ("https://a.b/c", "#here", "mailto:a@b.c", "../../pyproject.toml"):
        assert link(target, "results/quality.md", known) == target


def test_images_and_cards_are_in_the_site() -> None:
    found = hook("repository_files").repository_files(ROOT)
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "assets/method.svg", "tokenizers/README.md"} <= set(found)
    assert not any("/samples/" in name for name in found)


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml")
    page = r'<p><span class="arithmatex">\(a &lt; \log q\)</span></p><div class="arithmatex">\[\sum_a \pi(a)\]</div>'
    made = hook("mathml").to_mathml(page)
    assert made.count("<math ") == 2
    assert "arithmatex" not in made
    assert 'display="block"' in made
    assert '<mi>log</mi><mspace width="0.17em"/>' in made


@pytest.mark.parametrize(
    "loaded",
    [
        '<script src="https://cdn.x/y.js">',
        '<img alt="a" src="//x.y/z.png">',
        '<link rel="stylesheet" href="https://fonts.x/css">',
        "<style>@import 'https://x.y/z.css'</style>",
        "<style>a { background: url(https://x.y/z.png) }</style>",
    ],
)
def test_what_is_loaded_from_the_network_is_found(loaded: str) -> None:
    assert hook("offline").loaded_from_network(f"<p>{loaded}</p>")


def test_links_to_follow_load_nothing() -> None:
    page = '<a href="https://x.y">z</a><link rel="canonical" href="https://x.y"><script src="../a.js"></script>'
    assert hook("offline").loaded_from_network(page) == []


def test_the_api_reference_has_every_module_once() -> None:
    """Seen to fail with a module left out, and with one that is also inside a listed package."""
    pages = hook("api_pages").api_modules()
    listed = [module for modules in pages.values() for module in modules]
    assert len(set(listed)) == len(listed)
    modules = [module.name for module in pkgutil.walk_packages(ggm_image.__path__, "ggm_image.")]
    public = [name for name in modules if not name.startswith("ggm_image.cli") and "._" not in name]
    covered = {name: [entry for entry in listed if f"{name}.".startswith(f"{entry}.")] for name in public}
    assert {name: entries for name, entries in covered.items() if len(entries) != 1} == {}
    assert set(listed) <= set(modules)


def test_the_figure_of_the_method_is_computed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from click.testing import CliRunner

    spec = importlib.util.spec_from_file_location("method", ROOT / "tools" / "figures" / "method.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = CliRunner().invoke(module.main, [str(tmp_path / "figure.svg")], catch_exceptions=False)
    assert result.exit_code == 0
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").startswith("<?xml")
