"""A service with protected routes. It asks Keyturn about each request, so a logout counts at once."""

import os
from typing import Annotated, Any

import httpx2
from fastapi import Depends, FastAPI, Header, HTTPException, Request

app = FastAPI()
keyturn = httpx2.AsyncClient(base_url=os.environ.get("KEYTURN", "http://127.0.0.1:8000"), timeout=5)


async def user(request: Request, authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
    """Ask Keyturn who sent this request. Raises 401 or 403 as Keyturn says, and 503 where it can't say."""
    sender = request.client.host if request.client else ""  # counts if KEYTURN_TRUSTED_PROXIES has this service
    sent = {b"Authorization": authorization.encode("ascii", "replace"), b"X-Forwarded-For": sender.encode()}
    try:
        answer = await keyturn.get("/auth/verify", headers=sent)
    except httpx2.HTTPError:
        answer = httpx2.Response(503)  # none came
    if answer.status_code in (401, 403):
        raise HTTPException(answer.status_code, headers={"WWW-Authenticate": answer.headers["WWW-Authenticate"]})
    if answer.status_code == 429 or answer.is_server_error:  # nobody is signed out: the client tries again
        raise HTTPException(503, headers={"Retry-After": answer.headers.get("Retry-After", "1")})
    if not answer.is_success:  # 400, 404: a defect of this service, so 500 and a line in its log
        raise RuntimeError(f"Keyturn refuses the question: {answer.text}")
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
