"""``python -m app`` is the ``keyturn`` command."""

import sys

from .commands.command import main

sys.exit(main())
