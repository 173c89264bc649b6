"""What the documents tell people to type exists: commands, options, make targets, files, Python names."""

import ast
import dataclasses
import functools
import inspect
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import ggm_image
from ggm_image.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "tokenizers/*.md", "tokenizers/*/*.md", "assets/**/*.md", "tools/**/*.md")
    for path in ROOT.glob(pattern)
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
OTHERS_OPTIONS = {"--max-restarts", "--strict", "--gpus", "--no-healthcheck"}
"""Options in running text that are another program's."""


def fenced_blocks(text, language=r"[^\n]*"):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def lines_of_code(text):
    """Lines of code blocks, fenced or indented, continued lines joined."""
    indented = re.findall(r"^    (?! )(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return re.sub(r"\\\n\s*", " ", "\n".join([*fenced_blocks(text), *indented])).splitlines()


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


@functools.cache
def known_options():
    """Options of all commands, of the tools and of the tests' own programs."""
    programs = [path for path in ROOT.glob("tests/**/*.py") if not path.name.startswith("test_")]
    scripts = [*ROOT.glob("tools/**/*.py"), *programs]
    written = {name for path in scripts for name in re.findall(r'"(--[a-z][a-z-]+)', path.read_text(encoding="utf-8"))}
    return written.union(*map(options_of, COMMANDS)) | OTHERS_OPTIONS


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
    if program in ("torchrun", "srun") and {"ggm-image", "ggm_image.cli.main"} & set(words):
        start = next(k for k, word in enumerate(words) if word in ("ggm-image", "ggm_image.cli.main"))
        return exists(["ggm-image", *words[start + 1 :]])
    if program == "make":
        return {word for word in words[1:] if re.fullmatch("[a-z-]+", word)} <= make_targets()
    if program.startswith("python") and first.endswith(".py"):
        return (ROOT / first).is_file()
    return True


def wrong_calls(text):
    """Lines of code blocks that call a command, option, make target or script that does not exist."""
    return [line for line in lines_of_code(text) if not exists(shell_words(line))]


def unknown_options(text):
    """Options named in running text that no command and no script has."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    named = {word for span in re.findall(r"`([^`\n]+)`", prose) for word in re.findall(r"(?<!\S)--[a-z][a-z-]+", span)}
    return sorted(named - known_options())


def missing_files(text):
    """Files of the repository named in running text or code that are not there."""
    named = re.findall(r"(?<![\w/.-])((?:configs|tools|tests|docker|docs)/[\w/-]+\.\w+)", text)
    return sorted({name for name in named if not (ROOT / name).exists()})


def missing_links(text, folder):
    """Targets of links and images inside the repository that are not there."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    local = {t.split("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)}
    return sorted(target for target in local if not (folder / target).exists())


def wrong_python(code):
    """What a block of Python takes from the package, or passes to a model, that is not there."""
    from ggm_image.pipelines.image import Model
    from ggm_image.pipelines.text import TextModel
    from ggm_image.sampler.settings import Settings

    owners = {"model": Model, "text_model": TextModel}
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ggm_image"):
            module = import_module(node.module)
            wrong += [name.name for name in node.names if not hasattr(module, name.name)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in owners:
                method = getattr(owners[owner.id], node.func.attr, None)
                known = inspect.signature(method).parameters if method else {}
                names = set(known)
                if any(p.kind is p.VAR_KEYWORD for p in known.values()):
                    names |= {field.name for field in dataclasses.fields(Settings)}
                if method is None:
                    wrong.append(f"{owner.id}.{node.func.attr}")
                wrong += [k.arg for k in node.keywords if method and k.arg not in names]
    return wrong


def test_the_checks_find_mistakes():
    """Seen to find nothing when fenced blocks are not looked into."""
    wrong = ["ggm-image smaple -n 4", "ggm-image sample --clas cat", "X=1 make tset", "python tools/no.py"]
    wrong += ["torchrun --nproc-per-node 8 -m ggm_image.cli.main sample --clas cat"]
    assert wrong_calls("\n".join(["```bash", *wrong, "```"])) == wrong
    right = ["ggm-image sample --class cat -n 4 --out a.png  # a comment's --word", "make test JOBS=4"]
    assert wrong_calls("".join(f"    {line}\n" for line in right)) == []
    links = "[a](no.md) ![b](no.png) [c](https://x.y/z) [d](CONTRIBUTING.md#set-up)"
    assert missing_links(links, ROOT) == ["no.md", "no.png"]
    assert unknown_options("Use `--clas cat` or `--class cat`.") == ["--clas"]
    assert missing_files("`tools/no.py`, `configs/cifar10.yaml`, runs/docs/a.md") == ["tools/no.py"]
    python = "from ggm_image import load_modle\nmodel.sample(4, clases='cat', seed=0)\nmodel.smaple()"
    assert sorted(wrong_python(python)) == ["clases", "load_modle", "model.smaple"]
    python = "text_model.infil('a ____')\ntext_model.infill('a ____', lenght=4)"
    assert sorted(wrong_python(python)) == ["lenght", "text_model.infil"]


@pytest.mark.parametrize("name", NAMES)
def test_documents(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert wrong_calls(text) == []
    assert missing_links(text, (ROOT / name).parent) == []
    assert [found for code in fenced_blocks(text, "python") for found in wrong_python(code)] == []
    if name.startswith("docs/"):
        assert unknown_options(text) == []
        assert missing_files(text) == []


def test_make_has_what_is_promised():
    assert {"sample", "test", "lint", "docs", "bench"} <= make_targets()


def test_one_version():
    """pyproject.toml has the version; the package, the citation and the changelog say the same."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.findall(r'^version = "(.+)"$', project, flags=re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert [ggm_image.__version__] == version
    assert (citation["version"], citation["date-released"]) == (released[0][0], released[0][1])
    assert [released[0][0]] == version


def test_notebook_is_stored_without_outputs():
    """Outputs would go stale with the next shipped model."""
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom():
    """In under two minutes, as the page says; its own assertions hold, and it shows images."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "docs/tutorial.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
