"""The stand-in of Scalekit does what its documentation says, and each switch of it has its effect."""

from __future__ import annotations

import base64
import http.server
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import jwt
import pytest

from app.federation.issuer import Issuer
from tests.upstream import greeting
from tests.upstream.control import Control
from tests.upstream.keys import signed
from tests.upstream.minting import KINDS
from tests.upstream.upstream import Login, Upstream

BACK = "https://app.example.com/callback"


@pytest.fixture
def client(upstream: Upstream) -> Iterator[httpx2.Client]:
    context = ssl.create_default_context(cafile=str(upstream.ca_file))
    with httpx2.Client(base_url=upstream.url, verify=context, trust_env=False, timeout=10) as client:
        yield client


def bearer(client: httpx2.Client, upstream: Upstream) -> dict[str, str]:
    form = {
        "grant_type": "client_credentials",
        "client_id": upstream.client_id,
        "client_secret": upstream.client_secret,
    }
    answer = client.post("/oauth/token", data=form).json()
    assert answer["expires_in"] == 86_399
    return {"authorization": f"Bearer {answer['access_token']}"}


def verified(client: httpx2.Client, token: str, **options: Any) -> dict[str, Any]:
    """The claims of a token, whose signature a published key made."""
    keys = {each["kid"]: jwt.PyJWK(each) for each in client.get("/keys").json()["keys"]}
    key = keys[jwt.get_unverified_header(token)["kid"]]
    checked: Any = {"verify_aud": False, **options}
    return jwt.decode(token, key, algorithms=["RS256", "ES256", "EdDSA"], options=checked)


# -- discovery, keys, tokens


def test_discovery_names_the_issuer_exactly_and_the_endpoints(upstream: Upstream, client: httpx2.Client) -> None:
    found = client.get("/.well-known/openid-configuration").json()
    assert found["issuer"] == upstream.url
    assert found["jwks_uri"] == f"{upstream.url}/keys"
    assert found["end_session_endpoint"] == f"{upstream.url}/oidc/logout"


@pytest.mark.parametrize("kind", KINDS)
def test_a_minted_token_has_the_claims_of_its_kind_and_a_published_key_signed_it(
    upstream: Upstream, client: httpx2.Client, kind: Any
) -> None:
    token = upstream.mint(kind)
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "kid": "snk_1", "typ": "JWT"}
    claims = verified(client, token)
    assert claims["iss"] == upstream.url
    assert ("at_hash" in claims) is (kind == "id_token")
    assert ("jti" in claims) is (kind in {"access_token", "machine", "logout_token"})
    assert ("sub" in claims) is (kind != "idp_initiated")
    assert claims.get("sub", "").startswith("m2morg_") is (kind == "machine")


def test_a_changed_token_differs_in_the_named_members_alone(upstream: Upstream, client: httpx2.Client) -> None:
    token = upstream.mint(header={"kid": "snk_7", "typ": ...}, exp=..., aud=None)
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "kid": "snk_7"}
    claims = jwt.decode(token, options={"verify_signature": False})
    good = upstream.claims()
    assert {name for name in good if good[name] != claims.get(name, "absent")} - {"iat", "nbf"} == {"exp", "aud", "jti"}
    assert claims["aud"] is None


def test_elliptic_keys_sign_as_their_algorithms_ask(upstream: Upstream, client: httpx2.Client) -> None:
    for key in (upstream.keys.ec(), upstream.keys.ed()):
        upstream.publish(key)
        assert verified(client, upstream.mint())["sub"] == upstream.subject.user_id


def test_tokens_can_be_signed_as_no_honest_library_would(upstream: Upstream) -> None:
    claims = upstream.claims()
    unsigned = signed({"alg": "none"}, claims, None)
    assert unsigned.endswith(".")
    confused = signed({"alg": "HS256", "kid": "snk_1"}, claims, upstream.signing.public_pem)
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    content, _, signature = confused.rpartition(".")
    assert base64.urlsafe_b64decode(signature + "=") == mac.sign(content.encode(), upstream.signing.public_pem)


