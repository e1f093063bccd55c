"""The settings about watching a process: its log, its metrics and its traces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from .log_console import LogFormat
from .place import Place


class WatchingSettings(Place):
    """The settings about watching a process."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")] = (
        "info"
    )
    log_format: Annotated[
        LogFormat,
        Field(description="`auto`: lines for people where stderr is a terminal, JSON elsewhere (docs/logs.md)."),
    ] = "auto"
    log_probes: Annotated[
        bool,
        Field(
            description="Whether each good answer of `/healthz`, `/readyz` and `/metrics` has a line in the log, and "
            "each request to them a span (docs/tracing.md)."
        ),
    ] = False
    tracing: Annotated[
        bool,
        Field(description="Whether requests are traced by OpenTelemetry: needs `keyturn[tracing]` (docs/tracing.md)."),
    ] = False
    metrics_port: Annotated[
        int | None,
        Field(
            ge=1,
            le=65535,
            description="Port for `/metrics`, `/healthz` and `/readyz` alone (docs/metrics.md). Unset: none.",
        ),
    ] = None
    metrics_host: Annotated[
        str,
        Field(min_length=1, description="Address to listen on for METRICS_PORT. In a container: `0.0.0.0`."),
    ] = "127.0.0.1"
    metrics_token: Annotated[
        SecretStr | None,
        Field(
            description="Bearer token for `/metrics`, 16 characters at least: on METRICS_PORT, or else on PORT. "
            "Neither set: 404.",
        ),
    ] = None

    @property
    def metrics_bearer(self) -> str | None:
        """The token that a scraper has to show, or None."""
        return self.metrics_token.get_secret_value() if self.metrics_token else None

    def watching_rules(self, port: int) -> Iterator[tuple[bool, str]]:
        """For each rule on these settings and PORT: whether it is broken, and its message."""
        token = self.metrics_bearer
        yield (
            self.metrics_port is not None and self.metrics_port == port,
            "KEYTURN_METRICS_PORT must not be KEYTURN_PORT: set KEYTURN_METRICS_TOKEN alone to serve metrics there",
        )
        yield (
            token is not None and re.fullmatch(r"[\x21-\x7e]{16,}", token) is None,
            "KEYTURN_METRICS_TOKEN must have at least 16 characters, all of them ASCII and none a blank",
        )
