"""``python -m app`` is the ``keyturn`` command."""

import gc
import sys

# The objects that imports make live as long as the process. To look for garbage among them takes a sixth of the start.
gc.disable()
from .commands.command import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    sys.exit(main())
