"""The same service, which verifies access tokens by itself: a logout counts when the token expires."""

import logging
import os
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

KEYTURN = os.environ.get("KEYTURN", "http://127.0.0.1:8000")
ISSUER = os.environ.get("ISSUER", "http://127.0.0.1:8000")  # Keyturn's default, whatever its port
AUDIENCE = os.environ.get("AUDIENCE", ISSUER)
CLAIMS = ["iss", "sub", "aud", "exp", "iat", "jti", "sid", "client_id", "role"]


class Keys(jwt.PyJWKClient):
    """Keyturn's keys. They are kept for five minutes, and read again for a `kid` that is new."""

    def fetch_data(self) -> Any:
        """The JWK Set. Raises PyJWKClientConnectionError for an answer without keys too: no token is to blame."""
        try:
            return super().fetch_data()
        except (jwt.PyJWTError, ValueError) as broken:
            raise jwt.PyJWKClientConnectionError(str(broken)) from broken


keys = Keys(f"{KEYTURN}/.well-known/jwks.json")  # make it once


def verified(token: str) -> dict[str, Any]:
    """The claims (RFC 9068 section 4). Raises PyJWKClientConnectionError (answer 503), or another PyJWTError (401)."""
    if jwt.get_unverified_header(token).get("typ") != "at+jwt":
        raise jwt.InvalidTokenError("not an access token")
    claims: dict[str, Any] = jwt.decode(
        token,
        keys.get_signing_key_from_jwt(token),
        algorithms=["ES256"],
        issuer=ISSUER,
        audience=AUDIENCE,
        leeway=5,  # seconds: clocks differ
        options={"require": CLAIMS},
    )
    return claims


app = FastAPI()
log = logging.getLogger("uvicorn.error")


def user(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> dict[str, Any]:
    """The claims of who sent this request. Raises 401 without a good token, 503 where the keys can't be had."""
    try:
        return verified(sent.credentials if sent else "")
    except jwt.PyJWKClientConnectionError:
        raise HTTPException(503, headers={"Retry-After": "1"}) from None
    except jwt.PyJWTError as refused:
        log.info("refused: %.200r", str(refused))  # the reason, without the token
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"}) from None


@app.get("/hello")
def hello(user: Annotated[dict[str, Any], Depends(user)]) -> dict[str, str]:
    """Greet whoever is signed in."""
    return {"hello": user["sub"]}
