"""Hook of mkdocs: formulas become MathML while the site is built.

Every current browser draws MathML by itself, so the pages need no script, no font and no network.
"""

import html
import re
from typing import Any

_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', flags=re.DOTALL)


def to_mathml(content: str) -> str:
    """The HTML of a page with every formula that pymdownx.arithmatex marked, as MathML."""
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        tag, body = match[1], html.unescape(match[2]).strip()
        latex = body.removeprefix(r"\(").removesuffix(r"\)").removeprefix(r"\[").removesuffix(r"\]").strip()
        mathml = convert(latex, display="block" if tag == "div" else "inline")
        return f'<{tag} class="formula">{_spaced(mathml)}</{tag}>'

    return _FORMULA.sub(formula, content)


def _spaced(mathml: str) -> str:
    """A thin space after a function's name, and the relation in place of the tilde, which browsers leave to us."""
    mathml = re.sub(r"(<m[io]>(?:log|exp|max|min)</m[io]>)", r'\1<mspace width="0.17em"/>', mathml)
    return mathml.replace("<mi>&#x0007E;</mi>", "<mo>&#x223C;</mo>")


def on_page_content(content: str, **_: Any) -> str:
    return to_mathml(content)
