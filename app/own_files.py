"""Files and folders that hold secrets: whose they are, and who else may read them."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ConfigurationError


def shown(path: Path) -> str:
    """A path in one line of ASCII, whatever its name holds."""
    return ascii(str(path))[1:-1]


def make_data_dir(path: Path) -> None:
    """Makes the folder of the embedded default, for its owner alone.

    Raises:
        ConfigurationError: it can't be made, others may enter it, or it is another user's.
    """
    name = f"KEYTURN_DATA_DIR: {shown(path.absolute())}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if mode_if_ours(path, f"{name} ") & 0o077 and os.name == "posix":
            raise ConfigurationError(f"{name} is open to others; chmod 700 it")
    except OSError as e:
        raise ConfigurationError(f"{name} can't be made ({e.strerror})") from None


def mode_if_ours(path: Path, name: str) -> int:
    """The mode of a file or folder, unless we are root and it is another user's.

    A mode does not keep a file's owner out, and root alone is let into another user's file in spite of its mode.

    Raises:
        ConfigurationError: it is another user's. The line begins with `name`.
        OSError: there is none.
    """
    found = path.stat()
    if os.name == "posix" and os.geteuid() == 0 != found.st_uid:
        raise ConfigurationError(f"{name}belongs to another user; run as that user, or chown it to root")
    return found.st_mode