def test_a_rotation_of_keys_publishes_the_new_one_and_keeps_or_withdraws_the_former(
    upstream: Upstream, client: httpx2.Client
) -> None:
    former = upstream.mint()
    upstream.rotate()
    assert [key["kid"] for key in client.get("/keys").json()["keys"]] == ["snk_2", "snk_1"]
    assert verified(client, upstream.mint())
    assert verified(client, former)
    upstream.rotate(keep=False)
    assert [key["kid"] for key in client.get("/keys").json()["keys"]] == ["snk_3"]
    upstream.reset()
    assert [key["kid"] for key in client.get("/keys").json()["keys"]] == ["snk_1"]


# -- faults


def test_each_fault_has_its_effect_and_ends_when_it_is_healed(upstream: Upstream, client: httpx2.Client) -> None:
    upstream.fault("/keys", "status", status=503)
    assert client.get("/keys").status_code == 503
    upstream.heal()
    upstream.fault("/keys", "redirect", location="http://169.254.169.254/")
    assert client.get("/keys").headers["location"] == "http://169.254.169.254/"
    upstream.heal()
    upstream.key_set({"keys": []})
    assert client.get("/keys").json() == {"keys": []}
    upstream.heal()
    upstream.key_set("<html>")
    assert client.get("/keys").text == "<html>"
    upstream.heal()
    upstream.fault("/keys", "large", size=10 << 20)
    assert len(client.get("/keys").content) == 10 << 20
    upstream.heal()
    for kind in ("close", "lost", "cut"):
        upstream.fault("/keys", kind)
        with pytest.raises(httpx2.HTTPError):
            client.get("/keys")
        upstream.heal()
    for kind in ("slow", "drip", "hang"):
        upstream.fault("/keys", kind, seconds=30)
        with pytest.raises(httpx2.TimeoutException):
            client.get("/keys", timeout=0.5)
        upstream.heal()
    assert client.get("/keys").status_code == 200


def test_a_fault_may_meet_a_number_of_requests_or_each_second_one(upstream: Upstream, client: httpx2.Client) -> None:
    upstream.fault("/keys", "status", times=2)
    assert [client.get("/keys").status_code for _ in range(3)] == [503, 503, 200]
    upstream.heal()
    upstream.fault("/keys", "status", every=2)
    assert [client.get("/keys").status_code for _ in range(4)] == [200, 503, 200, 503]
    assert [each["status"] for each in upstream.requests("/keys") if "fault" not in each] == [200, 200, 200]


def test_the_stand_in_can_refuse_connections_and_show_a_certificate_that_nobody_vouches_for(upstream: Upstream) -> None:
    context = ssl.create_default_context(cafile=str(upstream.ca_file))

    def ask() -> int:
        with httpx2.Client(verify=context, trust_env=False) as client:
            return client.get(f"{upstream.url}/keys").status_code

    upstream.refuse()
    with pytest.raises(httpx2.ConnectError):
        ask()
    upstream.heal()
    assert ask() == 200
    upstream.call("certificate", name="stranger")
    with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
        ask()
    upstream.reset()
    assert ask() == 200


# -- login, refresh, logout


def test_a_browser_signs_in_once_and_its_second_application_gets_a_code_without_a_form(
    upstream: Upstream, client: httpx2.Client
) -> None:
    asked = {
        "client_id": upstream.client_id,
        "redirect_uri": BACK,
        "response_type": "code",
        "scope": "openid email offline_access",
        "state": "s1",
        "nonce": "n1",
    }
    form = client.get("/oauth/authorize", params=asked)
    assert "<form" in form.text
    back = client.post("/oauth/authorize", params=asked, data={"email": "ada@example.com"})
    query = parse_qs(urlsplit(back.headers["location"]).query)
    assert query["state"] == ["s1"]
    again = client.get("/oauth/authorize", params=asked)
    assert again.status_code == HTTPStatus.FOUND
    grant = {"grant_type": "authorization_code", "code": query["code"][0], "redirect_uri": BACK}
    client_of = {"client_id": upstream.client_id, "client_secret": upstream.client_secret}
    tokens = client.post("/oauth/token", data=grant | client_of).json()
    assert tokens["expires_in"] == 299
    access, identity = (verified(client, tokens[name]) for name in ("access_token", "id_token"))
    assert (access["sid"], access["sub"]) == (identity["sid"], identity["sub"])
    assert (identity["nonce"], identity["email"], identity["email_verified"]) == ("n1", "ada@example.com", True)
    assert client.post("/oauth/token", data=grant | client_of).json()["error"] == "invalid_grant"
    wrong = client.post("/oauth/token", data=grant | client_of | {"client_secret": "guess"})
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")


