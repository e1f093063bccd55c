"""``python -m app`` is the ``keyturn`` command."""

import sys

from .cli import main

sys.exit(main())
