"""Uses the client that openapi-generator makes for Python: `python driver.py URL PASSWORD`."""

import sys

from keyturn_client import ApiClient, ApiException, AuthApi, Configuration, ErrorAnswer, Login, Logout, Refresh


def main(url: str, password: str) -> None:
    """Run the whole life of a session."""
    anonymous = AuthApi(ApiClient(Configuration(host=url)))
    first = anonymous.login(Login(email="admin@localhost", password=password))
    second = anonymous.refresh(refresh=Refresh(refresh_token=first.refresh_token))
    again = anonymous.refresh(refresh=Refresh(refresh_token=first.refresh_token))
    print("same refresh token" if second.refresh_token == again.refresh_token else "another")

    signed_in = AuthApi(ApiClient(Configuration(host=url, access_token=second.access_token)))
    print(signed_in.me().user.email)

    out = anonymous.logout_with_http_info(logout=Logout(refresh_token=second.refresh_token))
    print(out.status_code)
    try:
        signed_in.me()
    except ApiException as refused:
        answer = refused.data
        if isinstance(answer, ErrorAnswer):
            print(refused.status, answer.error, answer.reason)


main(*sys.argv[1:])