def refreshed(client: httpx2.Client, upstream: Upstream, token: str) -> httpx2.Response:
    form = {"grant_type": "refresh_token", "refresh_token": token}
    client_of = {"client_id": upstream.client_id, "client_secret": upstream.client_secret}
    return client.post("/oauth/token", data=form | client_of)


def test_a_refresh_token_is_good_once_and_dies_with_its_session(upstream: Upstream, client: httpx2.Client) -> None:
    login = upstream.sign_in()
    second = refreshed(client, upstream, login.refresh_token).json()["refresh_token"]
    assert second.startswith("rt_")
    assert refreshed(client, upstream, login.refresh_token).status_code == 400
    assert upstream.end(login.session_id, "revoked")
    assert refreshed(client, upstream, second).json()["error"] == "invalid_grant"
    upstream.settings(refresh_grace=30)
    login = upstream.sign_in()
    assert [refreshed(client, upstream, login.refresh_token).status_code for _ in range(2)] == [200, 200]


def test_only_a_browser_with_the_cookie_signs_out_at_the_end_session_endpoint(
    upstream: Upstream, client: httpx2.Client
) -> None:
    asked = {"client_id": upstream.client_id, "redirect_uri": BACK, "login_hint": "ada@example.com"}
    client.get("/oauth/authorize", params=asked)
    cookie = client.cookies["scalekit_session"]
    [session] = upstream_sessions(client, upstream, upstream.sign_in().user_id, "active")[1:]
    client.cookies.clear()
    assert client.get("/oidc/logout").status_code == 200
    assert upstream.status(session["session_id"]) == "active"
    fields = {"cookie": f"scalekit_session={cookie}"}
    upstream.call("allow_redirects", uris=[BACK])
    query = {"post_logout_redirect_uri": BACK, "state": "s2"}
    assert client.get("/oidc/logout", params=query, headers=fields).headers["location"] == f"{BACK}?state=s2"
    assert upstream.status(session["session_id"]) == "logout"
    assert client.get("/oidc/logout", params={"post_logout_redirect_uri": "https://evil.example"}).status_code == 400


# -- the API of sessions


def upstream_sessions(client: httpx2.Client, upstream: Upstream, user_id: str, *statuses: str) -> list[dict[str, Any]]:
    answer = client.get(
        f"/api/v1/users/{user_id}/sessions", params={"filter.status": statuses}, headers=bearer(client, upstream)
    )
    found: list[dict[str, Any]] = answer.json()["sessions"]
    return found


def test_sessions_are_listed_in_pages_by_status_and_time(upstream: Upstream, client: httpx2.Client) -> None:
    logins = [upstream.sign_in() for _ in range(5)]
    fields, path = bearer(client, upstream), f"/api/v1/users/{logins[0].user_id}/sessions"
    upstream.end(logins[0].session_id, "logout")
    upstream.end(logins[1].session_id, "revoked")
    expired = upstream.sign_in(session={"absolute_expires_at": -1})
    first = client.get(path, params={"page_size": 4}, headers=fields).json()
    assert (len(first["sessions"]), first["total_size"], first["prev_page_token"]) == (4, 6, "")
    second = client.get(path, params={"page_size": 4, "page_token": first["next_page_token"]}, headers=fields).json()
    assert (len(second["sessions"]), second["next_page_token"]) == (2, "")
    statuses = {each["session_id"]: each["status"] for page in (first, second) for each in page["sessions"]}
    assert statuses == {
        logins[0].session_id: "logout",
        logins[1].session_id: "revoked",
        expired.session_id: "expired",
        **{login.session_id: "active" for login in logins[2:]},
    }
    assert len(upstream_sessions(client, upstream, logins[0].user_id, "ACTIVE", "logout")) == 4
    until = first["sessions"][-1]["created_at"]
    early = client.get(path, params={"filter.end_time": until}, headers=fields).json()
    assert early["total_size"] == 3
    assert client.get(path, params={"page_token": "nonsense"}, headers=fields).status_code == 400
    assert client.get(path, params={"page_size": 1000}, headers=fields).status_code == 400


