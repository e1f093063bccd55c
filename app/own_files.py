"""Files and folders that hold secrets: their owner, and the modes that let no other user in."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ConfigurationError
from .printable import printable


def make_data_dir(path: Path) -> None:
    """Makes the folder of the embedded default, for its owner alone.

    Raises:
        ConfigurationError: the folder can't be made, other users may enter it, or it belongs to another user.
    """
    name = f"KEYTURN_DATA_DIR: {printable(str(path.absolute()))}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if mode_if_ours(path, f"{name} ") & 0o077 and os.name == "posix":
            raise ConfigurationError(f"{name} is open to others; chmod 700 it")
    except OSError as e:
        raise ConfigurationError(f"{name} can't be made ({e.strerror})") from None


def mode_if_ours(path: Path, name: str) -> int:
    """The mode of a file or folder. A process of root may not use one that belongs to another user.

    No mode keeps the owner out, and root alone may open another user's file whatever its mode. So a file that seems
    private could still be read by that other user.

    Raises:
        ConfigurationError: this process is root's, and the file is another user's. The message begins with `name`.
        OSError: there is no such file or folder.
    """
    found = path.stat()
    if os.name == "posix" and os.geteuid() == 0 != found.st_uid:
        raise ConfigurationError(f"{name}belongs to another user; run as that user, or chown it to root")
    return found.st_mode
