"""Text that others chose: a terminal obeys none of it, and shows the rest as it is."""

from __future__ import annotations

import pytest

from app.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë's phone ☎", "Zoë's phone ☎"),
        (r"C:\keys", r"C:\keys"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\u202etxt.exe\u2028", r"\u202etxt.exe\u2028"),
        ("\udcff", r"\udcff"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_a_character_that_a_terminal_might_obey_is_escaped_once(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_long_text_is_cut_where_a_bound_is_given() -> None:
    assert printable("x" * 5000) == "x" * 5000
    assert printable("x" * 80, 80) == "x" * 80
    assert printable("x" * 81, 80) == f"{'x' * 80}…"
