"""What the documents tell people to type exists: commands, options, make targets, files."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from ggm_image.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "tokenizers/*/*.md", "assets/**/*.md", "tools/*.md")
    for path in ROOT.glob(pattern)
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def lines_of_code(text):
    """Lines of code blocks, fenced or indented, continued lines joined."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.M | re.S)
    indented = re.findall(r"^    (?! )(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return re.sub(r"\\\n\s*", " ", "\n".join([*fenced, *indented])).splitlines()


def shell_words(line):
    """Words of a line of shell, comment aside; nothing where it is no shell."""
    try:
        return shlex.split(line.strip().removeprefix("$ "), comments=True)
    except ValueError:
        return []


def options_of(command):
    module, function = COMMANDS[command][0].split(":")
    parameters = getattr(import_module(module), function).params
    return {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def make_targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


def exists(words):
    """Whether what a line of shell calls is there, as far as it is ours."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if len(words) < 2:
        return True
    program, first = Path(words[0]).name, words[1]
    if program == "ggm-image" and not first.startswith("-"):
        options = {word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
        return first in COMMANDS and options <= options_of(first)
    if program == "make":
        return {word for word in words[1:] if re.fullmatch("[a-z-]+", word)} <= make_targets()
    if program.startswith("python") and first.endswith(".py"):
        return (ROOT / first).is_file()
    return True


def wrong_calls(text):
    """Lines of code blocks that call a command, option, make target or script that does not exist."""
    return [line for line in lines_of_code(text) if not exists(shell_words(line))]


def missing_links(text, folder):
    """Targets of links and pictures inside the repository that are not there."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    local = {t.split("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)}
    return sorted(target for target in local if not (folder / target).exists())


def test_the_checks_find_mistakes():
    """Seen to find nothing when fenced blocks are not looked into."""
    wrong = ["ggm-image smaple -n 4", "ggm-image sample --clas cat", "X=1 make tset", "python tools/no.py"]
    assert wrong_calls("\n".join(["```bash", *wrong, "```"])) == wrong
    right = ["ggm-image sample --class cat -n 4 --out a.png  # a comment's --word", "make test JOBS=4"]
    assert wrong_calls("".join(f"    {line}\n" for line in right)) == []
    links = "[a](no.md) ![b](no.png) [c](https://x.y/z) [d](CONTRIBUTING.md#set-up)"
    assert missing_links(links, ROOT) == ["no.md", "no.png"]


@pytest.mark.parametrize("name", NAMES)
def test_documents(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert wrong_calls(text) == []
    assert missing_links(text, (ROOT / name).parent) == []


def test_make_has_what_is_promised():
    assert {"sample", "test", "lint", "bench"} <= make_targets()
