"""Uses the client that openapi-python-client makes: `python driver.py URL PASSWORD`."""

import sys

from keyturn_client import AuthenticatedClient, Client
from keyturn_client.api.auth import login, logout, me, refresh
from keyturn_client.models import ErrorAnswer, Login, MeAnswer, Refresh, TokenAnswer


def main(url: str, password: str) -> None:
    """Run the whole life of a session."""
    anonymous = Client(url)
    first = login.sync(client=anonymous, body=Login(email="admin@localhost", password=password))
    assert isinstance(first, TokenAnswer), first
    body = Refresh(refresh_token=first.refresh_token)
    second = refresh.sync(client=anonymous, body=body)
    again = refresh.sync(client=anonymous, body=body)
    assert isinstance(second, TokenAnswer), second
    assert isinstance(again, TokenAnswer), again
    print("same refresh token" if second.refresh_token == again.refresh_token else "another")

    signed_in = AuthenticatedClient(url, token=str(second.access_token))
    mine = me.sync(client=signed_in)
    assert isinstance(mine, MeAnswer), mine
    print(mine.user.email)

    out = logout.sync_detailed(client=signed_in)
    print(out.status_code)
    refusal = me.sync_detailed(client=signed_in)
    assert isinstance(refusal.parsed, ErrorAnswer), refusal
    print(refusal.status_code, refusal.parsed.error, refusal.parsed.reason)


main(*sys.argv[1:])
