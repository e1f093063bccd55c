"""An empty FastAPI route and an empty ASGI application, to measure the cost of a request without any work.

Both answer a constant. Its `refresh_token` serves drivers that follow a chain of tokens.
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
    if scope["type"] == "http":  # uvicorn goes on if an application answers no lifespan
        await send(START)
        await send({"type": "http.response.body", "body": BODY})
