"""Text that others chose, as a terminal may show it: a client's, a server's, an operator's."""

from __future__ import annotations

LONGEST_MESSAGE = 4000
"""How many characters a message to an operator has at most, as a server may have chosen some of its words."""


def printable(text: str, longest: int | None = None) -> str:
    r"""The text with an escape (`\x1b`) in the place of each character that a terminal might obey.

    Python counts the categories Cc, Cf, Cs, Co, Cn, Zl and Zp of Unicode as not printable, and all blanks but U+0020.
    So an escape sequence, a line end, a backspace and a mark that turns the direction of writing are escaped. A text
    that was made printable stays as it is.

    Args:
        text: any text.
        longest: how many of its characters are shown at most; "…" stands for the rest. None: all.
    """
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}…"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
