"""The endpoints of the stand-in: discovery, keys, tokens, login and logout of a browser, and the REST of sessions."""

from __future__ import annotations

import base64
import html
import json
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlencode

from . import rest
from .keys import Keys
from .minting import MACHINE_LIFETIME, Kind, Subject, changed, claims_of, half_digest
from .rest import Refused
from .store import Code, Session, Store
from .wire import Answer, Request

COOKIE = "scalekit_session"
_NO_STORE = {"cache-control": "no-store", "pragma": "no-cache"}


class Scalekit:
    """One environment with one web application, which may call the management API."""

    def __init__(self, url: str, client_id: str, client_secret: str, keys: Keys, store: Store) -> None:
        self.url = url
        self.client_id = client_id
        self.client_secret = client_secret
        self.keys = keys
        self.store = store
        self.published: list[str] = ["snk_1"]
        self.signing = "snk_1"

    def mint(self, kind: Kind, session: Session, **changes: Any) -> str:
        """A token of a session, signed by the key of the moment."""
        now = int(self.store.now().timestamp())
        claims = claims_of(kind, issuer=self.url, client_id=self.client_id, subject=session.subject, now=now)
        return self.keys.named(self.signing).token(changed(claims, changes))

    def machine_token(self) -> str:
        now = self.store.now()
        claims = claims_of(
            "machine", issuer=self.url, client_id=self.client_id, subject=Subject(), now=int(now.timestamp())
        )
        about = {"sub": self.client_id, "client_id": self.client_id}
        token = self.keys.named(self.signing).token(changed(claims, about))
        self.store.machine_tokens[token] = now + timedelta(seconds=MACHINE_LIFETIME)
        return token

    def tokens(self, session: Session, scope: str, nonce: str | None = None) -> dict[str, Any]:
        """The answer of the token endpoint for a user."""
        lifetime = self.store.settings.access_lifetime
        now = int(self.store.now().timestamp())
        access_token = self.mint("access_token", session, exp=now + lifetime)
        id_token = self.mint(
            "id_token", session, at_hash=half_digest(access_token), nonce=... if nonce is None else nonce
        )
        refresh = {"refresh_token": self.store.refresh_token(session)} if "offline_access" in scope.split() else {}
        return {
            "access_token": access_token,
            "id_token": id_token,
            "token_type": "Bearer",
            "expires_in": lifetime - 1,
            "scope": scope,
            **refresh,
        }

    async def serve(self, request: Request) -> Answer:
        try:
            return self._serve(request)
        except Refused as refused:
            return Answer(refused.status, refused.body)

    def _serve(self, request: Request) -> Answer:  # noqa: PLR0911 - one for each path
        match request.method, request.path.strip("/").split("/"):
            case "GET", [".well-known", "openid-configuration"]:
                return Answer(200, self._discovery())
            case "GET", ["keys"]:
                return Answer(200, {"keys": [self.keys.named(kid).jwk for kid in self.published]})
            case "POST", ["oauth", "token"]:
                return self._token(request)
            case (("GET" | "POST"), ["oauth", "authorize"]):
                return self._authorize(request)
            case "GET", ["oidc", "logout"]:
                return self._logout(request)
            case _, ["api", "v1", *path]:
                rest.check_bearer(self.store, request.all("authorization"))
                return Answer(200, self._rest(request, [unquote(part) for part in path]))
        return Answer(404, {"code": 5, "message": "Not Found", "details": []})

    def _discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/oauth/authorize",
            "token_endpoint": f"{self.url}/oauth/token",
            "end_session_endpoint": f"{self.url}/oidc/logout",
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
            "backchannel_logout_supported": True,
            "backchannel_logout_session_supported": True,
        }

    def _token(self, request: Request) -> Answer:  # noqa: PLR0911 - one for each grant
        form = request.form
        if not self._is_client(request, form):
            return _oauth_error("invalid_client", 401)
        match form.get("grant_type"):
            case "client_credentials":
                body = {"access_token": self.machine_token(), "token_type": "Bearer", "expires_in": MACHINE_LIFETIME}
                return Answer(200, body, _NO_STORE)
            case "authorization_code":
                code = self.store.codes.pop(form.get("code", ""), None)
                if code is None or code.expires_at < self.store.now() or code.redirect_uri != form.get("redirect_uri"):
                    return _oauth_error("invalid_grant")
                return Answer(200, self.tokens(code.session, code.scope, code.nonce), _NO_STORE)
            case "refresh_token":
                session = self.store.rotated(form.get("refresh_token", ""))
                if session is None:
                    return _oauth_error("invalid_grant")
                return Answer(200, self.tokens(session, "openid profile email offline_access"), _NO_STORE)
            case _:
                return _oauth_error("unsupported_grant_type")

    def _is_client(self, request: Request, form: dict[str, str]) -> bool:
        given = (form.get("client_id", ""), form.get("client_secret", ""))
        for value in request.all("authorization"):
            if value.startswith("Basic "):  # a bearer token here is the SDK's, which sends it with every request
                name, _, secret = base64.b64decode(value[6:]).decode().partition(":")
                given = (unquote(name), unquote(secret))
        return given == (self.client_id, self.client_secret)

    def _authorize(self, request: Request) -> Answer:
        asked = {name: values[0] for name, values in request.query.items()}
        redirect_uri = asked.get("redirect_uri", "")
        if asked.get("client_id") != self.client_id or not self._may_redirect(redirect_uri):
            return Answer(400, b"unknown client or redirect_uri")
        session = self.store.cookies.get(request.cookies.get(COOKIE, ""))
        email = request.form.get("email") if request.method == "POST" else asked.get("login_hint")
        fields: dict[str, str] = {}
        if session is None or session.status(self.store.now()) != "active":
            if not email:
                page = '<!doctype html><title>Sign in</title><form method="post"><input name="email" type="email"><button>Sign in</button></form>'
                return Answer(200, page.encode(), {"content-type": "text/html; charset=utf-8"})
            session = self.store.begin(self.store.user(email), self.client_id)
            cookie = secrets.token_urlsafe(24)
            self.store.cookies[cookie] = session
            fields["set-cookie"] = f"{COOKIE}={cookie}; Path=/; HttpOnly; Secure; SameSite=Lax"
        code = f"code_{secrets.token_urlsafe(24)}"
        until = self.store.now() + timedelta(minutes=10)
        scope = asked.get("scope", "openid")
        self.store.codes[code] = Code(session, redirect_uri, scope, asked.get("nonce"), until)
        answer = {"code": code, **({"state": asked["state"]} if "state" in asked else {})}
        separator = "&" if "?" in redirect_uri else "?"
        return Answer(302, b"", {**fields, "location": f"{redirect_uri}{separator}{urlencode(answer)}"})

    def _logout(self, request: Request) -> Answer:
        """Ends the session of the browser's cookie. So a request of a server, which has none, ends nothing."""
        session = self.store.cookies.pop(request.cookies.get(COOKIE, ""), None)
        if session is not None:
            if (hint := request.one("id_token_hint")) and _unverified_sid(hint) != session.session_id:
                return Answer(400, b"id_token_hint is of another session")
            self.store.end(session, "logout")
        fields = {"set-cookie": f"{COOKIE}=; Path=/; Max-Age=0"}
        if not (target := request.one("post_logout_redirect_uri")):
            page = f"<!doctype html><title>{html.escape('Signed out')}</title>"
            return Answer(200, page.encode(), {**fields, "content-type": "text/html; charset=utf-8"})
        if not self._may_redirect(target):
            return Answer(400, b"unknown post_logout_redirect_uri", fields)
        state = f"?{urlencode({'state': request.one('state')})}" if request.one("state") else ""
        return Answer(302, b"", {**fields, "location": target + state})

    def _may_redirect(self, uri: str) -> bool:
        return bool(uri) and (not self.store.redirects or uri in self.store.redirects)

    def _rest(self, request: Request, path: Sequence[str]) -> rest.Message:
        match request.method, path:
            case "GET", ["sessions", session_id]:
                return rest.get_session(self.store, session_id)
            case "POST", ["sessions", session_id, "revoke"]:
                return rest.revoke_session(self.store, session_id)
            case "GET", ["users", user_id, "sessions"]:
                return rest.user_sessions(
                    self.store,
                    user_id,
                    _size(request),
                    request.one("page_token"),
                    request.query.get("filter.status", ()),
                    _moment(request.one("filter.start_time")),
                    _moment(request.one("filter.end_time")),
                )
            case "POST", ["users", user_id, "sessions", "revoke"]:
                return rest.revoke_all(self.store, user_id)
            case "GET", ["users", user_id]:
                return rest.get_user(self.store, user_id)
            case "GET", ["users"]:
                return rest.users(self.store, _size(request), request.one("page_token"))
        raise Refused("NOT_FOUND", "Not Found")


def _size(request: Request) -> int:
    try:
        return int(request.one("page_size", "0"))
    except ValueError:
        raise Refused("INVALID_ARGUMENT", "page_size is no number") from None


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError:
        raise Refused("INVALID_ARGUMENT", "not a moment of RFC 3339") from None
    if moment is not None and moment.tzinfo is None:
        raise Refused("INVALID_ARGUMENT", "not a moment of RFC 3339")
    return moment


def _oauth_error(code: str, status: int = 400) -> Answer:
    return Answer(status, {"error": code, "error_description": f"the stand-in says {code}"}, _NO_STORE)


def _unverified_sid(token: str) -> Any:
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))).get("sid")
