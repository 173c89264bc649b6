"""Hook of mkdocs: a page that loads anything from the network fails the build of `make docs` (--strict)."""

import logging
import re
from typing import Any

_log = logging.getLogger("mkdocs.hooks.offline")
_LOADED = re.compile(
    r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc="(?:https?:)?//[^"]*"'
    r'|<link\b(?=[^>]*\brel="(?:stylesheet|preload|preconnect|icon|modulepreload)")[^>]*?\bhref="(?:https?:)?//[^"]*"'
    r"|(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]*"
)


def loaded_from_network(page: str) -> list[str]:
    """What the HTML of a page makes the browser fetch from another host; links to follow are not meant."""
    return [match[0] for match in _LOADED.finditer(page)]


def on_post_page(output: str, page: Any, **_: Any) -> str:
    for found in loaded_from_network(output):
        _log.warning("%s loads from the network: %s", page.file.src_uri, found)
    return output
