"""Starts the product as its operators run it: in a process of its own, reached over HTTP."""

import http.client
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Self

from tests.sentinel import GRACE, Sentinel
from tests.servers import NotStartedError, on_free_port

ROOT = Path(__file__).resolve().parent.parent
START = 20.0  # seconds within which /readyz must answer 200


class Service:
    """`python -m app serve`, with exactly the given environment (and PATH, HOME, PYTHONPATH and coverage's variable).

    The service runs in an empty folder of its own. So no `.env` of the developer reaches it, and its files are removed
    with the folder.
    """

    port: int
    pid: int
    log: Path

    def __init__(self, sentinel: Sentinel) -> None:
        self._sentinel = sentinel

    @classmethod
    def start(
        cls,
        environment: Mapping[str, str],
        *,
        logs: Path,
        port: int | None = None,
        command: Sequence[str] = (sys.executable, "-m", "app", "serve"),
    ) -> Self:
        """Starts a service and waits until it is ready. Its stdout and stderr go to a new file in the folder `logs`.

        Raises NotStartedError, with that log, if the service ends or is not ready after 20 seconds.
        """
        service = cls(Sentinel())
        basis = {name: os.environ[name] for name in ("PATH", "HOME", "COVERAGE_PROCESS_CONFIG") if name in os.environ}
        basis["PYTHONPATH"] = str(ROOT)

        def launch(port: int) -> None:
            service.port = port
            descriptor, log = tempfile.mkstemp(prefix=f"service-{port}-", suffix=".log", dir=logs)
            os.close(descriptor)
            service.log = Path(log)
            arguments = [*command, "--port", str(port)]
            service.pid = service._sentinel.run(arguments, environment={**basis, **environment}, log=service.log)
            service._wait_until_ready()

        try:
            on_free_port(launch, port)
        except BaseException:
            service.close()
            raise
        return service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def text(self) -> str:
        """The service's stdout and stderr so far."""
        return self.log.read_text(errors="replace")

    def text_with(self, words: str, count: int = 1, seconds: float = 10) -> str:
        """The log as soon as `words` are in it `count` times, or after `seconds`: a request is logged after its answer."""
        end = monotonic() + seconds
        while self.text().count(words) < count and monotonic() < end:
            sleep(0.02)
        return self.text()

    def terminate(self, timeout: float = GRACE) -> int:
        """Sends SIGTERM and returns the exit code. Raises TimeoutError if that takes more than `timeout` seconds."""
        self._sentinel.signal(signal.SIGTERM)
        code = self._sentinel.wait(timeout)
        assert code is not None
        return code

    def kill(self) -> None:
        """Sends SIGKILL to the service and its descendants, and returns when they are gone."""
        self._sentinel.kill()

    def pause(self) -> None:
        self._sentinel.pause()

    def resume(self) -> None:
        self._sentinel.resume()

    def exit_code(self) -> int | None:
        """The exit code (negative: the signal that ended the service), or None while it runs."""
        return self._sentinel.exit_code()

    def close(self) -> None:
        """Ends the service if it still runs. The log stays."""
        self._sentinel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until_ready(self) -> None:
        try:
            code = self._sentinel.wait(START, self._ready)
        except TimeoutError:
            self._sentinel.kill()
            raise NotStartedError(f"not ready after {START} s\n{self.text()}") from None
        if code is not None:
            raise NotStartedError(f"exit code {code}\n{self.text()}")

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)  # no proxy of the environment
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        return False
