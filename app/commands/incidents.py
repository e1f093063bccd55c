"""The leaks, and the commands that answer each, in order. `keyturn incident` and docs/incidents.md tell the same."""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """One step of an answer."""

    does: str
    """The effect of the step, or an act by hand."""
    command: str = ""
    """The words behind `keyturn`, with placeholders in capitals. Empty: a step by hand."""


class Leak(NamedTuple):
    """Something that leaked or was lost, and the answer to it."""

    name: str
    title: str
    steps: tuple[Step, ...]
    users: str
    """The effect on users."""


_LIVE = Step("Look: no session from before is in the list.", "sessions list --status live")
_STOP = Step("Stop every instance.")
_NEW_PASSWORDS = Step(
    "Change the passwords of the database and of Redis: the server has both. Set them for each instance and for this "
    "command."
)
_NEW_SECRET = Step("Set a new KEYTURN_SECRET for each instance and for this command: openssl rand -base64 32.")
_REPLACE = Step(
    "Retire all keys, make new ones under the new secret, and end all sessions.", "keys replace --sign-everyone-out"
)
_START = Step("Start the instances.")
_ISSUERS = Step(
    "Once for each issuer that has a client secret: make a new one at the issuer, and give it here. "
    "`keyturn federation list` shows the issuers."
)
_ADMINISTRATORS = Step(
    "See who the administrators are. Take the next step for each of them.", "users list --role admin"
)
_UNKNOWN_ADMINISTRATORS = Step("Disable each administrator that you do not know: `keyturn users disable USER`.")
_UNKNOWN_ISSUERS = Step("Look for issuers that you do not know: one of them may vouch for anybody.", "federation list")
_RESET = Step(
    "Have a new password made, which is printed once. All sessions of the user end.", "users reset-password USER"
)

LEAKS = (
    Leak(
        "master-secret",
        "the master secret (KEYTURN_SECRET) leaked, or is lost",
        (_STOP, _NEW_SECRET, _REPLACE, _START, _ISSUERS, _LIVE),
        "Everyone signs in again. Passwords stay.",
    ),
    Leak(
        "server",
        "somebody was on a server of Keyturn, or has the database and the master secret",
        (
            _STOP,
            _NEW_PASSWORDS,
            _NEW_SECRET,
            _REPLACE,
            _ADMINISTRATORS,
            _RESET,
            _UNKNOWN_ADMINISTRATORS,
            _UNKNOWN_ISSUERS,
            _START,
            _ISSUERS,
            _LIVE,
        ),
        "Everyone signs in again, administrators with new passwords. Advise users to change weak passwords.",
    ),
    Leak(
        "access-key",
        "a key that signs access tokens leaked, as an HS256 key that a service shares",
        (
            Step(
                "See the keys. Note the kid of the leaked one: the access key that signs, unless you know better.",
                "keys list",
            ),
            Step("Make a new key. The command waits a minute, until the key signs.", "keys rotate access"),
            Step("Refuse every token of the leaked key, on all instances within two seconds.", "keys retire KID"),
            Step("Give the new key to the services that verify by themselves."),
            Step("Look: the leaked key is retired, and `/auth/verify` says 401 to a token of it.", "keys list"),
        ),
        "Nothing: clients refresh. For that minute, forged tokens of live sessions are good. "
        "`keyturn keys sign-everyone-out` refuses them at once, and everyone signs in again.",
    ),
    Leak(
        "refresh-key",
        "a key of refresh tokens leaked",
        (
            Step("See the keys. Note the kid of the leaked one.", "keys list"),
            Step("Make a new key. The command waits a minute, until the key signs.", "keys rotate refresh"),
            Step("Refuse every token of the leaked key, and end its sessions.", "keys retire KID"),
            Step("Look: only sessions that the new key has refreshed or begun are in the list.", _LIVE.command),
        ),
        "Users whose session was not refreshed under the new key sign in again.",
    ),
    Leak(
        "cookie-key",
        "a key that seals cookies leaked",
        (
            Step("See the keys. Note the kid of the leaked one.", "keys list"),
            Step("Make a new key. The command waits a minute, until the key seals.", "keys rotate cookie"),
            Step("Refuse every cookie under the leaked key.", "keys retire KID"),
            Step(
                "Was a browser's cookie copied too? The key opens it, and the token in it works on. Then end that "
                "session: `keyturn incident refresh-token`."
            ),
        ),
        "Browsers whose cookies are under the old key sign in again.",
    ),
    Leak(
        "database-dump",
        "a dump or backup of the database leaked, without the master secret",
        (
            Step(
                "Nothing in it signs in: keys are sealed, tokens and passwords hashed. Weak passwords may be guessed."
            ),
            _ADMINISTRATORS,
            _RESET,
            Step("The dump has e-mail addresses and network addresses. Tell users, as the law may ask."),
        ),
        "Administrators have a new password. Advise users to change weak ones.",
    ),
    Leak(
        "redis-dump",
        "the memory or a snapshot of Redis leaked",
        (
            Step(
                "Redis has ids of sessions that ended, and counts. Nothing in it signs in, so there is nothing to end."
            ),
            Step("Close Redis to strangers: a writer there can make Keyturn slow, and an eraser is noticed.", "doctor"),
        ),
        "Nothing.",
    ),
    Leak(
        "logs",
        "the logs leaked",
        (
            Step(
                "No token, password or key is in a log. Ids and addresses of users are: tell users, as the law may ask."
            ),
        ),
        "Nothing.",
    ),
    Leak(
        "password",
        "a user's password leaked",
        (_RESET, Step("See what was done with the account.", "why USER")),
        "The user signs in with the new password, and chooses another within a day.",
    ),
    Leak(
        "administrator",
        "an administrator's account was taken over",
        (
            _RESET,
            Step(
                "See all that the account did (by its id). Undo what the administrator did not want.",
                "events list --actor ID",
            ),
            Step("Look for administrators that you do not know.", "users list --role admin"),
            Step("Look for keys that you do not know. None can be read over HTTP.", "keys list"),
            _UNKNOWN_ISSUERS,
        ),
        "The administrator signs in with a new password.",
    ),
    Leak(
        "refresh-token",
        "a refresh token or an access token of one session leaked",
        (
            Step(
                "See from where the session was used. An access token names its session in the claim sid.",
                "why SESSION",
            ),
            Step(
                "End it. When the command returns, all instances refuse its tokens.",
                "sessions end SESSION",
            ),
        ),
        "The user signs in again on that device.",
    ),
    Leak(
        "device",
        "a user's phone or computer is lost",
        (
            Step(
                "See the user's sessions. `keyturn sessions show ID` tells device and address.",
                "sessions list --user USER --status live",
            ),
            Step("End the one of the device. Users can do so themselves on another device.", "sessions end SESSION"),
        ),
        "Nothing on other devices.",
    ),
    Leak(
        "client-secret",
        "the client secret or webhook secret of an issuer leaked",
        (
            Step(
                "Make a new one at the issuer. Then give it on standard input.",
                "federation add NAME --client-secret-stdin",
            ),
            Step("See the issuer, and whether it has its secrets.", "federation list"),
        ),
        "Nothing.",
    ),
)
"""All leaks, the gravest first."""
