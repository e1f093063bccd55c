"""The rules for a new password, after NIST SP 800-63B-4, 3.1.1.2.

They hold wherever somebody chooses a password: registration, change, and an operator who sets one. They never hold at a
sign-in, so a password that an older rule allowed goes on until it is changed. A password that Keyturn made is random,
and no rule is asked.

A refusal names the field and the rule, says how to choose better, and never repeats a part of the password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from ..errors import InvalidRequest
from ..policies import Policies
from ..settings import Settings
from ..settings_passwords import SHORTEST_PASSWORD
from .breached_passwords import BreachedPasswords
from .common_passwords import CommonPasswords
from .password_forms import consists_of, forms, letters, plain, repeated, runs
from .passwords import LONGEST

PRODUCT = "keyturn"

_MOST_RUNS = 3
_SHORTEST_WORD = 3
_BETTER = "Take several words that have nothing to do with each other, or let a password manager make one."


class PasswordRules:
    """Decides whether a person may choose a password."""

    def __init__(
        self, settings: Settings, policies: Policies, common: CommonPasswords, breached: BreachedPasswords
    ) -> None:
        self._policies = policies
        self._service = frozenset(_words_of_host(urlsplit(settings.iss).hostname or "")) | {PRODUCT}
        self.common = common
        self.breached = breached

    @property
    def words(self) -> str:
        """The rules in force, in words for an operator."""
        asked = "asked" if self.breached.are_asked_for else "not asked"
        return (
            f"{self._policies.in_force.password_length} characters or more, {self.common.called}, "
            f"a service of breached passwords is {asked}"
        )

    async def accepted(self, password: str, email: str | None, field: str = "password") -> bytes:
        """The bytes of a new password. All rules are asked.

        Args:
            password: the password.
            email: the address of its user.
            field: the name that the caller has for it.

        Raises:
            InvalidRequest: a rule refuses it.
            TemporarilyUnavailable: no policy is in force.
            ConfigurationError: the list can't be read.
        """
        raw = await self.acceptable(password, email, field)
        await self.refuse_breached(password, field)
        return raw

    async def acceptable(self, password: str, email: str | None, field: str = "password") -> bytes:
        """As `accepted`, and nobody else is asked."""
        raw = password.encode()
        # `len` counts code points, as NIST does: an emoji of a family counts for seven.
        least = self._policies.in_force.password_length
        if len(password) < least or len(raw) > LONGEST or 0 in raw:
            raise _refused("length", field, f"must have {least} characters or more, {LONGEST} bytes at most and no NUL")
        text = plain(password)
        if runs(text, _MOST_RUNS) <= _MOST_RUNS:
            raise _refused("runs", field, f"is only a few runs, such as 1234, qwerty or aaaa. {_BETTER}")
        if len(repeated(text)) < SHORTEST_PASSWORD:
            raise _refused("repetition", field, f"only repeats a few characters. {_BETTER}")
        await self.common.load()
        compared = forms(password)
        if self.common.has(compared):
            raise _refused("common", field, f"is a common password, or nearly one: it is guessed first. {_BETTER}")
        words = self._service | frozenset(_words_of_address(email or ""))
        if any(consists_of(form, words) for form in compared):
            raise _refused(
                "context", field, f"is only the address of the account, or a name of this service. {_BETTER}"
            )
        return raw

    async def refuse_breached(self, password: str, field: str = "password") -> None:
        """Asks the service of breached passwords, if there is one.

        Raises:
            InvalidRequest: the service knows the password.
        """
        if await self.breached.has(password):
            raise _refused("breached", field, f"is known from a breach, so it is guessed early. {_BETTER}")


def _words_of_host(host: str) -> Iterator[str]:
    """The words of a host's name: each label, the name as a whole, and the one below its top-level domain."""
    return _words((host, host.removeprefix("www."), *host.split("."), host.rpartition(".")[0]))


def _words_of_address(address: str) -> Iterator[str]:
    """The words of an e-mail address: the address, its two halves, and the parts of these."""
    local, _, domain = address.rpartition("@")
    yield from _words((address, local, *re.split(r"[\W_]+", local)))
    yield from _words_of_host(domain)


def _words(texts: tuple[str, ...]) -> Iterator[str]:
    return (word for word in map(letters, texts) if len(word) >= _SHORTEST_WORD)


def _refused(cause: str, field: str, sentence: str) -> InvalidRequest:
    return InvalidRequest(f"password rule: {cause}", description=f"{field}: {sentence.removesuffix('.')}.")
