"""Draws the Mermaid of a page while the site is built, so that a reader needs neither a network nor a script."""

from __future__ import annotations

import re
from html import escape

import mermaidx
from docutils import nodes
from sphinx.application import Sphinx

_CONFIG = {"htmlLabels": False, "flowchart": {"htmlLabels": False}}  # as text of SVG, a label is never cut off

_WIDTH = re.compile(r"max-width: ([\d.]+)px")  # with less than 0.85 of it, words are too small: the drawing scrolls


def draw(_: Sphinx, page: nodes.document) -> None:
    """Puts each drawing before its source, which stays for whoever can't see the drawing. For "doctree-read".

    Raises RuntimeError for a source that is no Mermaid: a forge would show an error in its place.
    """
    found = [block for block in page.findall(nodes.literal_block) if block.get("language") == "mermaid"]
    for number, block in enumerate(found):
        title = block.parent.next_node(nodes.title)
        about = f"Drawing: {title.astext() if title else 'this page'}"
        svg = mermaidx.render(block.astext(), theme="neutral", config=_CONFIG).svg()
        svg = re.sub(r"\bmy-svg\b", f"drawing-{number}", svg)  # a name of its own, for a page with several drawings
        svg = svg.replace("<svg ", f'<svg aria-label="{escape(about)}" ', 1)
        svg = _WIDTH.sub(lambda width: f"{width[0]}; min-width: {0.85 * float(width[1]):.0f}px", svg, count=1)
        before = f'<div class="drawing" tabindex="0">{svg}</div><details><summary>The drawing as text</summary>'
        block.replace_self(
            [nodes.raw("", before, format="html"), block.deepcopy(), nodes.raw("", "</details>", format="html")]
        )
