"""The health check of the image: asks /healthz where the environment says that the service listens, by no proxy.

This is no verb of `keyturn`, because it runs every ten seconds: the imports of the command take a second of a core.
"""

import http.client
import os
from collections.abc import Mapping


def address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where to ask. The `KEYTURN_PORT=tcp://…` that Kubernetes makes for a Service counts for nothing."""
    host, port = (environment.get(f"KEYTURN_{name}", "").strip() for name in ("HOST", "PORT"))
    every = host in {"", "0.0.0.0", "::"}
    return "127.0.0.1" if every else host, int(port) if port.isdigit() else 8000


def main() -> None:
    """Ends with code 0 if the service answers 200 within two seconds, and with 1 otherwise."""
    connection = http.client.HTTPConnection(*address(os.environ), timeout=2)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as e:
        raise SystemExit(f"/healthz does not answer: {e}") from None
    if status != http.client.OK:
        raise SystemExit(f"/healthz says {status}")


if __name__ == "__main__":
    main()
