"""The table of cookies: what is presented, and the answer, the Set-Cookie fields and the change in the database.

tests/test_cookies.py presents each case through both doors.
"""
# ruff: noqa: E731  # a row reads best beside the function that makes its cookies

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.actors import SERVICE
from tests.conftest import NEW_PASSWORD, PASSWORD
from tests.cookie_site import A, R, S, World
from tests.cookies import BOUNDARIES, Parts, flipped, raw_of, text_of

Sent = str | bytes | Sequence[str | bytes]
NOTHING = ""


@dataclass(frozen=True)
class Case:
    """A request with its cookies, and the answer that it must get."""

    title: str
    call: str
    sent: Callable[[World], Sent | Awaitable[Sent]]
    status: int
    error: str = ""
    reason: str = ""
    fields: str = ""
    """The Set-Cookie fields: `+` sets and `-` clears access, refresh or split."""
    change: str = ""
    """The sessions that changed, and how. Empty: no row of the database changed."""
    headers: Callable[[World], Sequence[tuple[str, str]]] = lambda _: ()
    body: Callable[[World], Any] = lambda _: None
    origin: bool = True


CALLS = {
    "verify": ("GET", "/auth/verify"),
    "verify+": ("GET", "/auth/verify?refresh=true"),
    "verify;": ("GET", "/auth/verify;refresh=true/a/path?and=query"),
    "refresh": ("POST", "/auth/refresh"),
    "logout": ("POST", "/auth/logout"),
    "me": ("GET", "/auth/me"),
    "password": ("POST", "/auth/password"),
}
FAST = {"verify", "verify+", "verify;", "refresh", "logout"}
"""The calls that the fast door takes."""

LABELS = {A: "access", R: "refresh", S: "split"}
GRANT, TOKEN, BAD, CROSS = "invalid_grant", "invalid_token", "invalid_request", "cross_site"
SET, CLEAR = "+access +refresh", "-access -refresh"


