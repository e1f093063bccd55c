"""The actor of a change. Every function that changes something takes one, and the event of the change names it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["user", "administrator", "client", "command", "upstream", "service", "anonymous"]
"""The kind of an actor.

`anonymous` is a caller that has proved nothing yet, `user` one who proved to be a user, `administrator` a user who acts
by /admin, `command` the command line, `service` Keyturn itself, and `upstream` an issuer whose tokens are exchanged. No
code acts as `client` yet, an OAuth client.
"""


class Actor(NamedTuple):
    """An actor, the address from which it acts, and the request in which it does."""

    kind: Kind
    id: str | None = None
    """The id of a user or client, the name of an issuer or of the operating system's user. None if it is not known."""
    address: str | None = None
    """The client's address. None for the command line and for Keyturn itself."""
    request_id: str | None = None
    """The id that the answer and the log have. None outside a request."""


SERVICE = Actor("service")
"""Keyturn itself, without a caller: for example, a first start that makes the keys."""
