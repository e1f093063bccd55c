"""`keyturn db`: the schema of the database and the rights in it. `keyturn migrate` is an older name of `db upgrade`."""

from __future__ import annotations

import argparse

from ..settings import place_of_migrations
from ..storage.migrating import migrate, say
from ..storage.rights import PUBLIC, grants
from .arguments import Words, add_word


def add_to(words: Words) -> None:
    """Adds the noun with its verbs, and the older name."""
    noun = add_word(words, "db", "the schema of the database, and the rights in it")
    verbs = noun.add_subparsers(required=True, metavar="VERB")
    add_word(verbs, "upgrade", "bring the database to this release's schema").set_defaults(run=_upgrade)
    rights = add_word(verbs, "rights", "print the statements that give the service its rights")
    rights.add_argument("role", metavar="ROLE", help="the role that the service connects as")
    rights.add_argument("--schema", default=PUBLIC, help="where the tables are (default: %(default)s)")
    rights.set_defaults(run=_rights)
    add_word(words, "migrate", "the older name of db upgrade").set_defaults(run=_upgrade)


def _upgrade(_arguments: argparse.Namespace) -> None:
    place = place_of_migrations()
    say(place)
    migrate(place)


def _rights(arguments: argparse.Namespace) -> None:
    print("\n".join(grants(arguments.role, arguments.schema)))
