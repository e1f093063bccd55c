"""Alembic reads this file; all that it does is in the package's `storage.migrating`.

The package is `keyturn` where it is installed, with this folder inside, and `app` beside this folder in a checkout.
"""

from importlib import import_module
from pathlib import Path

_installed = (Path(__file__).parent.parent / "__init__.py").exists()
import_module(("keyturn" if _installed else "app") + ".storage.migrating").run()
