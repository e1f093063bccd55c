"""A program for the Python that has Scalekit's SDK: it calls the unmodified client, one JSON line a call.

`python -m tests.upstream.sdk URL CLIENT_ID CLIENT_SECRET` makes the client once, and answers each line
`[function, arguments]` with `[result, null]`, or with `[null, [class of the exception, its text]]`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from google.protobuf.json_format import MessageToDict
from scalekit import ScalekitClient
from scalekit.common.scalekit import AuthorizationUrlOptions, CodeAuthenticationOptions, TokenValidationOptions


class Calls:
    """The functions that tests call. Each is one call of the SDK, as its documentation shows it."""

    def __init__(self, url: str, client_id: str, client_secret: str) -> None:
        self._client = ScalekitClient(env_url=url, client_id=client_id, client_secret=client_secret)

    def validate(self, token: str) -> Any:
        """Without options, as the documentation shows it first."""
        return self._client.validate_access_token(token)

    def validate_strictly(self, token: str, issuer: str, audience: str) -> Any:
        return self._client.validate_access_token(token, TokenValidationOptions(issuer=issuer, audience=[audience]))

    def claims(self, token: str) -> Any:
        return self._client.validate_access_token_and_get_claims(token)

    def authorization_url(self, redirect_uri: str) -> Any:
        return self._client.get_authorization_url(redirect_uri, AuthorizationUrlOptions())

    def authenticate(self, code: str, redirect_uri: str) -> Any:
        return self._client.authenticate_with_code(code, redirect_uri, CodeAuthenticationOptions())

    def refresh(self, token: str) -> Any:
        return self._client.refresh_access_token(token)

    def get_session(self, session_id: str) -> Any:
        return _plain(self._client.sessions.get_session(session_id))

    def user_sessions(
        self, user_id: str, page_size: int | None = None, page_token: str | None = None, status: list[str] | None = None
    ) -> Any:
        wanted = self._client.sessions.create_session_filter(status=status) if status else None
        return _plain(self._client.sessions.get_user_sessions(user_id, page_size, page_token, wanted))

    def revoke_session(self, session_id: str) -> Any:
        return _plain(self._client.sessions.revoke_session(session_id))

    def revoke_all(self, user_id: str) -> Any:
        return _plain(self._client.sessions.revoke_all_user_sessions(user_id))

    def verify_webhook(self, secret: str, fields: dict[str, str], body: str) -> Any:
        return self._client.verify_webhook_payload(secret, fields, body.encode())


def _plain(answer: Any) -> Any:
    message, _ = answer  # the second is gRPC's call
    return MessageToDict(message, preserving_proto_field_name=True)


def main(url: str, client_id: str, client_secret: str) -> None:
    calls = Calls(url, client_id, client_secret)
    print(json.dumps(["ready", None]), flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = [getattr(calls, name)(**arguments), None]
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises is the answer
            answer = [None, [type(error).__name__, str(error)]]
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
