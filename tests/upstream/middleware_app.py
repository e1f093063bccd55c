"""An application with the session middleware of Scalekit's SDK, unmodified. The Python that has the SDK runs it."""

import os
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from scalekit.frameworks.fastapi import ScalekitAuth


def create() -> FastAPI:
    """The application. All processes of one application have the same secret and the same `redirect_uri`."""
    auth = ScalekitAuth(
        client_id=os.environ["CLIENT_ID"],
        client_secret=os.environ["CLIENT_SECRET"],
        env_url=os.environ["ENV_URL"],
        redirect_uri=os.environ["REDIRECT_URI"],
        cookie_encryption_secret=os.environ["COOKIE_SECRET"],
        cookie_secure=False,
    )
    app = FastAPI()
    auth.install(app)

    async def account(user: Annotated[dict[str, Any], Depends(auth.requires_auth)]) -> dict[str, Any]:
        return {"sub": user["sub"]}

    app.get("/account")(account)
    return app
