"""The forms of a password that are compared with words that everyone guesses. Pure: no I/O.

The rule in one sentence. These count for nothing: case, a part that repeats, a run such as 1234567 or qwerty at an end,
one mark however often, and up to four other digits at the ends and marks.

The whole of what is left is compared, and never a word within it (NIST SP 800-63B-4, 3.1.1.2). So a passphrase
may consist of common words. The number four keeps the rule away from passwords whose digits and marks are their
strength.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from itertools import pairwise

_LONGEST = 1024
"""The characters of a text that count here, because a stranger's text must not keep the event loop busy. One character
may become 18 in the one spelling (NFKC)."""

SHORTEST_FORM = 4
"""Characters of the shortest form that is compared. Shorter ones say too little."""

_SPARE = 4
"""Digits and marks that may be taken away, beside runs and marks that are all the same."""

_ROUNDS = 3
"""How often something is taken away, one after another. More finds little, and a stranger chooses the password."""

_ROWS = (
    *("qwertyuiop", "asdfghjkl", "zxcvbnm", "`1234567890-=", "~!@#$%^&*()_+"),
    *("qwertzuiop", "yxcvbnm", "azertyuiop", "qsdfghjklm", "wxcvbn"),
)
"""The rows of keyboards (US, German and French letters)."""

_RUN_AT_AN_END = 4
_RUN_OF_DIGITS = 3


def _steps_of_keys() -> dict[str, frozenset[str]]:
    """For each two characters that are neighbours in a row: the rows and directions in which the one follows."""
    found: dict[str, set[str]] = {}
    for row in _ROWS:
        for way in (row, row[::-1]):
            for pair in map("".join, pairwise(way)):
                found.setdefault(pair, set()).add(way)
    return {pair: frozenset(ways) for pair, ways in found.items()}


_KEYS = _steps_of_keys()
_SAME, _UP, _DOWN = frozenset({"same"}), frozenset({"up"}), frozenset({"down"})
_NO_STEP: frozenset[str] = frozenset()


def _steps(one: str, next_: str) -> frozenset[str]:
    """The ways in which a character follows another: the same, the next or last of the alphabet, the next key."""
    by = ord(next_) - ord(one)
    if by == 0:
        return _SAME
    keys = _KEYS.get(one + next_, _NO_STEP)
    if one.isalnum() and next_.isalnum() and abs(by) == 1:
        return keys | (_UP if by == 1 else _DOWN)
    return keys


def first_run(text: str) -> int:
    """The length of the run with which a text begins. One character is a run too.

    The characters of a run are all the same, in the order of the alphabet or against it, or neighbours on a keyboard.
    """
    ways: frozenset[str] | None = None
    for place in range(1, len(text)):
        steps = _steps(text[place - 1], text[place])
        ways = steps if ways is None else ways & steps
        if not ways:
            return place
    return len(text)


def runs(text: str, most: int) -> int:
    """The number of runs that a text consists of, counted up to one more than `most`."""
    number = 0
    while text and number <= most:
        text = text[first_run(text) :]
        number += 1
    return number


def repeated(text: str) -> str:
    """The part that a text repeats, at least twice and the last time perhaps cut. The text itself if it repeats none.

    The failure function of Knuth, Morris and Pratt finds the shortest such part in time proportional to the length. A
    password has up to 1024 characters, and a stranger may choose it.
    """
    border = [0] * len(text)
    length = 0
    for place in range(1, len(text)):
        while length and text[place] != text[length]:
            length = border[length - 1]
        length += text[place] == text[length]
        border[place] = length
    period = len(text) - (border[-1] if border else 0)
    return text[:period] if 2 * period <= len(text) else text


def plain(text: str) -> str:
    """A text in one spelling of case and width, as far as it counts."""
    wide = unicodedata.normalize("NFKC", text)[:_LONGEST]
    return unicodedata.normalize("NFKC", wide.casefold())[:_LONGEST]


def letters(text: str) -> str:
    """The letters and digits of a text, in one spelling of case and width."""
    return "".join(filter(str.isalnum, plain(text)))


def listed_form(password: str) -> str:
    """The form of a common password that a list has: nothing but case and marks is taken away."""
    return _without_marks(plain(password))[0]


def forms(password: str) -> frozenset[str]:
    """The forms of a password that are compared."""
    text = plain(password)
    starts = (_without_marks(start) for start in {text, repeated(text)})
    return frozenset(form for start, spare in starts for form in _reduced(start, spare, _ROUNDS))


def _reduced(text: str, spare: int, rounds: int) -> Iterator[str]:
    """The text, and the shorter ones that are left when a repetition or the ends are taken away."""
    if len(text) < SHORTEST_FORM:
        return
    yield text
    if rounds:
        for shorter, left in ((repeated(text), spare), _without_ends(text, spare)):
            if shorter != text:
                yield from _reduced(shorter, left, rounds - 1)


def consists_of(form: str, words: Collection[str]) -> bool:
    """Whether a form is nothing but some of these words, one after another."""
    ends = {0}
    for place in range(len(form)):
        if place in ends:
            ends.update(place + len(word) for word in words if word and form.startswith(word, place))
    return len(form) in ends and bool(form)


def _without_marks(text: str) -> tuple[str, int]:
    """The letters and digits of a text, and how much more may be taken away. Many different marks stay in the text."""
    marks = "".join(character for character in text if not character.isalnum())
    spent = 0 if len(set(marks)) <= 1 or first_run(marks) == len(marks) else len(marks)
    if spent > _SPARE or len(marks) == len(text):
        return text, _SPARE
    return "".join(filter(str.isalnum, text)), _SPARE - spent


def _without_ends(text: str, spare: int) -> tuple[str, int]:
    text, spare = _without_end(text, spare)
    text, spare = _without_end(text[::-1], spare)
    return text[::-1], spare


def _without_end(text: str, spare: int) -> tuple[str, int]:
    """The text without the digits at its end, if they are a run or few; and then without a run at its end."""
    digits = re.search(r"[0-9]*\Z", text)
    assert digits is not None, "no digit is a match too"
    block = digits[0]
    spent = 0 if len(block) >= _RUN_OF_DIGITS and first_run(block) == len(block) else len(block)
    if spent <= spare:
        text, spare = text[: digits.start()], spare - spent
    last = first_run(text[::-1])
    return (text[:-last] if last >= _RUN_AT_AN_END else text), spare
