"""The settings about watching a process: its log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
        Field(description="Whether each good answer of `/healthz`, `/readyz` and `/metrics` has a line in the log."),
    ] = False
