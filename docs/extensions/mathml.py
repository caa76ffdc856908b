"""Formulas as MathML, which browsers draw by themselves: the pages need nothing from the net."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

# Spelt otherwise, or not at all, in what docutils converts: MathML's brackets grow by themselves.
_REPLACED = {
    r"\\[bB]igg?(?![a-zA-Z])": "",
    r"\\dots(?![a-zA-Z])": r"\\ldots",
    r"(?<!\\)\\ ": r"\\;",
}

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", _NAMESPACE)

logger = logging.getLogger(__name__)


def convert(node: nodes.math | nodes.math_block) -> str:
    """A formula's MathML; what cannot be converted is a warning, which ends the build."""
    block = isinstance(node, nodes.math_block)
    text = node.astext()
    for pattern, replacement in _REPLACED.items():
        text = re.sub(pattern, replacement, text)
    if block and ("&" in text or r"\\" in text):
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    try:
        return _place_signs(tex2mathml(text, as_block=block))
    except MathError as error:
        logger.warning("no MathML for %r: %s", text, error, location=node)
        return text


def _place_signs(mathml: str) -> str:
    r"""Puts the index in ``\bar Q_k`` beside the letter, and the bar above it.

    docutils puts the first below. As an accent, the second lies on the letter in browsers whose
    fonts do not say how high it is.
    """
    # names of characters that HTML knows and XML does not
    mathml = re.sub(r"&(?!lt;|gt;|amp;|#)\w+;", lambda found: html.unescape(found[0]), mathml)
    root = ElementTree.fromstring(mathml)
    for element in root.iter(f"{{{_NAMESPACE}}}munderover"):
        base, index, accent = element
        if accent.text in ("ˉ", "ˆ", "~"):
            over = ElementTree.Element(f"{{{_NAMESPACE}}}mover")
            over.extend([base, accent])
            element.tag = f"{{{_NAMESPACE}}}msub"
            element[:] = [over, index]
    for element in root.iter(f"{{{_NAMESPACE}}}mover"):
        element.attrib.pop("accent", None)
    return ElementTree.tostring(root, encoding="unicode")


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Writes a formula within a line."""
    self.body.append(convert(node))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Writes a formula on lines of its own."""
    self.body.append(f'<div class="math">{convert(node)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True}
