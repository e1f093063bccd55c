"""The log: one JSON object a line on stderr, and no secret in it. On a terminal, `log_console` shows these lines.

Call ``configure`` once at start, and ``get_logger().info("event", name=value)`` everywhere. Records that libraries
give to ``logging`` get the same form. JSON escapes every value, so no input can begin a second line. No code gives a
secret to the log. In case one does, every line passes ``redact`` before it is written.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import logging.config
import re
import sys
import time
from collections.abc import Hashable, Mapping, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import structlog

from .log_console import LogFormat, Shown, shown_on

REDACTED = "[redacted]"

request_in_hand: ContextVar[tuple[str, str | None]] = ContextVar("request_in_hand", default=("", None))
"""The request's id and its client's address, for all further lines of the task that sets them and of the tasks that it
starts."""
_MAX_CLIENT = 64  # characters: a trusted proxy may name any text as the client's address

_SECRET_NAME = re.compile(r"(?:^|[_-])(?:passwords?|secrets?|tokens?|authorization|cookies?)$", re.IGNORECASE)

# Our refresh tokens, the proofs of known devices and any JWT, anywhere in a text. The pattern matches only characters
# of a token, so a finished JSON line stays JSON when one is cut out. A JWT without its signature matches too, because
# its claims are private.
_TOKEN = re.compile(r"kt[rd]_[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*)*")
_SEVERAL_WORDS = re.compile(r"[\s:=,]")  # a text without any of these matches none of the patterns below
_IN_TEXT = (
    # A header field, as text or as a pair in a repr. Its value may hold spaces and "=", so the rest of the line is cut.
    re.compile(r"""((?:authorization|cookie)["']?\s*[:=,]\s*)b?["']?[^"'\r\n]+["']?""", re.IGNORECASE),
    # A member or an argument: password=…, "client_secret": "…", password='…'.
    re.compile(
        r"""((?:password|secret|(?<!invalid_)token)["']?\s*[:=]\s*)(?:b?"(?:[^"\\]|\\.)*"|b?'(?:[^'\\]|\\.)*'|[^\s,;&"')}\]]+)""",
        re.IGNORECASE,
    ),
    re.compile(r"(\b(?:bearer|basic|dpop)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE),
    # Postgres quotes the row that failed a constraint, with all its values.
    re.compile(r"(\bDETAIL:)[^\r\n]*"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).+?(?:-----END|\Z)", re.DOTALL),
)


def redact(value: Any) -> Any:
    """The value as it may be logged: a part that looks like a secret, or has a secret's name, is ``[redacted]``."""
    match value:
        case str():
            return _redact_text(value)
        case None | bool() | int() | float():
            return value
        case dict() | Mapping():  # dict first: every request comes here, and the check of an abstract class is slow
            return {
                _redact_text(str(name)): REDACTED if _names_a_secret(name) else redact(member)
                for name, member in value.items()
            }
        case (str() | bytes() as name, _) if _names_a_secret(name):
            return [redact(name), REDACTED]  # a header field as ASGI has it
        case list() | tuple() | set() | frozenset():
            return [redact(member) for member in value]
        case _:  # any other type becomes its repr, which is searched like any text
            return _redact_text(repr(value))


@lru_cache(maxsize=1024)  # the names of a log are few
def _names_a_secret(name: Hashable) -> bool:
    return _SECRET_NAME.search(name.decode("latin-1") if isinstance(name, bytes) else str(name)) is not None


def _redact_text(text: str) -> str:
    text = redact_tokens(text)
    if not _SEVERAL_WORDS.search(text):
        return text
    for pattern in _IN_TEXT:
        text = pattern.sub(r"\1" + REDACTED, text)
    return text


def redact_tokens(text: str) -> str:
    """The text without refresh tokens and JWTs. Fast if there are none."""
    return _TOKEN.sub(REDACTED, text) if "ktr_" in text or "eyJ" in text or "ktd_" in text else text


def write(line: str) -> None:
    """Writes finished lines of JSON. A log that can't be written (closed, disk full) never stops the service."""
    if _waiting:  # these are older
        line = "\n".join((*_waiting, line))
        _waiting.clear()
    if _show is not None:
        line = _show(line)
    try:
        sys.stderr.write(line + "\n")
    except (OSError, ValueError):
        return


_waiting: list[str] = []


def info_soon(start: str) -> None:
    """Writes a line at the end of this turn of the event loop, with the others of the turn.

    `start` is the line as JSON text without its end, already redacted. Level and timestamp are added.
    """
    if not _waiting:
        asyncio.get_running_loop().call_soon(flush)
    _waiting.append(f'{start}, "level": "info", "timestamp": "{timestamp()}"}}')


def flush() -> None:
    """Writes the lines that `info_soon` has taken."""
    if _waiting:
        write(_waiting.pop())


def timestamp() -> str:
    """Now, as log lines have it: ISO 8601, UTC, microseconds."""
    microseconds = time.time_ns() // 1000
    return f"{_second(microseconds // 1_000_000)}.{microseconds % 1_000_000:06d}Z"


@lru_cache(maxsize=2)
def _second(since_1970: int) -> str:
    return datetime.fromtimestamp(since_1970, UTC).strftime("%Y-%m-%dT%H:%M:%S")


quote = json.encoder.encode_basestring_ascii
"""A text as a JSON string, in ASCII: control characters, quotes and lone surrogates are escaped."""


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The logger. ``exc_info=True`` adds the traceback as text, without local variables."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def shown_client(address: str) -> str:
    """A client's address as it may be logged."""
    return redact_tokens(address)[:_MAX_CLIENT]


def configure(level: str = "info", form: LogFormat = "json") -> None:
    """Logs from this level (``debug``, ``info``, ``warning``, ``error``) on; takes in ``logging`` and warnings."""
    logging.config.dictConfig(logging_config(level, form))
    logging.captureWarnings(capture=True)


def logging_config(level: str = "info", form: LogFormat = "json") -> dict[str, Any]:
    """``logging``'s configuration, to give to ``uvicorn.Config(log_config=…)`` as well.

    Records of libraries below WARNING are dropped: in these, SQLAlchemy would write parameters and asyncio its
    internals. uvicorn's access lines are off, because they hold query strings; ``app.http.access_line`` writes ours.
    """
    least = max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()])
    return {
        "version": 1,
        "disable_existing_loggers": False,
        # uvicorn sends the configuration to its worker processes: so the handler is a name, with plain parameters.
        "handlers": {"keyturn": {"()": f"{__name__}.Handler", "least": level, "form": form}},
        "root": {"handlers": ["keyturn"], "level": least},
        "loggers": {
            "uvicorn": {"handlers": [], "level": level.upper(), "propagate": True},
            "uvicorn.error": {"handlers": [], "level": level.upper(), "propagate": True},
            "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
        },
    }


