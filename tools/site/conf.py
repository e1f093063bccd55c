"""The settings of Sphinx. The pages are the Markdown files of the repository, as a forge shows them.

The root of the source is the root of the repository, so that links out of docs/ lead somewhere on the site too: to
another page, or to a copy of the file.
"""

from __future__ import annotations

import re

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from tools.site.drawings import draw

project = "Keyturn"
html_title = "Keyturn"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "docs/index"
include_patterns = ["*.md", "app/users/*.md", "bench/*.md", "deploy/**.md", "docs/*.md", "examples/**.md"]
exclude_patterns = [".*", "**/node_modules", "app/[!u]*", "build", "dist", "keyturn-data", "tests", "tools"]
suppress_warnings = ["toc.not_included"]  # pages beside docs/; tests/test_docs.py finds a page that the index lacks
nitpicky = True

myst_heading_anchors = 4

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["keyturn.css"]
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options: dict[str, list[str]] = {"top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

_MENDED = {
    '<th class="head"><p></p></th>': "<td></td>",
    'class="caption" role="heading">': 'class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper ': '<div tabindex="0" class="table-wrapper ',
}
_SOUGHT = {
    "clients": {"Refusals": "400 401 403 404 405 408 409 413 414 415 429 431 500 503"},
    "limits": {"What a client sees": "429 Retry-After RateLimit"},
    "web": {"Browsers on other origins": "CORS KEYTURN_ALLOWED_ORIGINS", "CSRF": "CSRF cross_site"},
}
"""By page and heading: words that lead there. Sphinx drops numbers, and ranks no page higher for being about a word."""
_LINK = re.compile(r"^- \[[^\]]+\]\(([\w-]+)\.md\)", re.MULTILINE)


def _folders_by_their_readme(app: Sphinx, page: str, source: list[str]) -> None:
    """Leads a link to a folder to the folder's README. Where there is none, the words stay without a link."""

    def led(link: re.Match[str]) -> str:
        words, folder = link.groups()
        readme = app.srcdir / page / ".." / folder / "README.md"
        return f"[{words}]({folder}README.md)" if readme.resolve().exists() else words

    source[0] = re.sub(r"\[([^\]\n]+)\]\(((?:\.\./)?[\w/-]+/)\)", led, source[0])


def _with_contents(_: Sphinx, page: str, source: list[str]) -> None:
    """Makes the contents of the site from the lists of the index, which a forge shows as lists of links."""
    if page != root_doc:
        return
    for part in source[0].split("\n## ")[1:]:
        names = "\n".join(_LINK.findall(part))
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {part.partition(chr(10))[0]}\n\n{names}\n```\n"


def _with_entries(_: Sphinx, page: str, source: list[str]) -> None:
    """Gives headings entries of the index. The search shows those that are marked `!` first.

    Raises:
        ValueError: the page has no such heading.
    """
    for heading, words in _SOUGHT.get(page.removeprefix("docs/"), {}).items():
        before, found, after = source[0].partition(f"\n## {heading}\n")
        if not found:
            raise ValueError(f"{page} has no heading {heading}")
        entries = "".join(f"\n```{{index}} ! {word}\n```\n" for word in words.split())
        source[0] = f"{before}{entries}{found}{after}"


def _for_everyone(app: Sphinx, failed: Exception | None) -> None:
    """Mends what axe finds in Furo's pages: what has no level, no name or no words, or scrolls without keys."""
    for path in [] if failed else app.outdir.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for found, mended in _MENDED.items():
            text = text.replace(found, mended)
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_lexer("mermaid", TextLexer)  # for the source below a drawing
    app.connect("doctree-read", draw)
    app.connect("source-read", _folders_by_their_readme)
    app.connect("source-read", _with_contents)
    app.connect("source-read", _with_entries)
    app.connect("build-finished", _for_everyone)
