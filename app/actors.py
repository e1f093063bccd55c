"""Who acts. Every function that changes something takes an actor, and the event of the change names it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["user", "administrator", "client", "command", "upstream", "service", "anonymous"]
"""What kind of actor.

`command` is the command line, `upstream` an issuer whose tokens are exchanged, `service` Keyturn by itself, and
`anonymous` a caller that has proved nothing yet.
"""


class Actor(NamedTuple):
    """The one who acts, from where, and in which request."""

    kind: Kind
    id: str | None = None
    """The id of a user or client, or the name of the operating system's user. None where nobody knows it."""
    address: str | None = None
    """The client's address. None for the command line and for Keyturn itself."""
    request_id: str | None = None
    """The id that the answer and the log have. None outside a request."""


SERVICE = Actor("service")
"""Keyturn by itself: a first start makes its keys, for example."""
