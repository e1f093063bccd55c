"""The process of the stand-in: `python -m tests.upstream PORT CONTROL_PORT KEYS_FOLDER CLIENT_ID CLIENT_SECRET WEBHOOK_SECRET`.

Without arguments it is for a developer: the ports are fixed, and it says what to type next.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import greeting
from .control import Control
from .keys import Keys
from .outgoing import Outgoing
from .scalekit import Scalekit
from .shared_secrets import CLIENT_SECRET, WEBHOOK_SECRET
from .store import Store
from .wire import Wire


async def _grpc(store: Store) -> tuple[Any, int | None]:
    """The gRPC service, where Scalekit's SDK is installed."""
    try:
        from . import calls
    except ImportError:
        return None, None
    return await calls.listen(store)


async def main(
    port: str, control_port: str, folder: str, client_id: str, client_secret: str, webhook_secret: str
) -> None:
    keys, store = Keys(Path(folder)), Store()
    kept, grpc_port = await _grpc(store)
    scalekit = Scalekit(f"https://127.0.0.1:{port}", client_id, client_secret, keys, store)
    outgoing = Outgoing(scalekit, webhook_secret)
    wire = Wire(scalekit.serve, int(port), str(keys.server_file()), grpc_port)
    await wire.listen()
    control = Wire(Control(scalekit, wire, outgoing).serve, int(control_port), None, None)
    await control.listen()
    await asyncio.Event().wait()
    del kept


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        arguments = sys.argv[1:]
        if not arguments:
            keys = Keys(greeting.folder())
            print(greeting.text(keys.ca_file), flush=True)
            ports = str(greeting.PORT), str(greeting.CONTROL_PORT)
            arguments = [*ports, str(keys.folder), greeting.CLIENT_ID, CLIENT_SECRET, WEBHOOK_SECRET]
        asyncio.run(main(*arguments))
