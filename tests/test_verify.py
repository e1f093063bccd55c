"""`/auth/verify`: any method and path, demands of roles and scopes, and the header fields that name the user."""

from __future__ import annotations

from typing import Any

import jwt

from tests.api import EVERY_METHOD, INVALID, OTHER_METHODS, Api, api, authorization, refused

__all__ = ["api"]  # fixtures


async def test_verify_answers_any_method_and_any_path_below_in_the_same_way(api: Api) -> None:
    tokens = await api.login()
    headers = authorization(tokens["access_token"])
    expected = await api.get("/auth/verify", tokens["access_token"])
    assert expected.json() == jwt.decode(tokens["access_token"], options={"verify_signature": False})
    for method in (*EVERY_METHOD, *OTHER_METHODS):
        for path in (
            "/auth/verify",
            "/auth/verify/",
            "/auth/verify/a/b.html",
            "/auth/verify//x?y=1",
            "/auth/verify/%2e%2e/me",
            "/auth/verify/%0a%ff%00",
            "/auth/verify/x?role=admin&scope=everything&role=%",
            "/auth/verify/?role=admin",
            "/auth/verify;role=user/?role=admin",
        ):
            answer = await api.client.request(method, path, headers=headers)
            assert answer.status_code == 200, (method, path)
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-auth-subject"] == expected.headers["x-auth-subject"]
            if method != "HEAD":
                assert answer.json() == expected.json()
            refused_answer = await api.client.request(method, path)
            assert refused_answer.status_code == 401
            assert not [name for name in refused_answer.headers if name.startswith("x-auth-")]


async def test_verify_does_not_look_at_the_body_that_a_proxy_hands_on(api: Api) -> None:
    headers = authorization((await api.login())["access_token"])
    bodies = [
        ({"Content-Type": "text/html"}, b"<html>"),
        ({"Content-Type": "application/json"}, b'{"a": 1, "a": '),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"\x1f\x8b\x08"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\n\xff\xfe\r\n--x--"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"role=admin&%ff"),
        ({}, b"\0" * 60_000),
    ]
    for more, body in bodies:
        for path in ("/auth/verify", "/auth/verify/below"):
            for method in ("POST", "PUT", "PATCH", "DELETE", "GET"):
                answer = await api.client.request(method, path, content=body, headers=headers | more)
                assert answer.status_code == 200, (more, method, answer.text)
    large = await api.client.post("/auth/verify", content=b"x" * 65_537, headers=headers)
    assert large.status_code == 200


async def test_verify_asks_for_a_role_and_for_scopes(api: Api) -> None:
    tokens = await api.login()
    narrow, scoped = tokens["access_token"], api.minted(tokens, scope="read write")
    for query, token, status in (
        ("role=user", narrow, 200),
        ("role=admin", narrow, 403),
        ("role=", narrow, 403),
        ("role=User", narrow, 403),
        ("role=use", narrow, 403),
        ("role=user%20", narrow, 403),
        ("scope=read", narrow, 403),
        ("scope=", narrow, 200),
        ("scope=read", scoped, 200),
        ("scope=write+read", scoped, 200),
        ("scope=read&scope=write", scoped, 200),
        ("scope=READ", scoped, 403),
        ("scope=rea", scoped, 403),
        ("scope=read%20admin", scoped, 403),
        ("role=user&scope=read", scoped, 200),
        ("role=admin&scope=read", scoped, 403),
    ):
        before = query.replace("&", ";")  # the demand comes before the path that a proxy appends
        for target in (f"?{query}", f";{before}", f";{before}/", f";{before}/orders;role=x?role=x&scope=x"):
            answer = await api.get(f"/auth/verify{target}", token)
            assert answer.status_code == status, target
            if status == 403:
                refused(answer, 403, "insufficient_scope", challenge='Bearer error="insufficient_scope"')
                assert not [name for name in answer.headers if name.startswith("x-auth-")]


async def test_a_demand_that_is_mistyped_before_what_a_proxy_appends_lets_no_one_through(api: Api) -> None:
    token = (await api.login())["access_token"]
    for below in ("", "/", "/orders"):
        for demand in (";rolle=admin", ";Role=user", ";role", ";", ";role=user;", ";role=user;x=y", ";role%3Duser"):
            refused(await api.get(f"/auth/verify{demand}{below}", token), 404, "not_found")


