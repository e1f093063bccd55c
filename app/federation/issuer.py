"""One issuer as its operator configures it: members, defaults and rules. Pure: no I/O.

The same members stand in the table, in the file of `KEYTURN_FEDERATION_FILE` and in the bodies of `/admin/federation`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from ..errors import InvalidRequest
from ..users.claims import checked
from .webhook_signatures import key_of

Preset = Literal["scalekit", "oidc"]
"""The kind of an issuer: Scalekit, or any issuer with OpenID Connect Discovery."""

Kind = Literal["access_token", "id_token"]
"""The kind of an external token that is exchanged."""

Algorithm = Literal["RS256", "ES256", "EdDSA"]
"""The algorithms that may sign external tokens. None is symmetric: a client's secret must never sign its tokens."""

Check = Literal["off", "open", "closed"]
"""Whether a refresh asks the issuer if its session lives, and the answer while the issuer is away: go on, or wait."""

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
"""The form of an issuer's name, which stands in paths."""

_MOST_SECONDS = 365 * 86_400


def _https(url: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", url):
        raise ValueError("must have 1 to 255 characters of visible ASCII")
    if not is_https(url):
        raise ValueError("must be an https URL without user and fragment")
    return url


def _without_query(url: str) -> str:
    if "?" in url:  # OpenID Connect Core section 2
        raise ValueError("must be an https URL without query")
    return url


def is_https(url: str) -> bool:
    """Whether a text is an https URL with a host, and without user and fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its message may repeat a part of the URL
        return False
    return parts.scheme == "https" and bool(parts.hostname) and port != 0 and "@" not in parts.netloc and "#" not in url


Url = Annotated[str, AfterValidator(_https)]
Iss = Annotated[Url, AfterValidator(_without_query)]
Word = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,255}$")]
Address = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]{0,31}:[\x21\x22\x24-\x7e]{1,223}$")]
"""A URI without a fragment, also of a native app's own scheme (RFC 8252 section 7.1)."""
Seconds = Annotated[int, Field(ge=1, le=_MOST_SECONDS)]
Names = Annotated[tuple[Word, ...], Field(max_length=50)]
Role = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class Issuer(BaseModel):
    """An issuer without its secrets."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    preset: Annotated[Preset, Field(description="`scalekit`, or `oidc` for any issuer with OpenID Connect Discovery.")]
    issuer: Annotated[
        Iss,
        Field(description="The exact `iss`, with its slash at the end if it has one. Scalekit: the environment URL."),
    ]
    also_issuers: Annotated[
        tuple[Iss, ...], Field(max_length=10, description="Other exact `iss` values of the same issuer and subjects.")
    ] = ()
    client_id: Annotated[Word, Field(description="Your client id at the issuer.")]
    audiences: Annotated[
        Names,
        Field(description="Accepted `aud` values, among them the client id if it shall count. Empty: the client id."),
    ] = ()
    algorithms: Annotated[
        tuple[Algorithm, ...], Field(min_length=1, max_length=3, description="Algorithms that may sign its tokens.")
    ] = ("RS256",)
    kinds: Annotated[
        tuple[Kind, ...],
        Field(
            max_length=2,
            description="The kinds of tokens that are exchanged. Empty: both of Scalekit, ID tokens of others.",
        ),
    ] = ()
    organizations: Annotated[Names, Field(description="Allowed organizations (`oid`). Empty: any, also none.")] = ()

    jwks_uri: Annotated[
        Url | None, Field(description="The key set. Unset: Scalekit's `/keys`, or the one that discovery names.")
    ] = None
    ca_file: Annotated[
        str | None,
        Field(
            pattern=r"^[^\x00-\x1f\x7f]{1,1024}$",
            description="The file of authorities (PEM) that sign its certificate. Unset: public ones.",
        ),
    ] = None
    private_addresses: Annotated[
        bool, Field(description="Whether its hosts may have private or loopback addresses.")
    ] = False

    longest_lifetime: Annotated[Seconds, Field(description="The longest `exp - iat` of a token, in seconds.")] = 86_400
    id_token_age: Annotated[Seconds, Field(description="The highest age of an ID token, in seconds.")] = 300

    create_users: Annotated[bool, Field(description="Whether the first exchange of an unknown user makes one.")] = True
    trust_email: Annotated[bool, Field(description="Whether its `email` with `email_verified` counts as proved.")] = (
        False
    )
    link_by_email: Annotated[
        bool, Field(description="Whether a proved address links a user with the same proved address. Never: admins.")
    ] = False
    roles: Annotated[
        dict[Word, Role],
        Field(
            max_length=50,
            description="Its role or permission → role here; the first match counts. Empty: the role stays.",
        ),
    ] = {}
    default_role: Annotated[
        Role, Field(description="The role of a new user, and of each user none of whose roles matches.")
    ] = "user"
    claims: Annotated[
        dict[Word, Word], Field(max_length=20, description="Its claim → claim here. No other claim is copied.")
    ] = {}

    post_logout_redirect_uris: Annotated[
        tuple[Address, ...],
        Field(max_length=50, description="The pages to which the issuer may send a browser after a logout there."),
    ] = ()
    revoke_sessions: Annotated[
        bool | None,
        Field(description="Whether a local logout revokes its session. Unset: if Scalekit's secret is there."),
    ] = None
    check_sessions: Annotated[
        Check, Field(description="Whether a refresh asks if its session lives: see docs/upstream.md.")
    ] = "off"
    check_every: Annotated[Seconds, Field(description="How long an answer of that check counts, in seconds.")] = 60
    webhook_organizations: Annotated[
        bool, Field(description="Whether webhooks of organizations that are not allowed count, too.")
    ] = True

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        rules = (
            (self.link_by_email and not self.trust_email, "link_by_email: needs trust_email"),
            (
                self.preset == "oidc" and (self.check_sessions != "off" or bool(self.revoke_sessions)),
                "check_sessions, revoke_sessions: only Scalekit has an API for its sessions",
            ),
            (self.default_role == "admin", "default_role: must not be admin"),
            (
                # There, each organization gives its members roles: whoever founds one is its administrator.
                self.preset == "scalekit" and "admin" in self.roles.values() and not self.organizations,
                "roles: admin needs organizations, because each organization there has administrators of its own",
            ),
            (self.issuer in self.also_issuers, "also_issuers: repeats the issuer"),
        )
        if broken := [rule for is_broken, rule in rules if is_broken]:
            raise ValueError("; ".join(broken))
        try:
            checked(dict.fromkeys(self.claims.values()))
        except InvalidRequest as e:
            raise ValueError(e.description.removesuffix(".")) from None
        return self

    @property
    def all_issuers(self) -> tuple[str, ...]:
        """Every exact `iss` that its tokens may have."""
        return (self.issuer, *self.also_issuers)

    @property
    def base(self) -> str:
        """The URL below which its own pages are: a slash at its end goes (OpenID Connect Discovery 1.0 section 4.1)."""
        return self.issuer.removesuffix("/")

    @property
    def place(self) -> tuple[object, ...]:
        """All that decides where its keys and its document come from, and who may answer there."""
        return self.preset, self.issuer, self.jwks_uri, self.ca_file, self.private_addresses

    @property
    def all_audiences(self) -> frozenset[str]:
        """Every `aud` of which a token must have one."""
        return frozenset(self.audiences or (self.client_id,))

    @property
    def all_kinds(self) -> frozenset[Kind]:
        """The kinds of tokens that are exchanged. An OpenID Connect issuer's access token is no business of ours."""
        return frozenset(self.kinds or (("access_token", "id_token") if self.preset == "scalekit" else ("id_token",)))

    @property
    def longest(self) -> timedelta:
        """The longest lifetime of a token."""
        return timedelta(seconds=self.longest_lifetime)


def _with_a_key(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None:
        key_of(secret.get_secret_value())
    return secret


class IssuerSecrets(BaseModel):
    """The secrets of an issuer. They are sealed at rest, and no answer, log or repr has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    client_secret: Annotated[
        SecretStr | None,
        Field(min_length=1, max_length=1024, description="For Scalekit's API: revoke, check and list sessions."),
    ] = None
    webhook_secret: Annotated[
        SecretStr | None,
        Field(min_length=1, max_length=1024, description="For its webhooks (Standard Webhooks): `whsec_…`."),
        AfterValidator(_with_a_key),
    ] = None


class Configured(BaseModel):
    """An issuer with its name and secrets, as a process holds it."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
    issuer: Issuer
    secrets: IssuerSecrets = IssuerSecrets()
    source: Literal["table", "file"] = "table"

    @property
    def has_api(self) -> bool:
        """Whether its API for sessions can be called: only Scalekit has one, and it asks for the client's secret."""
        return self.issuer.preset == "scalekit" and self.secrets.client_secret is not None

    @property
    def revokes(self) -> bool:
        """Whether the end of a local session revokes its session."""
        return self.has_api and self.issuer.revoke_sessions is not False

    @property
    def checks(self) -> bool:
        """Whether a refresh asks if its session lives."""
        return self.has_api and self.issuer.check_sessions != "off"

    def lacks(self) -> list[tuple[str, str]]:
        """The secrets that it has not got, each with what does not work without it."""
        if self.issuer.preset != "scalekit":
            return []
        acts = []
        if self.issuer.revoke_sessions is not False:
            acts.append("local logouts do not end its sessions")
        if self.issuer.check_sessions != "off":
            acts.append("refreshes do not ask if its sessions live")
        needs = (("client_secret", " and ".join(acts)), ("webhook_secret", "its webhooks are refused"))
        return [(name, words) for name, words in needs if words and getattr(self.secrets, name) is None]

    def public(self) -> dict[str, Any]:
        """All members but the secrets, of which it says only whether they are there."""
        shown: dict[str, Any] = self.issuer.model_dump(mode="json")
        has = {name: getattr(self.secrets, name) is not None for name in IssuerSecrets.model_fields}
        return {
            "name": self.name,
            "source": self.source,
            **shown,
            **{f"has_{name}": is_set for name, is_set in has.items()},
        }


_Model = TypeVar("_Model", bound=BaseModel)
_PLAIN_NAME = re.compile(r"[a-z]{1,16}(?:_[a-z]{1,16}){0,3}", re.ASCII)
"""The form of a member's name: a few short words. A secret in the place of a name is not repeated."""


def issuer_of(members: Mapping[str, Any]) -> Issuer:
    """The issuer of these members, without its secrets.

    Raises:
        InvalidRequest: a member is unknown, missing or not valid. The sentence names the member and repeats no value.
    """
    return _made(Issuer, members)


def secrets_of(members: Mapping[str, Any]) -> IssuerSecrets:
    """The secrets of an issuer, of which some may be absent.

    Raises:
        InvalidRequest: as `issuer_of`.
    """
    return _made(IssuerSecrets, members)


def _made(model: type[_Model], members: Mapping[str, Any]) -> _Model:
    try:
        return model.model_validate(dict(members))
    except ValidationError as e:
        error = e.errors(include_url=False, include_context=False, include_input=False)[0]
    raise InvalidRequest(f"issuer: {error['type']}", description=f"{_in_words(error)}.")  # without the error's context


def _in_words(error: Any) -> str:
    text = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    if not error["loc"]:
        return str(text)  # a rule on several members, which names them
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such member" if _PLAIN_NAME.fullmatch(name) else "there is an unknown member"
    return f"{name}: is missing" if error["type"] == "missing" else f"{name}: {text}"
