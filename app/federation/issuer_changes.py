"""Changes of the issuers, by the command line and by administrators: the issuer is looked at before it is stored."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from ..actors import Actor
from ..errors import InvalidRequest, TemporarilyUnavailable
from ..outgoing.sending import AddressRefused
from .discovery import NoDocument, WrongDocument
from .issuer import Configured, Issuer, IssuerSecrets
from .issuer_rows import by_administrator
from .issuers import Issuers
from .key_sets import KeySets


@dataclass(frozen=True, slots=True)
class Put:
    """An issuer that was added or changed."""

    configured: Configured
    not_examined: str
    """Why its keys can't be had now, in words for an operator. Empty if the issuer was asked, and all is well."""


class IssuerChanges:
    """Adds, changes and removes issuers."""

    def __init__(self, issuers: Issuers, key_sets: KeySets) -> None:
        self._issuers = issuers
        self._key_sets = key_sets

    async def put(
        self, name: str, issuer: Issuer, secrets: IssuerSecrets, *, by: Actor, seen: Configured | None = None
    ) -> Put:
        """Adds an issuer, or replaces its members: in force on each instance within a second, and here at once.

        The issuer is asked first. If its discovery document is wrong, nothing is stored. If it is away, or its key set
        can't be used, the change goes on. No transaction is open meanwhile.

        Arguments and errors are those of `Issuers.put`.

        Raises:
            InvalidRequest: the discovery document is another issuer's, or a host has an address that it may not have.
        """
        self._issuers.check_name(name)
        if by.kind == "administrator":
            before = next((each for each in await self._issuers.rows() if each.name == name), None)
            issuer = by_administrator(name, issuer, before)  # so that the examination asks as the issuer will be asked
        not_examined = await self._examine(Configured(name=name, issuer=issuer))
        configured = await self._issuers.put(name, issuer, secrets, by=by, seen=seen)
        await self._load()
        return Put(configured, not_examined)

    async def remove(self, name: str, *, by: Actor) -> None:
        """Removes an issuer. Within a second no instance takes its tokens, and this one at once.

        Errors are those of `Issuers.remove`.
        """
        await self._issuers.remove(name, by=by)
        await self._load()

    async def _examine(self, of: Configured) -> str:
        """Why the issuer's keys can't be had now. Empty if they can.

        Raises:
            InvalidRequest: as `put`.
        """
        try:
            await self._key_sets.examine(of)
        except (WrongDocument, NoDocument) as e:
            raise InvalidRequest(e.cause, description=f"{e.cause}.") from None
        except AddressRefused as e:
            sentence = "issuer: a host of it has a private or reserved address. See private_addresses."
            raise InvalidRequest(e.cause, description=sentence) from None
        except TemporarilyUnavailable as e:
            return e.cause
        return ""

    async def _load(self) -> None:
        with suppress(TemporarilyUnavailable):  # the act is done, and the pulse will tell this process of it
            await self._issuers.load()
