"""Where the parts of the example are: read from the environment, so that the same code runs behind a proxy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Settings:
    """The settings of the web application and of the one-page application's server."""

    keyturn: str
    """Keyturn's URL, as this process reaches it."""

    origin: str
    """The origin at which browsers see the application. Forms from other origins are refused."""

    trust_proxy_identity: bool = False
    """Whether a proxy before the application has asked Keyturn already, and sets the X-Auth fields.

    Only that proxy may reach the application then, because anyone else could write these fields.
    """

    @classmethod
    def of_environment(cls) -> Self:
        """Read WEB_KEYTURN_URL, WEB_ORIGIN and WEB_TRUST_PROXY_IDENTITY."""
        return cls(
            keyturn=os.environ["WEB_KEYTURN_URL"],
            origin=os.environ["WEB_ORIGIN"],
            trust_proxy_identity=os.environ.get("WEB_TRUST_PROXY_IDENTITY", "false") == "true",
        )
