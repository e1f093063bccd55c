"""A whole page: head, style and the header fields under which a browser shows it."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from .markup import element, joined

_STYLE = (Path(__file__).parent / "pages.css").read_text(encoding="utf-8")
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()

# The bow of a key with the arc of a turn.
_DRAWING = (
    '<circle cx="8.5" cy="15.5" r="5"/><path d="M12 12 20 4m-4.2 4.2 3 3"/><path d="M3.2 8.3A9.6 9.6 0 0 1 9.6 4.6"/>'
)
MARK = Markup(
    '<svg class="mark" viewBox="0 0 24 24" width="28" height="28" fill="none" stroke="currentColor" '
    'stroke-width="2" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">{}</svg>'
).format(Markup(_DRAWING))  # noqa: S704  # a constant of this file
_ICON = "data:image/svg+xml," + quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#2f6f5e" stroke-width="2.4" '
    f'stroke-linecap="round" stroke-linejoin="round">{_DRAWING}</svg>'
)

FIELDS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'".encode(),
    ),
)
"""The header fields of each page. The policy names the one style sheet by its hash, and allows only that and the icon
(W3C, Content Security Policy Level 3). No other site may put the page into a frame.
"""


def html_page(title: str, *body: str, kind: str) -> bytes:
    """A whole page in HTML. `kind` is a word for the style sheet."""
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'),
        element("title", title),
        Markup('<link rel="icon" href="{}">').format(_ICON),
        Markup("<style>{}</style>").format(Markup(_STYLE)),  # noqa: S704  # the package's own file
    )
    page = element("html", head, element("body", joined(*body), class_=kind), lang="en")
    return b"<!doctype html>\n" + page.encode()
