"""A command that signs in and calls a service: `login EMAIL`, `hello`, `logout`."""

import argparse
import os
import sys
from getpass import getpass
from pathlib import Path

import httpx2
from stored_session import AwayError, RefusedError, SignedOutError, StoredSession

KEYTURN = os.environ.get("KEYTURN", "http://127.0.0.1:8000")
SERVICE = os.environ.get("SERVICE", "http://127.0.0.1:9000")
TOKENS = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "keyturn-example" / "tokens.json"


def call(session: StoredSession, path: str) -> httpx2.Response:
    """Call the service. After a 401 refresh once and call once more; the second answer stands."""
    token = session.access_token()
    answer = _get(path, token)
    return _get(path, session.access_token(refused=token)) if answer.status_code == 401 else answer


def _get(path: str, token: str) -> httpx2.Response:
    return httpx2.get(SERVICE + path, headers={"Authorization": f"Bearer {token}"}, timeout=10)


def main() -> int:
    """Exit codes: 0 done, 1 nobody is signed in or the service refused, 3 something is away."""
    parser = argparse.ArgumentParser(description=__doc__)
    words = parser.add_subparsers(dest="word", required=True)
    words.add_parser("login", help="sign in").add_argument("email")
    words.add_parser("hello", help="call the service")
    words.add_parser("logout", help="end the session")
    arguments = parser.parse_args()
    session = StoredSession(KEYTURN, TOKENS)
    try:
        if arguments.word == "login":
            session.login(arguments.email, getpass())
            print("Signed in.")
        elif arguments.word == "logout":
            session.logout()
            print("Logged out.")
        else:
            answer = call(session, "/hello")
            print(answer.status_code, answer.text)
            return 0 if answer.is_success else 3 if answer.status_code == 503 else 1
    except SignedOutError as error:
        print(f"Not signed in: {error}. Type: {sys.argv[0]} login EMAIL", file=sys.stderr)
        return 1
    except RefusedError as error:
        print(f"Keyturn refused: {error}", file=sys.stderr)
        return 1
    except (AwayError, httpx2.HTTPError) as error:
        print(f"Out of reach: {error}. You are still signed in: try again.", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
