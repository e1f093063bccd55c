"""The words with which an operator calls the `keyturn` command, for messages that advise a command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parent


def called() -> str:
    """The words before the noun: `keyturn` if the shell finds it, else the way in which this process was called."""
    found = shutil.which("keyturn")
    if Path(sys.argv[0]).name == "keyturn":
        return "keyturn" if found else sys.argv[0]
    if Path(sys.prefix).resolve() == (_CHECKOUT / ".venv").resolve() and (_CHECKOUT / "dev.py").exists():
        return "python3 dev.py keyturn"
    return "keyturn" if found else f"python -m {_PACKAGE.name}"
