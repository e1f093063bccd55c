"""HTML made of elements. Text is escaped, unless it is `Markup` already."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

_CODE = re.compile(r"`([^`]+)`")
_BLANK_LINES = re.compile(r"\n\s*\n")


def element(name: str, *content: str, **attributes: str | bool) -> Markup:
    """An element. A trailing underscore of an attribute's name is dropped: `class_`. A false attribute is left out."""
    written = [
        Markup(" {}").format(key.rstrip("_").replace("_", "-"))
        + (Markup("") if value is True else Markup('="{}"').format(value))
        for key, value in attributes.items()
        if value is not False
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(written), joined(*content))


def joined(*content: str) -> Markup:
    """The content, one part after the other."""
    return Markup("").join(content)


def code(text: str) -> Markup:
    """A name or value as programs write it."""
    return element("code", text)


def link(href: str, *content: str, **attributes: str | bool) -> Markup:
    """A link."""
    return element("a", *content, href=href, **attributes)


def inline(text: str) -> Markup:
    """A text in which backticks mark code."""
    parts = _CODE.split(text)  # text and code in turn
    return joined(*(code(part) if n % 2 else escape(part) for n, part in enumerate(parts)))


def prose(text: str) -> Markup:
    """The paragraphs of a text, which blank lines separate."""
    return joined(*(element("p", inline(" ".join(part.split()))) for part in _BLANK_LINES.split(text) if part.strip()))


def listing(text: str) -> Markup:
    """Lines that are shown as they stand. They wrap where the window is narrow, so nothing has to be scrolled."""
    return element("pre", code(text))
