"""`keyturn db upgrade`, and `keyturn migrate`, its older name: brings the database to this release's schema."""

from __future__ import annotations

import argparse

from ..settings import place_of_migrations
from ..storage.migrating import migrate, say
from .arguments import Words


def add_to(words: Words) -> None:
    """Adds the noun with its verb, and the older name."""
    verbs = words.add_parser("db", help="the schema of the database").add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("upgrade", help="bring the database to this release's schema").set_defaults(run=_upgrade)
    words.add_parser("migrate", help="the older name of db upgrade").set_defaults(run=_upgrade)


def _upgrade(_arguments: argparse.Namespace) -> None:
    place = place_of_migrations()
    say(place)
    migrate(place)
