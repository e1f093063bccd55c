"""The list of common passwords: the one that Keyturn ships, or the operator's own.

A list in memory is 6 bytes of BLAKE2b for each form of a password (`password_forms.listed_form`), sorted. So 100,000
passwords take 600 kB, and a look takes microseconds. Another form has one of 400,000 digests by chance once in 700
million looks, and then a good password is refused. The digests protect nothing: they are short, of one length, and
show nobody words that few want to read.
"""

from __future__ import annotations

import stat
from asyncio import Lock, to_thread
from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from ..errors import ConfigurationError
from ..printable import printable
from .password_forms import SHORTEST_FORM, listed_form

SHIPPED = Path(__file__).with_name("common_passwords.bin")
"""The list that Keyturn ships. `common_passwords.md` beside it names sources, licences and dates."""

MAGIC = b"keyturn passwords 1\n"
"""The beginning of a list that was made by `compiled`. Any other file is text."""

MOST_BYTES = 32 * 1024 * 1024
"""Bytes of a file. A larger list is of little use, as attempts are limited (NIST SP 800-63B-4, 3.1.1.2)."""

_SIZE = 6


def compiled(passwords: Iterable[str]) -> bytes:
    """The file of a list."""
    wanted = (form for form in map(listed_form, passwords) if len(form) >= SHORTEST_FORM)
    return MAGIC + b"".join(sorted(set(map(_digest, wanted))))


def _digest(form: str) -> bytes:
    return blake2b(form.encode(), digest_size=_SIZE).digest()


class CommonPasswords:
    """The passwords of a list."""

    def __init__(self, file: Path | None) -> None:
        """Reads nothing yet: few commands need the list. None: the list that Keyturn ships."""
        self._file = file
        self._digests: _Digests | None = None
        self._reading = Lock()

    @property
    def called(self) -> str:
        """The list and its size, in words for an operator."""
        which = "Keyturn's list" if self._file is None else f"the list {printable(str(self._file))}"
        return which if self._digests is None else f"{which} of {len(self._digests)} forms"

    async def load(self) -> None:
        """Reads the list, once, in a thread.

        Raises:
            ConfigurationError: the file can't be read, is too large, empty or not UTF-8.
        """
        async with self._reading:
            if self._digests is None:
                self._digests = await to_thread(_read, self._file or SHIPPED)

    def has(self, forms: Iterable[str]) -> bool:
        """Whether the list, which was loaded before, has one of these forms."""
        assert self._digests is not None
        return any(_digest(form) in self._digests for form in forms)


class _Digests:
    """Sorted digests, one after another in one object of bytes."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw) // _SIZE

    def __getitem__(self, place: int) -> bytes:
        return self._raw[place * _SIZE : (place + 1) * _SIZE]

    def __contains__(self, digest: bytes) -> bool:
        place = bisect_left(self, digest)
        return place < len(self) and self[place] == digest


def _read(path: Path) -> _Digests:
    """The list in a file, which is text with one password a line, or was made by `compiled`."""
    name = "the list that Keyturn ships" if path is SHIPPED else f"KEYTURN_PASSWORD_LIST_FILE: {printable(str(path))}"
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # nobody may ever write into a pipe
            raise ConfigurationError(f"{name} is not a file")
        if state.st_size > MOST_BYTES:
            raise ConfigurationError(f"{name} is larger than {MOST_BYTES // 1024 // 1024} MiB")
        raw = path.read_bytes()
        made = raw if raw.startswith(MAGIC) else compiled(raw.decode("utf-8-sig").splitlines())
    except OSError as e:
        raise ConfigurationError(f"{name} can't be read ({e.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name} is not UTF-8") from None
    digests = made[len(MAGIC) :]
    if not digests or len(digests) % _SIZE:
        raise ConfigurationError(f"{name} has no password, or was cut")
    return _Digests(digests)
