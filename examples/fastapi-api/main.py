"""A service with protected routes. It asks Keyturn about each request, so a logout counts at once."""

import os
from typing import Annotated, Any

import httpx2
from fastapi import Depends, FastAPI, Header, HTTPException

app = FastAPI()
keyturn = httpx2.AsyncClient(base_url=os.environ.get("KEYTURN", "http://127.0.0.1:8000"), timeout=5)
LATER = {"Retry-After": "1"}  # seconds


async def user(authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
    """Ask Keyturn who sent this request. Raises 401 or 403 as Keyturn says, and 503 where it can't say."""
    try:
        answer = await keyturn.get("/auth/verify", headers={"Authorization": authorization})
    except httpx2.HTTPError:
        raise HTTPException(503, headers=LATER) from None
    if answer.status_code in (401, 403):
        raise HTTPException(answer.status_code, headers={"WWW-Authenticate": answer.headers["WWW-Authenticate"]})
    if not answer.is_success:  # 429, 503: this service is not ready, and the client keeps its tokens
        raise HTTPException(503, headers={"Retry-After": answer.headers.get("Retry-After", "1")})
    claims: dict[str, Any] = answer.json()
    return claims


User = Annotated[dict[str, Any], Depends(user)]


@app.get("/hello")
async def hello(user: User) -> dict[str, str]:
    """Greet whoever is signed in."""
    return {"hello": user["sub"]}


@app.get("/admin")
async def admin(user: User) -> dict[str, str]:
    """Greet administrators alone."""
    if user["role"] != "admin":
        raise HTTPException(403)
    return {"hello": f"{user['role']} {user['sub']}"}
