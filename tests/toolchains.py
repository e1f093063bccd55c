"""What examples in other languages need, installed into the user's cache and never into the checkout."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.upstream.provider import INSTALL


def installed(name: str, sources: Sequence[Path], *command: str) -> Path:
    """The folder where `command` has made, from copies of `sources`, what an example needs.

    Skips the test where the command's program is missing, or the folder is and TEST_INSTALL does not allow to make it.
    """
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    contents = hashlib.sha256(" ".join(command).encode())
    for path in sources:
        contents.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "keyturn" / f"example-{name}-{contents.hexdigest()[:16]}"
    if folder.exists():
        return folder
    if not os.environ.get(INSTALL):
        pytest.skip(f"what the example {name} needs is not in the cache ({INSTALL}=1 lets {command[0]} fetch it)")
    part = folder.with_suffix(f".{os.getpid()}")
    part.mkdir(parents=True)
    for path in sources:
        shutil.copy(path, part)
    done = subprocess.run(command, cwd=part, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    part.rename(folder)
    return folder
