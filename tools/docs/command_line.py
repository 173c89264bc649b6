"""Hook of mkdocs: the reference of the command line, from the commands themselves.

`<!-- commands -->` on a page becomes every command with its text, its groups of options and their defaults, as `--help`
prints them. Every option has an anchor: `#sample--guidance`.
"""

import contextlib
import html
import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import click

MARKER = "<!-- commands -->"


class Recorder(click.HelpFormatter):
    """Keeps the groups of options that a command would print, whatever way it groups them."""

    def __init__(self) -> None:
        super().__init__(width=10_000)
        self.sections: list[tuple[str, list[tuple[str, str]]]] = []

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.sections.append((name, []))
        yield

    def write_dl(self, rows: Sequence[tuple[str, str]], *_: Any, **__: Any) -> None:
        if not self.sections:
            self.sections.append(("Options", []))
        self.sections[-1][1].extend(rows)


def command_markdown(name: str, command: click.Command, parent: click.Context) -> str:
    """The section of one command: usage, text, options."""
    context = click.Context(command, info_name=name, parent=parent)
    recorder = Recorder()
    command.format_options(context, recorder)
    text = inspect.cleandoc(command.help or "").replace("\b", "")
    paragraphs = [f"<p>{_code(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part.strip()]
    tables = []
    for title, rows in recorder.sections:
        lines = [f"<table><thead><tr><th>{html.escape(title)}</th><th>Meaning</th></tr></thead><tbody>"]
        for option, meaning in rows:
            long = re.search(r"(?<!\S)--?[a-z][a-z0-9-]*", option[option.find("--") :] if "--" in option else option)
            anchor = f' id="{name}{long[0] if long else ""}"'
            lines.append(f"<tr{anchor}><td><code>{html.escape(option)}</code></td><td>{_code(meaning)}</td></tr>")
        tables.append("".join(['<div class="options">', *lines, "</tbody></table></div>"]))
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    return "\n\n".join([f"## {name}", f"```text\n{usage}\n```", *paragraphs, *tables])


def _code(text: str) -> str:
    """Plain text as HTML, with what stands in backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


def commands_markdown() -> str:
    """The sections of all commands, in the order of ``ggm-image --help``."""
    main = import_module("ggm_image.cli.main").cli
    context = click.Context(main, info_name="ggm-image")
    names = main.list_commands(context)
    return "\n\n".join(command_markdown(name, main.get_command(context, name), context) for name in names)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(MARKER, commands_markdown()) if MARKER in markdown else markdown
