"""Hook of mkdocs: one page of API reference for each entry of api_modules.yml, from the docstrings."""

import re
from pathlib import Path
from typing import Any

import yaml

MODULES = Path(__file__).with_name("api_modules.yml")
TITLE = "Python API"


def api_modules() -> dict[str, list[str]]:
    """Title of each page, and the modules and packages on it."""
    pages: dict[str, list[str]] = yaml.safe_load(MODULES.read_text(encoding="utf-8"))
    return pages


def page_name(title: str) -> str:
    """The path of a page, e.g. ``reference/api/images-and-masks.md``."""
    return f"reference/api/{re.sub('[^a-z]+', '-', title.lower())}.md"


def on_config(config: Any, **_: Any) -> Any:
    pages = [{title: page_name(title)} for title in api_modules()]
    for section in config.nav:
        for entry in section.get("Reference") or []:
            if TITLE in entry:
                entry[TITLE] = pages
    return config


def on_files(files: Any, config: Any, **_: Any) -> Any:
    from mkdocs.structure.files import File

    for title, modules in api_modules().items():
        content = "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, page_name(title), content=content + "\n"))
    return files
