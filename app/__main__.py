"""``python -m app`` is the ``keyturn`` command."""

import sys

from .commands.parser import main

sys.exit(main())
