"""`keyturn serve`: makes what a first start needs, checks the set-up, and runs uvicorn."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from .. import log, tracing
from ..http import open_files
from ..keyturn import opened, running
from ..metric_slots import Slots
from ..settings import Settings, read
from ..settings_values import url
from ..users.administrators import administrators
from ..users.first_administrator import first_administrator
from ..worker import Worker
from .addresses import listen
from .arguments import Words, add_word, whole
from .first_start import prepare
from .greeting import greeting
from .keys import other_algorithm
from .users import ran_out


def add_to(words: Words) -> None:
    """Adds the command."""
    parser = add_word(words, "serve", "start the service")
    parser.add_argument("--host", help=f"address to listen on (default: KEYTURN_HOST, or {_default('host')})")
    parser.add_argument(
        "--port", type=whole, metavar="N", help=f"port to listen on (default: KEYTURN_PORT, or {_default('port')})"
    )
    parser.add_argument(
        "--workers", type=whole, metavar="N", help=f"processes (default: KEYTURN_WORKERS, or {_default('workers')})"
    )
    parser.set_defaults(run=_serve)


def _default(setting: str) -> object:
    return Settings.model_fields[setting].default


def _serve(_arguments: argparse.Namespace) -> int:
    settings = read()
    if settings.tracing:
        tracing.require()
    open_files.raise_limit()
    # Bind before anything is made or printed, so that a taken address stops the start. For uvicorn would bind later,
    # and with several workers in another way than with one.
    sockets = listen(settings.host, settings.port)
    try:
        if settings.metrics_port is not None:
            sockets += listen(
                settings.metrics_host, settings.metrics_port, options=("KEYTURN_METRICS_HOST", "KEYTURN_METRICS_PORT")
            )
        return _serve_on(sockets, settings)
    finally:
        for each in sockets:
            each.close()


def _serve_on(sockets: list[socket.socket], settings: Settings) -> int:
    import uvicorn  # noqa: PLC0415  # takes 30 ms, and no other command needs it
    from uvicorn.supervisors import Multiprocess  # noqa: PLC0415  # as above

    from ..http.protocol import KeyturnHttpProtocol  # noqa: PLC0415  # as above

    port = sockets[0].getsockname()[1]
    prepare(settings)
    said, advice = asyncio.run(_check(settings, url(settings.host, port) + settings.root_path))
    if not settings.production:
        print(said, flush=True)
    log.configure(settings.log_level, settings.log_format)
    if advice:
        log.get_logger().warning("other_algorithm_signs", detail=advice)
    slots = Slots(settings.workers) if settings.workers > 1 else None
    config = uvicorn.Config(
        Worker(slots),
        factory=True,
        host=settings.host,
        port=port,
        workers=settings.workers,
        http=KeyturnHttpProtocol,
        ws="none",
        lifespan="on",
        log_config=log.logging_config(settings.log_level, settings.log_format),
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the edge reads them (app/http/client_addresses.py)
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)

    def end(*_: object) -> NoReturn:
        # Python drops an exception in the callback of a weak reference, as an import makes many. The server sees the
        # flag then, as soon as it has started.
        server.should_exit = True
        sys.exit(0)

    # When all is closed, uvicorn raises the signal that ended it again. An orderly end must not look like a failure.
    signal.signal(signal.SIGTERM, end)
    log.get_logger().info(f"Uvicorn running on {url(settings.host, port)} (Press CTRL+C to quit)")
    with suppress(KeyboardInterrupt):
        if settings.workers > 1:
            Multiprocess(config, sockets=sockets).run()
        else:
            server.run(sockets)
    return 0 if server.started or settings.workers > 1 else 3


async def _check(settings: Settings, url: str) -> tuple[str, str]:
    """Opens all parts once, so that a fault stops the start with one line and not with the traceback of a worker.

    Returns:
        The greeting of the embedded default, whose first start makes an administrator. Then what to type if another
        algorithm signs than the settings name.
    """
    async with opened(settings) as keyturn, running(keyturn):
        other = await other_algorithm(keyturn)
        if settings.production:
            return "", other
        made = await first_administrator(keyturn.db, keyturn.users)
        found = await administrators(keyturn.db)
        return greeting(settings, url, made=made, administrator=found.first, advice=ran_out(found)), other
