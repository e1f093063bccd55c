"""The rows of issuers, read: which are in force in a process, and all of them for an operator. Pure: no I/O.

1. The file comes before the table. A row whose name stands in the file is hidden.
2. No two issuers in force have an `iss` in common, because the `iss` of a token says whose it is. A row with an `iss`
   of the file, or of a row before it, is hidden too.
3. A row that this release can't read is not in force: a later release made it, or somebody changed it.
4. If neither master secret opens the secrets of a row, the issuer is in force without them. Its tokens are verified by
   public keys, and whatever needs a secret is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from ..errors import Conflict, InvalidRequest
from ..tokens.key_seal import KeySeal, Secret
from .issuer import OF_THE_MACHINE, Configured, Issuer, IssuerSecrets, issuer_of, secrets_of

Status = Literal["in_force", "hidden", "unreadable"]
"""Whether an issuer is in force, and if not, by which rule."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An issuer of the file or of the table, for an operator."""

    name: str
    source: Literal["table", "file"]
    status: Status
    configured: Configured | None
    """None if the row is unreadable."""
    changed_at: datetime | None = None
    """When the row was changed last. None for one of the file."""
    sealed_under: Secret | None = None
    """The master secret that opens its secrets. None if it has none, or if they are lost."""
    secrets_are_lost: bool = False
    """Whether the row has secrets that neither master secret opens."""

    def kept(self, issuer: Issuer, given: IssuerSecrets) -> IssuerSecrets:
        """The secrets before a change that sets members to `issuer` and some secrets to `given`.

        A client secret goes to the host of its issuer. Nobody can read it by the API. So nobody may have it sent to
        another host either: with another issuer, it has to be given again.

        Raises:
            InvalidRequest: another issuer would get the client secret.
            Conflict: the secrets can't be read, and the change does not give each of them.
        """
        old = self.configured
        unread = self.secrets_are_lost or (old is None and self.sealed_under is not None)
        if unread and given.model_fields_set != IssuerSecrets.model_fields.keys():
            raise Conflict(
                "secrets can't be read",
                description="Its secrets can't be read here: give client_secret and webhook_secret, or null.",
            )
        if old is None:
            return IssuerSecrets()
        if (
            old.issuer.issuer != issuer.issuer
            and old.secrets.client_secret is not None
            and "client_secret" not in given.model_fields_set
        ):
            raise InvalidRequest(
                "secret of another issuer",
                description="client_secret: belongs to the issuer before. Give it with the new one, or null.",
            )
        return old.secrets

    def members(self) -> dict[str, Any]:
        """The issuer as JSON has it, without its secrets."""
        own = {
            "name": self.name,
            "source": self.source,
            "status": self.status,
            "changed_at": self.changed_at,
            "secrets_are_lost": self.secrets_are_lost,
        }
        without = {f"has_{name}": False for name in IssuerSecrets.model_fields}
        return own | (self.configured.public() if self.configured else without)


def listed(rows: Iterable[Any], of_file: Mapping[str, Configured], seal: KeySeal) -> list[Listed]:
    """The issuers of the file, followed by those of the table in the order of their rows."""
    found = [Listed(each.name, "file", "in_force", each) for each in of_file.values()]
    taken = {iss for each in of_file.values() for iss in each.issuer.all_issuers}
    for row in rows:
        issuer = read(row, seal)
        if issuer.configured is not None:
            own = set(issuer.configured.issuer.all_issuers)
            if row.name in of_file or own & taken:
                issuer = replace(issuer, status="hidden")
            else:
                taken |= own
        found.append(issuer)
    return found


def read(row: Any, seal: KeySeal) -> Listed:
    """One row by itself, as if it were the only one."""
    opened = None if row.sealed is None else seal.open_secrets(row)
    under, lost = opened[0] if opened else None, row.sealed is not None and opened is None
    try:
        secrets = secrets_of(json.loads(opened[1])) if opened else IssuerSecrets()
        configured = Configured(name=row.name, issuer=issuer_of(json.loads(row.configuration)), secrets=secrets)
    except (ValueError, TypeError, InvalidRequest):
        return Listed(row.name, "table", "unreadable", None, row.changed_at, under, lost)
    return Listed(row.name, "table", "in_force", configured, row.changed_at, under, lost)


def by_administrator(name: str, issuer: Issuer, before: Listed | None) -> Issuer:
    """The issuer after a change by an administrator, who keeps what only the operator of this machine decides.

    Else a stolen session of an administrator could look around in the operator's network: name one host after the
    other, and read in the answers how each behaves.

    1. `private_addresses` and `ca_file` stay as they are, and a new issuer has their defaults.
    2. While an issuer may have private addresses, its URLs stay too.

    Raises:
        InvalidRequest: the change sets one of these members to another value.
    """
    old = before.configured.issuer if before and before.configured else None
    kept = {member: getattr(old, member) if old else Issuer.model_fields[member].default for member in OF_THE_MACHINE}
    asked = {member: getattr(issuer, member) for member in OF_THE_MACHINE if member in issuer.model_fields_set}
    if old is not None and old.private_addresses:
        urls = ("issuer", "jwks_uri")
        kept |= {member: getattr(old, member) for member in urls}
        asked |= {member: getattr(issuer, member) for member in urls}
    for member, value in asked.items():
        if value != kept[member]:
            raise InvalidRequest(
                "for the command",
                description=f"{member}: only a command changes it: keyturn federation add {name} --set {member}=VALUE.",
            )
    return issuer.model_copy(update=kept)


def changed(secrets: IssuerSecrets, given: IssuerSecrets) -> IssuerSecrets:
    """The secrets after a change. One that is not given stays, None removes it."""
    return IssuerSecrets(**{**dict(secrets), **given.model_dump(exclude_unset=True)})