class Handler(logging.Handler):
    """Writes ``logging``'s records in the form of this log. ``least`` is the lowest level that is logged."""

    def __init__(self, least: str = "info", form: LogFormat = "json") -> None:
        super().__init__()
        _configure_structlog(least)
        global _show  # noqa: PLW0603  # as in `_configure_structlog`
        _show = shown_on(sys.stderr, form)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record as a line. Never calls ``handleError``, which prints the arguments unredacted."""
        try:
            event = record.getMessage().strip()
        except Exception:  # noqa: BLE001  # an argument may raise any error when it is formatted
            event = "a log line could not be formatted"
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        structlog.get_logger().log(level, event, logger=record.name, exc_info=record.exc_info)


class _Stderr:
    """structlog's output. Looks stderr up for each line, because a caller may replace it."""

    def msg(self, line: str) -> None:
        write(line)

    debug = info = warning = error = critical = exception = log = msg


def _with_request(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id, client = request_in_hand.get()
    if client:
        event["client"] = shown_client(client)
    if request_id:
        event["request_id"] = request_id
    return event


def _redacted(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    redacted: dict[str, Any] = redact(event)
    return redacted


def _configure_structlog(level: str) -> None:
    global least  # noqa: PLW0603  # one log for one process, as structlog's and logging's own configuration
    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            _with_request,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redacted,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )


atexit.register(flush)
least = logging.INFO
"""The lowest level that is logged."""
_show: Shown | None = None
_configure_structlog("info")  # so that lines before the first `configure` are redacted too
