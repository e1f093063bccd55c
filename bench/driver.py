"""The load driver (driver.c): its options and its results."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.programs import compiled

REFRESH = '{"refresh_token": "%s"}'


@dataclass(frozen=True)
class Load:
    """One run of the driver. The fields are the driver's options (see the head of driver.c)."""

    path: str
    method: Literal["GET", "POST"] = "POST"
    connections: int = 32
    seconds: float = 5
    warm: float = 1
    rate: float = 0  # requests a second (open loop); 0: closed loop
    count: int = 0
    body: str = ""
    type: str = "application/json"
    tokens: Path | None = None
    use: Literal["chain", "draw", "cycle", "once", "list"] | None = None
    out: Path | None = None
    bearer: bool = False
    cookies: bool = False
    field: str = ""  # an additional header field
    expect: int = 200

    def command(self, port: int) -> list[str]:
        """The command line of the driver for this load on a port of 127.0.0.1."""
        given = {name: value for name, value in vars(self).items() if name != "path" and value not in {None, ""}}
        words = [
            word
            for name, value in given.items()
            for word in (name, str(int(value) if isinstance(value, bool) else value))
        ]
        return [str(compiled("driver")), "127.0.0.1", str(port), self.path, *words]


@dataclass(frozen=True)
class Result:
    """The figures of the driver: latencies in microseconds, the rate in acknowledged requests a second."""

    seconds: float
    rate: float
    acknowledged: int  # within the measured seconds
    total: int  # acknowledged, including the warm-up
    issued: int
    errors: int
    unanswered: int
    unsent: int  # due in an open loop but never sent
    statuses: dict[str, int]
    latency: dict[str, float]
    cpu_seconds: float
    cpu_us: float

    def fault(self, expect: int = 200) -> str | None:
        """The reason why the run is void by its answers alone, or None. `Books` adds the reasons of the database."""
        others = {status: n for status, n in self.statuses.items() if status != str(expect)}
        if others or self.errors:
            return f"answers other than {expect}: {others}, errors: {self.errors}"
        return None


class Driving:
    """A driver that runs in the background."""

    def __init__(self, load: Load, port: int) -> None:
        self._process = subprocess.Popen(load.command(port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def result(self) -> Result:
        """Waits until the driver ends. Raises RuntimeError if the driver failed."""
        out, err = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(err.strip() or f"driver: exit code {self._process.returncode}")
        fields: dict[str, Any] = json.loads(out)
        return Result(**fields)

    def close(self) -> None:
        """Kills the driver."""
        self._process.kill()
        self._process.communicate()


def drive(load: Load, port: int) -> Result:
    """Runs the driver against a port of 127.0.0.1. Raises RuntimeError if the driver failed."""
    driving = Driving(load, port)
    try:
        return driving.result()
    except BaseException:
        driving.close()
        raise
