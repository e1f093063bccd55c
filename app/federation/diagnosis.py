"""Diagnosis: whether issuers are reachable, and what a token would be refused for, in words for an operator.

Nothing is taken or changed, and no answer holds anything of a token but the name of its issuer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import InvalidRequest, NotFound, TemporarilyUnavailable, UnacceptableToken
from .external_tokens import ExternalTokens
from .issuer import Configured, Kind
from .issuers import Issuers
from .key_sets import KeySets
from .scalekit import Scalekit
from .unverified_tokens import unverified
from .verdicts import SENTENCES, Word

_NO_SESSION = "ses_0"
"""The id of a session that no issuer has. To ask for it shows whether this client may ask."""


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key of an issuer's key set."""

    kid: str
    kty: str | None
    """None: the key is left out."""
    bits: int | None
    left_out: str = ""
    """Why the key verifies nothing. Empty if it does."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition of an issuer, as this process sees it now."""

    name: str
    issuer: str
    failure: str
    """Why its keys can't be read. Empty if they can."""
    keys: tuple[FoundKey, ...] = ()
    api: str | None = None
    """Why its API for sessions can't be called. Empty if it can; None where Keyturn does not call it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a token, with nothing of the token but the name of its issuer."""

    sentence: str
    word: Word | None = None
    """The word of the refusal. None: the token is acceptable."""
    issuer: str | None = None


class Diagnosis:
    """Looks at issuers and tokens for an operator."""

    def __init__(
        self, issuers: Issuers, key_sets: KeySets, external_tokens: ExternalTokens, scalekit: Scalekit
    ) -> None:
        """The issuers are those in force at each call."""
        self._issuers = issuers
        self._key_sets = key_sets
        self._external_tokens = external_tokens
        self._scalekit = scalekit

    async def conditions(self, name: str | None = None) -> list[Condition]:
        """The condition of one issuer or of all, each asked now.

        Raises:
            NotFound: there is no issuer of this name.
            TemporarilyUnavailable: this process does not know the issuers.
        """
        chosen = [self._issuers.named(name)] if name is not None else list(self._issuers.in_force.values())
        return list(await asyncio.gather(*(self._condition(of) for of in chosen)))

    async def _condition(self, of: Configured) -> Condition:
        (failure, keys), api = await asyncio.gather(self._keys(of), self._api(of))
        return Condition(of.name, of.issuer.issuer, failure, keys, api)

    async def _keys(self, of: Configured) -> tuple[str, tuple[FoundKey, ...]]:
        """The keys of an issuer, or why they can't be read."""
        try:
            found = await self._key_sets.examine(of)
        except TemporarilyUnavailable as e:
            return e.cause, ()
        keys = [FoundKey(key.kid, key.kty, key.bits) for key in found.keys.values()]
        return "", (*keys, *(FoundKey(kid, None, None, why) for kid, why in found.left_out))

    async def _api(self, of: Configured) -> str | None:
        """Why the issuer's API for sessions can't be called: see `Condition.api`."""
        if not of.has_api:
            return None
        try:
            await self._scalekit.get_session(of, _NO_SESSION)
        except TemporarilyUnavailable as e:
            return e.cause
        except (NotFound, InvalidRequest):
            pass  # it has no such session: so this client was let in
        return ""

    async def judge(self, text: str, name: str | None = None) -> Verdict:
        """The verdict on a token.

        Args:
            text: the token.
            name: the issuer that the operator asks about. None: whichever the token names.

        Raises:
            TemporarilyUnavailable: the issuer's keys can't be had now, so nothing can be said about the token.
        """
        issuer: str | None = None
        try:
            of = self._issuers.of(unverified(text).iss)
            issuer = of.name if of is not None else None
            if of is not None and name not in {None, of.name}:
                return Verdict(f"It is a token of the issuer {of.name}, and not of {name}.", "unknown_issuer", name)
            token = await self._external_tokens.verify(text, kind=None)
        except UnacceptableToken as e:
            word = next(each for each in SENTENCES if each == e.cause)
            return Verdict(SENTENCES[word], word, issuer)
        return Verdict(f"It is acceptable: {_CALLED[token.kind]} of a user.", None, issuer)


_CALLED: Final[Mapping[Kind, str]] = {"access_token": "an access token", "id_token": "an ID token"}
