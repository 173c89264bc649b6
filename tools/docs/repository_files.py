"""Hook of mkdocs: files of the repository that are not under docs/ are part of the site too.

Pages link to them as they lie in the repository (`../assets/method.svg`), so the links work where the repository
itself is browsed; here they are turned into links of the site, where docs/ is the root and all else stands beside it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

PATTERNS = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "assets/**/*.png",
    "assets/*.svg",
    "assets/models/*/README.md",
    "tokenizers/README.md",
    "tokenizers/*/README.md",
    "tokenizers/*/*.png",
)
_LINK = re.compile(r'(\]\()([^)\s]+)(?=[)\s])|((?:src|href)=")([^"]+)(?=")')


def repository_files(root: Path) -> list[str]:
    """Paths in the repository of the files outside docs/ that the site holds."""
    found = {path.relative_to(root).as_posix() for pattern in PATTERNS for path in root.glob(pattern)}
    return sorted(name for name in found if "/samples/" not in name)


def site_link(target: str, page: str, known: set[str]) -> str:
    """A link of the site for a link of the repository.

    Args:
        target: as the page has it.
        page: the page's path in the site, e.g. ``results/quality.md``.
        known: paths of `repository_files`.
    """
    path, hash_, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return target
    here = page if page in known else f"docs/{page}"
    absolute = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
    if absolute in known:
        where = absolute
    elif absolute.startswith("docs/"):
        where = absolute.removeprefix("docs/")
    else:
        return target  # mkdocs warns of it, and --strict fails
    return posixpath.relpath(where, posixpath.dirname(page) or ".") + hash_ + anchor


def on_files(files: Any, config: Any, **_: Any) -> Any:
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    for name in repository_files(root):
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    known = set(repository_files(Path(config.config_file_path).parent))

    def link(match: re.Match[str]) -> str:
        before, target = match[1] or match[3], match[2] or match[4]
        return before + site_link(target, page.file.src_uri, known)

    return _LINK.sub(link, markdown)