async def test_a_demand_that_is_mistyped_in_the_query_lets_no_one_through(api: Api) -> None:
    token = (await api.login())["access_token"]
    for query in (
        "rolle=user",
        "Role=user",
        "roles=user",
        "claim=acme",
        "clam.org=acme",
        "role=user&x=y",
        "role%20=user",
    ):
        for before in ("", ";role=user"):
            refused(await api.get(f"/auth/verify{before}?{query}", token), 400, "invalid_request")
    assert (await api.get("/auth/verify/?rolle=admin", token)).status_code == 200  # a client's, below


async def test_a_second_role_or_scope_in_the_query_can_only_narrow(api: Api) -> None:
    token = (await api.login())["access_token"]
    for query in ("role=admin&role=user", "role=user&role=admin", "scope=read&scope="):
        assert (await api.get(f"/auth/verify?{query}", token)).status_code == 403
    for target in (";role=admin?role=user", ";role=user?role=admin", ";role=admin;role=user/"):
        assert (await api.get(f"/auth/verify{target}", token)).status_code == 403


async def test_identity_headers_come_from_the_token_alone(api: Api) -> None:
    tokens = await api.login()
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    forged = {f"X-Auth-{name}": "forged" for name in ("Subject", "Role", "Scope", "Session")}
    answer = await api.client.get("/auth/verify", headers=authorization(tokens["access_token"]) | forged)
    assert {n: v for n, v in answer.headers.multi_items() if n.startswith("x-auth-")} == {
        "x-auth-subject": claims["sub"],
        "x-auth-role": "user",
        "x-auth-scope": "",  # empty but present, or a proxy would pass on the client's own field
        "x-auth-session": tokens["session_id"],
    }
    scoped = await api.get("/auth/verify", api.minted(tokens, scope="read write"))
    assert scoped.headers["x-auth-scope"] == "read write"


async def test_no_claim_can_make_a_header_of_its_own(api: Api) -> None:
    tokens = await api.login()
    hostile = (
        "x\r\nX-Auth-Role: admin",
        "x\nSet-Cookie: a=b",
        "x\rx",
        "x\0",
        "\xe9",
        "\u2028",
        "\x7f",
        "x\ty",
        "\u212a",
    )
    headers = {"sub": "x-auth-subject", "role": "x-auth-role", "scope": "x-auth-scope"}
    for claim, header in headers.items():
        for value in hostile:
            answer = await api.get("/auth/verify", api.minted(tokens, **{claim: value}))
            assert (answer.status_code, answer.json()[claim]) == (200, value)
            assert "set-cookie" not in answer.headers
            assert all(v.isascii() and v.isprintable() for _, v in answer.headers.multi_items()), (claim, value)
            assert answer.headers["x-auth-role"] == ("" if claim == "role" else "user")
            # Only white space gives scopes, which it separates. For every other value the header field is empty.
            assert answer.headers[header] == "" or claim == "scope"


async def test_claims_that_json_can_t_carry_are_refused(api: Api) -> None:
    tokens = await api.login()
    for claims in ({"role": "\ud800"}, {"x": "\udfff"}, {"x\ud800": 1}):
        refused(await api.get("/auth/verify", api.minted(tokens, **claims)), 401, "invalid_token", challenge=INVALID)


async def test_a_moment_beyond_every_float_is_refused(api: Api) -> None:
    tokens = await api.login()
    for moment in (10**400, -(10**400)):
        answer = await api.get("/auth/verify", api.minted(tokens, iat=moment, exp=moment))
        refused(answer, 401, "invalid_token", challenge=INVALID)


async def test_claims_of_any_form_never_make_an_error_of_ours(api: Api) -> None:
    tokens = await api.login()
    deep: Any = []
    for _ in range(700):
        deep = [deep]
    for claims in (
        {"x": deep},
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": 10**4000},
        {"scope": ["read"]},
        {"scope": {"read": True}},
        {"scope": 7},
        {"aud": ["https://auth.example.com", "https://other.example.com"]},
        {"nbf": None},
        {"exp": True},
    ):
        for path in ("/auth/verify?scope=read", "/auth/verify", "/auth/me"):
            answer = await api.get(path, api.minted(tokens, **claims))
            assert answer.status_code in {200, 401, 403}, claims.keys()
            assert answer.headers.get("x-auth-scope", "") == ""