def test_a_session_is_revoked_once_and_all_of_a_user_at_once(upstream: Upstream, client: httpx2.Client) -> None:
    fields = bearer(client, upstream)
    first, second, third = (upstream.sign_in() for _ in range(3))
    answer = client.post(f"/api/v1/sessions/{first.session_id}/revoke", headers=fields).json()
    assert answer["revoked_session"]["status"] == "revoked"
    assert "device" not in answer["revoked_session"]
    for how, status in (("conflict", 400), ("not_found", 404), ("done", 200)):
        upstream.settings(ended_again=how)
        again = client.post(f"/api/v1/sessions/{first.session_id}/revoke", headers=fields)
        assert again.status_code == status
    every = client.post(f"/api/v1/users/{first.user_id}/sessions/revoke", headers=fields).json()
    assert {each["session_id"] for each in every["revoked_sessions"]} == {second.session_id, third.session_id}
    assert every["total_revoked"] == 2


def test_the_api_refuses_unknown_ids_malformed_ids_and_tokens_that_are_not_its_own(
    upstream: Upstream, client: httpx2.Client
) -> None:
    fields, login = bearer(client, upstream), upstream.sign_in()
    path = f"/api/v1/sessions/{login.session_id}"
    assert client.get(path, headers=fields).json()["user_id"] == login.user_id
    assert client.get("/api/v1/sessions/ses_1", headers=fields).status_code == 404
    assert client.get("/api/v1/users/usr_1/sessions", headers=fields).status_code == 404
    assert client.get("/api/v1/sessions/ses_%2e%2e", headers=fields).status_code == 400
    assert client.get(path).status_code == 401
    assert client.get(path, headers={"authorization": f"Bearer {login.access_token}"}).status_code == 401
    upstream.call("forget_machine_tokens")
    assert client.get(path, headers=fields).status_code == 401
    user = client.get(f"/api/v1/users/{login.user_id}", headers=bearer(client, upstream)).json()["user"]
    assert user["email"] == "ada@example.com"
    users = client.get("/api/v1/users", headers=bearer(client, upstream)).json()
    assert login.user_id in {each["id"] for each in users["users"]}


# -- back-channel logout and webhooks


@contextmanager
def receiver(*statuses: int) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A server that answers with these statuses, the last one for ever, and notes the requests."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = statuses[min(len(got), len(statuses) - 1)]
            got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", got
        finally:
            server.shutdown()
            thread.join()


def test_the_end_of_a_session_sends_a_logout_token_that_names_it(upstream: Upstream, client: httpx2.Client) -> None:
    login: Login = upstream.sign_in()
    with receiver(200) as (url, got):
        upstream.send_to(back_channel=(url,))
        upstream.end(login.session_id, "expired")
        assert [each["status"] for each in upstream.tried(1)] == [200]
    token = parse_qs(got[0][1].decode())["logout_token"][0]
    claims = verified(client, token)
    assert (claims["sid"], claims["sub"], claims["aud"]) == (login.session_id, login.user_id, upstream.client_id)
    assert claims["events"] == {"http://schemas.openid.net/event/backchannel-logout": {}}
    assert "nonce" not in claims


def test_a_webhook_is_signed_and_sent_again_until_it_is_taken(upstream: Upstream) -> None:
    login = upstream.sign_in()
    with receiver(500, 204) as (url, got):
        upstream.send_to(webhooks=(url,))
        upstream.end(login.session_id)
        assert [each["status"] for each in upstream.tried(2)] == [500, 204]
    (first, raw), (second, again) = got
    assert (first["webhook-id"], raw) == (second["webhook-id"], again)
    event = json.loads(raw)
    assert event["type"] == "user.logout"
    assert event["data"]["user_session"]["session_id"] == login.session_id
    fields, body = upstream.webhook(login)
    assert fields["webhook-signature"].startswith("v1,")
    assert json.loads(body)["data"]["user_session"]["session_id"] == login.session_id


# -- by hand


def test_the_greeting_names_members_of_an_issuer_and_functions_of_the_stand_in(tmp_path: Path) -> None:
    text = greeting.text(tmp_path / "ca.pem")
    assert set(re.findall(r"--set (\w+)=", text)) == {"trust_email", "private_addresses", "ca_file"}
    assert set(re.findall(r"--set (\w+)=", text)) <= Issuer.model_fields.keys()
    functions = re.findall(r'"name": "(\w+)"', text)
    assert functions == ["sign_in", "send_to", "end", "fault", "heal"]
    assert all(hasattr(Control, name) for name in functions)
    assert json.loads(re.findall(r"-d '(.*?)'\)", text)[0])["arguments"] == {"email": "ada@example.com"}
