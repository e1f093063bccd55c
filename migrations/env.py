"""Alembic runs this file. The package's `storage.migrating` does all the work.

The package is `keyturn` where it is installed, with this folder inside. In a checkout it is `app`, beside this folder.
"""

from importlib import import_module
from pathlib import Path

_installed = (Path(__file__).parent.parent / "__init__.py").exists()
import_module(("keyturn" if _installed else "app") + ".storage.migrating").run()
