"""What a request costs before anyone does anything for it: an empty FastAPI route and an empty ASGI application.

Both answer a constant; its `refresh_token` is there for drivers that follow a chain of tokens.
"""

from typing import Any

from fastapi import FastAPI

ANSWER = {"refresh_token": "empty"}
BODY = b'{"refresh_token":"empty"}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))],
}

fastapi = FastAPI()


@fastapi.get("/", response_model=None)
@fastapi.post("/auth/refresh", response_model=None)
async def answer() -> dict[str, str]:
    return ANSWER


async def asgi(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    if scope["type"] == "http":  # a lifespan that is declined is no error to uvicorn
        await send(START)
        await send({"type": "http.response.body", "body": BODY})
