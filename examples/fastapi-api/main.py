"""A service with protected routes. It asks Keyturn about each request, so a logout counts at once."""

import os
from typing import Annotated, Any

import httpx2
from fastapi import Depends, FastAPI, Header, HTTPException

app = FastAPI()
keyturn = httpx2.AsyncClient(base_url=os.environ.get("KEYTURN", "http://127.0.0.1:8000"), timeout=5)


async def user(authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
    """Ask Keyturn who sent this request. Raises 401 without a good token, and 503 while Keyturn is away."""
    try:
        answer = await keyturn.get("/auth/verify", headers={"Authorization": authorization})
    except httpx2.HTTPError:
        raise HTTPException(503, headers={"Retry-After": "1"}) from None
    if not answer.is_success:
        raise HTTPException(answer.status_code, headers=_kept(answer))
    claims: dict[str, Any] = answer.json()
    return claims


def _kept(answer: httpx2.Response) -> dict[str, str]:
    return {name: answer.headers[name] for name in ("WWW-Authenticate", "Retry-After") if name in answer.headers}


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