def bearer(token: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {token}")]


def _tampered() -> list[tuple[str, Callable[[World, str, str], str | bytes]]]:
    """Ways to bend a value. Each gets the world, the value, and another session's value of the same name."""

    def part(name: str, bent: Callable[[bytes], bytes]) -> Callable[[World, str, str], str]:
        return lambda _w, v, _o: Parts.of(v)._replace(**{name: bent(getattr(Parts.of(v), name))}).text

    def of_other(*names: str) -> Callable[[World, str, str], str]:
        return lambda _w, v, o: Parts.of(v)._replace(**{n: getattr(Parts.of(o), n) for n in names}).text

    def cut(at: int) -> Callable[[World, str, str], str]:
        return lambda _w, v, _o: text_of(raw_of(v)[:at])

    return [
        ("one bit of the key id", part("key", flipped)),
        ("an unknown key id", part("key", lambda b: bytes(len(b)))),
        ("one bit of the session", part("session", lambda b: flipped(b, -1))),
        ("another session's id", of_other("session")),
        ("one bit of the nonce", part("nonce", flipped)),
        ("another value's nonce", of_other("nonce")),
        ("another value's session and nonce", of_other("session", "nonce")),
        ("the first bit of the ciphertext", part("sealed", flipped)),
        ("a bit in the middle of the ciphertext", part("sealed", lambda b: flipped(b, len(b) // 2))),
        ("the last bit of the ciphertext", part("sealed", lambda b: flipped(b, -1))),
        ("another value's ciphertext", of_other("sealed")),
        ("one bit of the tag", part("tag", lambda b: flipped(b, -1))),
        ("another value's tag", of_other("tag")),
        ("a tag of zeros", part("tag", lambda b: bytes(len(b)))),
        *((f"cut after {at} bytes", cut(at)) for at in (*BOUNDARIES, 35, 37, 52)),
        ("cut before the tag", cut(-16)),
        ("the last byte cut off", cut(-1)),
        ("the last character cut off", lambda _w, v, _o: v[:-1]),
        ("a byte more", lambda _w, v, _o: text_of(raw_of(v) + b"\0")),
        ("a character more", lambda _w, v, _o: v + "A"),
        ("padding", lambda _w, v, _o: v + "=" * (-len(v) % 4 or 4)),
        ("the same bytes spelled otherwise", lambda _w, v, _o: respelled(v)),
        ("percent-encoded", lambda _w, v, _o: "".join(f"%{ord(c):02X}" for c in v)),
        ("twice in one value", lambda _w, v, _o: v + v),
        ("capital letters", lambda _w, v, _o: v.upper()),
        ("quotation marks", lambda _w, v, _o: f'"{v}"'),
        ("a blank inside", lambda _w, v, _o: v[:40] + " " + v[40:]),
        ("a comma and more", lambda _w, v, _o: v + ",x"),
        ("empty", lambda _w, _v, _o: ""),
        ("one character", lambda _w, _v, _o: "A"),
        ("a byte that is no ASCII", lambda _w, v, _o: v[:50].encode() + b"\xff" + v[50:].encode()),
        ("a letter that is no ASCII", lambda _w, v, _o: v[:50].encode() + "ä".encode() + v[50:].encode()),
        ("NUL", lambda _w, v, _o: v[:50] + "\0" + v[50:]),
        ("8 KiB of letters", lambda _w, _v, _o: "A" * 8192),
        ("32 KiB beginning with a value", lambda _w, v, _o: v + "A" * 32768),
    ]


def respelled(value: str) -> str:
    """Another base64url text of the same bytes: with spare bits, or with the alphabet of base64."""
    spare = {2: 4, 3: 2}.get(len(value) % 4)
    if spare is None:
        other = value.replace("-", "+").replace("_", "/")
        return other if other != value else value + "="
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return value[:-1] + alphabet[alphabet.index(value[-1]) + 1]


def _bent(name: str, bend: Callable[[World, str, str], str | bytes]) -> Callable[[World], bytes]:
    def sent(w: World) -> bytes:
        value = bend(w, w.one.fields[name], w.two.fields[name])
        return name.encode() + b"=" + (value if isinstance(value, bytes) else value.encode())

    return sent


def _beside(name: str, bend: Callable[[World, str, str], str | bytes], other: str) -> Callable[[World], Sent]:
    """A bent cookie, and the good one of the other name."""
    return lambda w: [_bent(name, bend)(w), f"{other}={w.one.fields[other]}"]


def _named(name: str, cookie: str) -> Callable[[World], Sent]:
    """A good value under another name."""
    return lambda w: f"{name}={w.one.fields[cookie]}"


def _tampering() -> Iterator[Case]:
    for title, bend in _tampered():
        yield Case(f"access cookie: {title}", "verify", _bent(A, bend), 401, TOKEN)
        yield Case(f"refresh cookie: {title}", "refresh", _bent(R, bend), 401, GRANT, fields=CLEAR)


_BESIDE = {
    "one bit of the key id",
    "one bit of the session",
    "another session's id",
    "another value's session and nonce",
    "another value's ciphertext",
    "one bit of the tag",
    "cut after 24 bytes",
    "a byte more",
    "the same bytes spelled otherwise",
    "quotation marks",
    "empty",
    "a byte that is no ASCII",
}


def _beside_good() -> Iterator[Case]:
    """A bent cookie beside the good one of the other name changes nothing for that one."""
    for title, bend in _tampered():
        if title not in _BESIDE:
            continue
        good = _beside(A, bend, R)
        yield Case(f"beside a refresh cookie, {title}", "verify", good, 401, TOKEN)
        yield Case(f"beside a refresh cookie, {title}", "verify+", good, 200, fields=SET, change="one rotated")
        yield Case(f"beside a refresh cookie, {title}", "refresh", good, 200, fields=SET, change="one rotated")
        yield Case(f"beside a refresh cookie, {title}", "logout", good, 204, fields=CLEAR, change="one logout")
        other = _beside(R, bend, A)
        yield Case(f"beside an access cookie, {title}", "verify", other, 200)
        yield Case(f"beside an access cookie, {title}", "verify+", other, 200)
        yield Case(f"beside an access cookie, {title}", "me", other, 200)
        yield Case(f"beside an access cookie, {title}", "logout", other, 204, fields=CLEAR, change="one logout")


def _kinds() -> Iterator[Case]:
    """Genuine values at the wrong place."""
    swapped = lambda w: f"{A}={w.one.r}; {R}={w.one.a}"
    yield Case("names exchanged", "verify", swapped, 401, TOKEN)
    yield Case("names exchanged", "verify+", swapped, 401, TOKEN, fields=CLEAR)
    yield Case("names exchanged", "refresh", swapped, 401, GRANT, fields=CLEAR)
    yield Case("names exchanged", "logout", swapped, 401, TOKEN, fields=CLEAR)
    yield Case("names exchanged", "me", swapped, 401, TOKEN)
    inside = lambda w: f"{A}={w.one.sealed(A, w.one.refresh_token)}"
    yield Case("a refresh token sealed as access cookie", "verify", inside, 401, TOKEN)
    yield Case("a refresh token sealed as access cookie", "logout", inside, 401, TOKEN, fields=CLEAR)
    yield Case("a refresh token sealed as access cookie", "me", inside, 401, TOKEN)
    inside_refresh = lambda w: f"{R}={w.one.sealed(R, w.one.access_token)}"
    yield Case("an access token sealed as refresh cookie", "refresh", inside_refresh, 401, GRANT, fields=CLEAR)
    yield Case("an access token sealed as refresh cookie", "verify+", inside_refresh, 401, TOKEN, fields=CLEAR)
    yield Case("an access token sealed as refresh cookie", "logout", inside_refresh, 401, GRANT, fields=CLEAR)
    yield Case("a bare access token", "verify", lambda w: f"{A}={w.one.access_token}", 401, TOKEN)
    yield Case("a bare refresh token", "refresh", lambda w: f"{R}={w.one.refresh_token}", 401, GRANT, fields=CLEAR)
    plain = lambda name, inside: lambda w: f"{name}={w.one.plain(name, inside)}"
    yield Case("nothing sealed", "verify", plain(A, b""), 401, TOKEN)
    yield Case("flags alone", "verify", plain(A, b"\1"), 401, TOKEN)
    yield Case("nothing sealed", "refresh", plain(R, b""), 401, GRANT, fields=CLEAR)
    yield Case("flags alone", "refresh", plain(R, b"\1"), 401, GRANT, fields=CLEAR)
    yield Case("bytes that are no text", "verify", plain(A, b"\1" + bytes(range(256))), 401, TOKEN)
    split = lambda w: f"{S}={w.one.r}"
    yield Case("a refresh cookie's value as split cookie", "refresh", split, 401, GRANT, fields="-split")
    for name in ("keyturn-refresh", "__Secure-keyturn-refresh", R.lower(), R.upper(), f"{R}2", f"x{R}", R[2:]):
        yield Case(f"named {name}", "refresh", _named(name, R), 400, BAD)
        access = name.replace("refresh", "access").replace("REFRESH", "ACCESS")
        yield Case(f"named {access}", "verify", _named(access, A), 401, TOKEN)


def _grammar() -> Iterator[Case]:
    """Other spellings of the Cookie field."""
    yield Case("the pair", "verify", lambda w: w.one.pair, 200)
    yield Case("the pair in the other order", "verify", lambda w: f"{R}={w.one.r}; {A}={w.one.a}", 200)
    yield Case("two Cookie fields", "verify", lambda w: [f"{R}={w.one.r}", f"{A}={w.one.a}"], 200)
    yield Case("two Cookie fields", "refresh", lambda w: w.one.pair.split("; "), 200, fields=SET, change="one rotated")
    yield Case("among others", "verify", lambda w: f"a=b; {A}={w.one.a}; theme=dark", 200)
    yield Case("blanks around", "verify", lambda w: f"  {A} = {w.one.a}  ;;  ; x", 200)
    yield Case("tabs around", "verify", lambda w: f"\t{A}\t=\t{w.one.a}\t", 200)
    yield Case("no blank between", "verify", lambda w: f"a=b;{A}={w.one.a};c=d", 200)
    yield Case("a name without a value", "verify", lambda _: A, 401, TOKEN)
    yield Case("separated by a comma", "verify", lambda w: f"a=b, {A}={w.one.a}", 401, TOKEN)
    yield Case("cookies of others alone", "verify", lambda _: "a=b; c=d", 401, TOKEN)
    yield Case("cookies of others alone", "verify+", lambda _: "a=b; c=d", 401, TOKEN)
    yield Case("cookies of others alone", "logout", lambda _: "a=b; c=d", 401, TOKEN)
    yield Case("cookies of others alone", "me", lambda _: "a=b; c=d", 401, TOKEN)
    yield Case("200 cookies of others beside", "verify", lambda w: "; ".join([*(f"c{i}={i}" for i in range(200)), w.one.pair]), 200)  # fmt: skip
    yield Case("64 KiB of cookies", "verify", lambda w: f"{w.one.pair}; a={'x' * 65536}", 431, BAD)
    yield Case("64 KiB of cookies", "refresh", lambda w: f"{w.one.pair}; a={'x' * 65536}", 431, BAD)


def several(name: str, one: str, *others: str) -> str:
    return "; ".join(f"{name}={value}" for value in (one, *others))


async def _ended_beside(w: World) -> str:
    await w.end("logout")
    return several(A, w.one.a, w.two.a)


async def _ended_access_beside_pair(w: World) -> str:
    return f"{await _ended_beside(w)}; {R}={w.two.r}"


async def _ended_refresh_beside(w: World) -> str:
    await w.end("logout")
    return several(R, w.one.r, w.two.r)


async def _generations(w: World, name: str, back: int = 1) -> str:
    """An older value beside the newest of the session, the older one first."""
    newest = w.one
    for _ in range(back):
        newest = await newest.refreshed()
    return several(name, w.one.fields[name], newest.fields[name])


def _duplicates() -> Iterator[Case]:
    junk = "AAAA"
    yield Case("junk before the live one", "verify", lambda w: several(A, junk, w.one.a), 200)
    yield Case("junk after the live one", "verify", lambda w: several(A, w.one.a, junk), 200)
    yield Case("junk before the live one", "me", lambda w: several(A, junk, w.one.a), 200)
    for title, sent in {
        "before": lambda w: several(R, junk, w.one.r),
        "after": lambda w: several(R, w.one.r, junk),
        "in another field before": lambda w: [f"{R}={junk}", f"{R}={w.one.r}"],
        "in another field after": lambda w: [f"{R}={w.one.r}", f"{R}={junk}"],
    }.items():
        yield Case(f"junk {title} the live one", "refresh", sent, 200, fields=SET, change="one rotated")
        yield Case(f"junk {title} the live one", "verify+", sent, 200, fields=SET, change="one rotated")
        yield Case(f"junk {title} the live one", "logout", sent, 204, fields=CLEAR, change="one logout")
    yield Case("junk twice", "verify", lambda _: several(A, junk, junk), 401, TOKEN)
    yield Case("junk twice", "refresh", lambda _: several(R, junk, junk), 401, GRANT, fields=CLEAR)
    yield Case("the live one twice", "verify", lambda w: several(A, w.one.a, w.one.a), 200)
    yield Case("the live one twice", "refresh", lambda w: several(R, w.one.r, w.one.r), 200, fields=SET, change="one rotated")  # fmt: skip
    yield Case("the same token in two values", "refresh", lambda w: several(R, w.one.r, w.one.sealed(R, w.one.refresh_token)), 200, fields=SET, change="one rotated")  # fmt: skip
    yield Case("expired before live", "verify", lambda w: several(A, w.one.aged(-100), w.one.a), 200)
    yield Case("expired after live", "verify", lambda w: several(A, w.one.a, w.one.aged(-100)), 200)
    yield Case("ended before live", "verify", _ended_beside, 200)
    yield Case("ended before live", "me", _ended_beside, 200)
    yield Case("ended before live", "refresh", _ended_refresh_beside, 200, fields=SET, change="two rotated")
    yield Case("ended before live", "logout", _ended_refresh_beside, 204, fields=CLEAR, change="two logout")
    both = lambda w: several(A, w.one.a, w.two.a)
    yield Case("two live sessions", "verify", both, 401, TOKEN)
    yield Case("two live sessions", "verify+", both, 401, TOKEN, fields=CLEAR)
    yield Case("two live sessions", "me", both, 401, TOKEN)
    yield Case("two live sessions", "password", both, 401, TOKEN, body=_passwords)
    yield Case("two live sessions", "logout", both, 204, fields=CLEAR, change="one logout, two logout")
    beside = lambda w: f"{both(w)}; {R}={w.two.r}"
    for call, error in (("verify", TOKEN), ("me", TOKEN)):
        yield Case("two live sessions beside the refresh cookie of one", call, beside, 401, error)
    for call, error in (("verify+", TOKEN), ("refresh", GRANT)):
        yield Case("two live sessions beside the refresh cookie of one", call, beside, 401, error, fields=CLEAR)
    yield Case("ended beside live, and the refresh cookie of the live one", "refresh", _ended_access_beside_pair, 200, fields=SET, change="two rotated")  # fmt: skip
    yield Case("ended beside live, and the refresh cookie of the live one", "verify+", _ended_access_beside_pair, 200)
    both_refresh = lambda w: several(R, w.one.r, w.two.r)
    yield Case("two live sessions", "refresh", both_refresh, 401, GRANT, fields=CLEAR)
    yield Case("two live refresh cookies", "verify+", both_refresh, 401, TOKEN, fields=CLEAR)
    strangers = lambda w: several(R, w.one.r, w.stranger.r)
    yield Case("two live sessions of two users", "refresh", strangers, 401, GRANT, fields=CLEAR)
    yield Case("two live sessions of two users", "verify", lambda w: several(A, w.one.a, w.stranger.a), 401, TOKEN)
    yield Case("older before newer", "verify", lambda w: _generations(w, A), 200)
    yield Case("older before newer", "refresh", lambda w: _generations(w, R), 200, fields=SET, change="one rotated")
    yield Case(
        "much older before newer", "refresh", lambda w: _generations(w, R, 4), 200, fields=SET, change="one rotated"
    )
    yield Case(
        "much older before newer", "verify+", lambda w: _generations(w, R, 4), 200, fields=SET, change="one rotated"
    )
    yield Case(
        "much older before newer", "logout", lambda w: _generations(w, R, 4), 204, fields=CLEAR, change="one logout"
    )
    yield Case("16 values", "verify", lambda w: several(A, *[junk] * 15, w.one.a), 200)
    yield Case(
        "16 values", "refresh", lambda w: several(R, *[junk] * 15, w.one.r), 200, fields=SET, change="one rotated"
    )
    seventeen = lambda w: several(A, *[junk] * 15, w.one.a) + f"; {R}={w.one.r}"
    for call in ("verify+", "logout"):
        yield Case("17 values", call, seventeen, 400, BAD)
    yield Case("17 values of one name", "verify", lambda w: several(A, w.one.a, *[junk] * 16), 400, BAD)
    yield Case("17 values of one name", "me", lambda w: several(A, w.one.a, *[junk] * 16), 400, BAD)
    yield Case("17 values of one name", "refresh", lambda w: several(R, w.one.r, *[junk] * 16), 400, BAD)
    yield Case(
        "17 values of one name", "password", lambda w: several(A, w.one.a, *[junk] * 16), 400, BAD, body=_passwords
    )
    yield Case("1000 values", "logout", lambda w: several(R, w.one.r, *[junk] * 999), 400, BAD)


def _passwords(_: World) -> dict[str, str]:
    return {"current_password": PASSWORD, "new_password": NEW_PASSWORD}


REASONS = (
    "logout",
    "logout_all",
    "revoked_by_admin",
    "reuse_detected",
    "password_changed",
    "user_disabled",
    "idle_timeout",
)


def _over() -> Iterator[Case]:
    """Genuine values whose token or session is over."""
    yield Case("expired access", "verify", lambda w: w.one.expired, 401, TOKEN, "token_expired")
    yield Case("expired access", "me", lambda w: w.one.expired, 401, TOKEN, "token_expired")
    yield Case("expired access", "verify+", lambda w: w.one.expired, 401, TOKEN, "token_expired", CLEAR)
    yield Case("expired access", "logout", lambda w: w.one.expired, 204, fields=CLEAR, change="one logout")
    beside = lambda w: f"{w.one.expired}; {R}={w.one.r}"
    yield Case("expired access beside refresh", "verify", beside, 401, TOKEN, "token_expired")
    yield Case("expired access beside refresh", "me", beside, 401, TOKEN, "token_expired")
    yield Case("expired access beside refresh", "verify+", beside, 200, fields=SET, change="one rotated")
    yield Case("expired access beside refresh", "verify;", beside, 200, fields=SET, change="one rotated")
    yield Case("expired access beside refresh", "refresh", beside, 200, fields=SET, change="one rotated")
    yield Case("expired access beside refresh", "logout", beside, 204, fields=CLEAR, change="one logout")
    yield Case("expired access beside refresh", "password", beside, 401, TOKEN, "token_expired", body=_passwords)
    for reason in REASONS:

        async def ended(w: World, reason: str = reason) -> str:
            await w.end(reason)
            return w.one.pair

        async def ended_and_expired(w: World, reason: str = reason) -> str:
            await w.end(reason)
            return f"{w.one.expired}; {R}={w.one.r}"

        yield Case(f"ended: {reason}", "me", ended, 401, TOKEN, reason)
        if reason != "idle_timeout":  # its access tokens have expired long before
            yield Case(f"ended: {reason}", "verify", ended, 401, TOKEN, reason)
        yield Case(f"ended: {reason}", "refresh", ended, 401, GRANT, reason, CLEAR)
        yield Case(f"ended: {reason}", "verify+", ended_and_expired, 401, TOKEN, reason, CLEAR)
        marked = "one idle_timeout" if reason == "idle_timeout" else ""  # nobody has written the end down yet
        yield Case(f"ended: {reason}", "logout", ended, 204, fields=CLEAR, change=marked)
    yield Case("ended, and an access token that lives", "verify+", _pair_of_ended, 401, TOKEN, "logout", CLEAR)
    yield Case("reuse", "refresh", _reused, 401, GRANT, "reuse_detected", CLEAR, "one reuse_detected")
    yield Case("reuse", "verify+", _reused_expired, 401, TOKEN, "reuse_detected", CLEAR, "one reuse_detected")
    yield Case("an old refresh cookie", "logout", _reused, 204, fields=CLEAR, change="one logout")


async def _pair_of_ended(w: World) -> str:
    await w.end("logout")
    return w.one.pair


async def _reused(w: World) -> str:
    await (await w.one.refreshed()).refreshed()
    return f"{R}={w.one.r}"


async def _reused_expired(w: World) -> str:
    await _reused(w)
    return f"{w.one.expired}; {R}={w.one.r}"


def _refreshing() -> Iterator[Case]:
    """Refresh on the way, and when it must not happen."""
    yield Case("the pair", "verify+", lambda w: w.one.pair, 200)
    yield Case("the pair", "verify;", lambda w: w.one.pair, 200)
    yield Case("access ends soon", "verify+", lambda w: f"{A}={w.one.aged(30)}; {R}={w.one.r}", 200, fields=SET, change="one rotated")  # fmt: skip
    yield Case("access does not end soon", "verify+", lambda w: f"{A}={w.one.aged(90)}; {R}={w.one.r}", 200)
    yield Case("access ends soon", "verify", lambda w: f"{A}={w.one.aged(30)}; {R}={w.one.r}", 200)
    yield Case("access ends soon, and no refresh cookie", "verify+", lambda w: f"{A}={w.one.aged(30)}", 200)
    yield Case("access alone", "verify+", lambda w: f"{A}={w.one.a}", 200)
    yield Case("refresh alone", "verify", lambda w: f"{R}={w.one.r}", 401, TOKEN)
    yield Case("refresh alone", "me", lambda w: f"{R}={w.one.r}", 401, TOKEN)
    yield Case("refresh alone", "verify+", lambda w: f"{R}={w.one.r}", 200, fields=SET, change="one rotated")
    yield Case("refresh alone", "verify;", lambda w: f"{R}={w.one.r}", 200, fields=SET, change="one rotated")
    yield Case("refresh alone", "refresh", lambda w: f"{R}={w.one.r}", 200, fields=SET, change="one rotated")
    yield Case("refresh alone", "logout", lambda w: f"{R}={w.one.r}", 204, fields=CLEAR, change="one logout")
    yield Case("access alone", "logout", lambda w: f"{A}={w.one.a}", 204, fields=CLEAR, change="one logout")
    yield Case("access alone", "refresh", lambda w: f"{A}={w.one.a}", 400, BAD)
    yield Case("nothing", "verify", lambda _: NOTHING, 401, TOKEN)
    yield Case("nothing", "verify+", lambda _: NOTHING, 401, TOKEN)
    yield Case("nothing", "refresh", lambda _: NOTHING, 400, BAD)
    yield Case("nothing", "logout", lambda _: NOTHING, 401, TOKEN)
    yield Case("nothing", "me", lambda _: NOTHING, 401, TOKEN)
    yield Case("nothing", "password", lambda _: NOTHING, 401, TOKEN, body=_passwords)
    yield Case("a retry", "refresh", _retry, 200, fields=SET)
    yield Case("a retry", "verify+", _retry, 200, fields=SET)
    crossed = lambda w: f"{A}={w.one.a}; {R}={w.two.r}"
    yield Case("access and refresh of two sessions", "verify", crossed, 401, TOKEN)
    yield Case("access and refresh of two sessions", "verify+", crossed, 401, TOKEN, fields=CLEAR)
    yield Case("access and refresh of two sessions", "refresh", crossed, 401, GRANT, fields=CLEAR)
    yield Case("access and refresh of two sessions", "me", crossed, 401, TOKEN)
    yield Case(
        "access and refresh of two sessions", "logout", crossed, 204, fields=CLEAR, change="one logout, two logout"
    )
    yield Case("access and refresh of two users", "refresh", lambda w: f"{A}={w.one.a}; {R}={w.stranger.r}", 401, GRANT, fields=CLEAR)  # fmt: skip
    expired = lambda w: f"{w.one.expired}; {R}={w.two.r}"
    yield Case("expired access and refresh of two sessions", "verify+", expired, 401, TOKEN, fields=CLEAR)


async def _retry(w: World) -> str:
    await w.one.refreshed()
    return f"{R}={w.one.r}"


def _beside_bearer() -> Iterator[Case]:
    """A token in the request goes before cookies."""
    token = lambda w: bearer(w.two.access_token)
    junk = lambda _: bearer("junk")
    yield Case("good bearer beside junk", "verify", lambda _: f"{A}=junk", 200, headers=token)
    yield Case("junk bearer beside the pair", "verify", lambda w: w.one.pair, 401, TOKEN, headers=junk)
    yield Case("junk bearer beside the pair", "verify+", lambda w: w.one.pair, 401, TOKEN, headers=junk)
    yield Case("good bearer beside a refresh cookie", "verify+", lambda w: f"{R}={w.one.r}", 200, headers=token)
    yield Case("good bearer beside the pair of another session", "me", lambda w: w.one.pair, 200, headers=token)
    yield Case("junk bearer beside the pair", "me", lambda w: w.one.pair, 401, TOKEN, headers=junk)
    yield Case("another scheme beside the pair", "verify", lambda w: w.one.pair, 200, headers=lambda _: [("Authorization", "Basic eDp4")])  # fmt: skip
    yield Case("bearer and pair of two sessions", "logout", lambda w: w.one.pair, 204, fields=CLEAR, change="one logout, two logout", headers=token)  # fmt: skip
    yield Case("a bearer token beside the pair", "refresh", lambda w: w.one.pair, 200, fields=SET, change="one rotated", headers=token)  # fmt: skip
    body = lambda w: {"refresh_token": w.two.refresh_token}
    yield Case("body beside the pair", "refresh", lambda w: w.one.pair, 200, change="two rotated", body=body)
    yield Case("body beside junk", "refresh", lambda _: f"{R}=junk", 200, change="two rotated", body=body)
    yield Case(
        "body beside 17 values", "refresh", lambda _: several(R, *["x"] * 17), 200, change="two rotated", body=body
    )
    yield Case("body beside the pair, another origin", "refresh", lambda w: w.one.pair, 200, change="two rotated", body=body, origin=False)  # fmt: skip
    yield Case("junk body beside the pair", "refresh", lambda w: w.one.pair, 401, GRANT, body=lambda _: {"refresh_token": "ktr_junk"})  # fmt: skip
    yield Case("a malformed body beside the pair", "refresh", lambda w: w.one.pair, 400, BAD, body=lambda _: {"refresh_token": 1})  # fmt: skip
    yield Case("an unknown member beside the pair", "refresh", lambda w: w.one.pair, 400, BAD, body=lambda _: {"x": 1})
    yield Case("body and pair of two sessions", "logout", lambda w: w.one.pair, 204, fields=CLEAR, change="one logout, two logout", body=body)  # fmt: skip
    yield Case("junk body beside the pair", "logout", lambda w: w.one.pair, 204, fields=CLEAR, change="one logout", body=lambda _: {"refresh_token": "ktr_junk"})  # fmt: skip
    yield Case(
        "a malformed body beside the pair", "logout", lambda w: w.one.pair, 400, BAD, body=lambda _: {"scope": "x"}
    )
    yield Case("scope all", "logout", lambda w: w.one.pair, 204, fields=CLEAR, change="one logout_all, two logout_all", body=lambda _: {"scope": "all"})  # fmt: skip
    yield Case("scope others", "logout", lambda w: w.one.pair, 204, change="two logout_all", body=lambda _: {"scope": "others"})  # fmt: skip


def _modes() -> Iterator[Case]:
    """The refresh cookies of both modes."""
    mode = lambda name: lambda _: {"mode": name}
    both = lambda w: f"{S}={w.two.s}; {w.one.pair}"
    split = lambda w: f"{S}={w.one.s}"
    yield Case("split", "refresh", split, 200, fields="+split", change="one rotated")
    yield Case(
        "split, asked as split", "refresh", split, 200, fields="+split", change="one rotated", body=mode("split")
    )
    yield Case("split, asked as cookie", "refresh", split, 400, BAD, body=mode("cookie"))
    yield Case("cookie, asked as split", "refresh", lambda w: w.one.pair, 400, BAD, body=mode("split"))
    yield Case("split", "logout", split, 204, fields="-split", change="one logout")
    yield Case("split, a bearer token of it", "logout", split, 204, fields="-split", change="one logout", headers=lambda w: bearer(w.one.access_token))  # fmt: skip
    yield Case("split", "verify", split, 401, TOKEN)
    yield Case("split", "verify+", split, 401, TOKEN)
    yield Case("both modes", "refresh", both, 400, BAD)
    yield Case(
        "both modes, asked as cookie", "refresh", both, 200, fields=SET, change="one rotated", body=mode("cookie")
    )
    yield Case(
        "both modes, asked as split", "refresh", both, 200, fields="+split", change="two rotated", body=mode("split")
    )
    yield Case("both modes, asked as bearer", "refresh", both, 400, BAD, body=mode("bearer"))
    yield Case("both modes, asked as x", "refresh", both, 400, BAD, body=mode("x"))
    yield Case("both modes", "logout", both, 204, fields=f"{CLEAR} -split", change="one logout, two logout")
    yield Case(
        "both modes, asked as cookie", "logout", both, 204, fields=CLEAR, change="one logout", body=mode("cookie")
    )
    yield Case(
        "both modes, asked as split", "logout", both, 204, fields="-split", change="two logout", body=mode("split")
    )
    yield Case("both modes", "verify", both, 200)
    yield Case("both modes", "verify+", lambda w: f"{S}={w.two.s}; {w.one.expired}; {R}={w.one.r}", 200, fields=SET, change="one rotated")  # fmt: skip


def _sites() -> Iterator[Case]:
    """Requests without a word of the browser about their origin."""
    pair = lambda w: w.one.pair
    split = lambda w: f"{S}={w.one.s}"
    for title, headers in {
        "no word": [],
        "another origin": [("Origin", "https://evil.example")],
        "origin null": [("Origin", "null")],
        "same-site": [("Sec-Fetch-Site", "same-site")],
        "cross-site": [("Sec-Fetch-Site", "cross-site")],
        "none": [("Sec-Fetch-Site", "none")],
        "a host that begins alike": [("Origin", "https://auth.example.com.evil.example")],
        "another scheme": [("Origin", "http://auth.example.com")],
        "another port": [("Origin", "https://auth.example.com:8443")],
    }.items():
        more = lambda _, headers=headers: headers
        yield Case(f"{title}", "refresh", pair, 403, CROSS, headers=more, origin=False)
        yield Case(f"{title}, split", "refresh", split, 403, CROSS, headers=more, origin=False)
        yield Case(f"{title}", "logout", pair, 403, CROSS, headers=more, origin=False)
        yield Case(f"{title}", "password", pair, 403, CROSS, headers=more, origin=False, body=_passwords)
        yield Case(f"{title}", "verify", pair, 200, headers=more, origin=False)
        yield Case(f"{title}", "me", pair, 200, headers=more, origin=False)
    own = lambda _: [("Origin", "https://auth.example.com")]
    yield Case("own origin", "refresh", pair, 200, fields=SET, change="one rotated", headers=own, origin=False)
    yield Case("own origin", "logout", pair, 204, fields=CLEAR, change="one logout", headers=own, origin=False)
    yield Case("the pair", "password", pair, 204, change="two password_changed", body=_passwords)
    yield Case(
        "own origin", "password", pair, 204, change="two password_changed", body=_passwords, headers=own, origin=False
    )
    yield Case("a bearer token from anywhere", "password", pair, 204, change="one password_changed", body=_passwords, headers=lambda w: bearer(w.two.access_token), origin=False)  # fmt: skip
    yield Case("a wrong password", "password", pair, 401, GRANT, body=lambda _: {"current_password": "wrong wrong", "new_password": NEW_PASSWORD})  # fmt: skip
    yield Case("no body", "password", pair, 400, BAD)


def _keys() -> Iterator[Case]:
    """Values under other cookie keys."""

    async def under_other(w: World) -> bytes:
        key = await w.site.key()
        with w.site.sealing_under(key):
            w.one.fields = {
                name: w.one.sealed(name, w.site.sealer.open(name, v).token) for name, v in w.one.fields.items()
            }
        assert Parts.of(w.one.r).key == Parts.of(w.one.a).key == key
        return key

    async def pair(w: World) -> str:
        await under_other(w)
        return w.one.pair

    async def refresh(w: World) -> str:
        await under_other(w)
        return f"{R}={w.one.r}"

    async def retired(w: World) -> str:
        key = await under_other(w)
        await w.site.keyturn.keys.retire(key.hex(), by=SERVICE)
        await w.site.keyturn.keys.load()
        return w.one.pair

    async def exchanged(w: World) -> str:
        key = await w.site.key()
        return f"{A}={Parts.of(w.one.a)._replace(key=key).text}; {R}={w.one.r}"

    yield Case("under another key that opens", "verify", pair, 200)
    yield Case("under another key that opens", "me", pair, 200)
    yield Case("under another key that opens", "verify+", refresh, 200, fields=SET, change="one rotated")
    yield Case("under another key that opens", "refresh", pair, 200, fields=SET, change="one rotated")
    yield Case("under another key that opens", "logout", pair, 204, fields=CLEAR, change="one logout")
    yield Case("under a retired key", "verify", retired, 401, TOKEN)
    yield Case("under a retired key", "me", retired, 401, TOKEN)
    yield Case("under a retired key", "verify+", retired, 401, TOKEN, fields=CLEAR)
    yield Case("under a retired key", "refresh", retired, 401, GRANT, fields=CLEAR)
    yield Case("under a retired key", "logout", retired, 401, TOKEN, fields=CLEAR)
    yield Case("the id of another key that opens", "verify", exchanged, 401, TOKEN)
    yield Case("the id of another key that opens", "verify+", exchanged, 200, fields=SET, change="one rotated")


TABLES = (
    _grammar,
    _tampering,
    _beside_good,
    _kinds,
    _duplicates,
    _over,
    _refreshing,
    _beside_bearer,
    _modes,
    _sites,
    _keys,
)
CASES = [case for table in TABLES for case in table()]
