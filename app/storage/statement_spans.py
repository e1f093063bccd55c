"""The spans of SQL statements, where tracing is on.

A span has the kind of the statement and its first table, and never its text: a text could have a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from .. import tracing
from .outages import sqlstate

if TYPE_CHECKING:
    from ..tracing import Span

_WRITES = re.compile(r"(?<!FOR )(?<!KEY )(?<!DO )\b(INSERT|UPDATE|DELETE)\b(?: INTO| FROM)? +(\w+)", re.IGNORECASE)
_READS = re.compile(r"\b(SELECT)\b.*?\bFROM +(\w+)", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(r"\s*(\w+)")


@lru_cache(maxsize=1024)  # the statements of Keyturn are few
def named(statement: str) -> tuple[str, str]:
    """The kind of a statement, and the table that it changes or reads first. Either may be empty."""
    if found := _WRITES.search(statement) or _READS.search(statement):
        return found[1].upper(), found[2].lower()
    word = _WORD.match(statement)
    return (word[1].upper() if word else ""), ""


def begin(statement: str, system: str) -> Span | None:
    """Begins the span of a statement. None: the work in hand is not recorded."""
    active = tracing.active
    if active is None or active.above() is None:
        return None
    kind, table = named(statement)
    attributes = {"db.system.name": system, "db.operation.name": kind, "db.collection.name": table}
    return active.part(f"{kind} {table}".strip(), {name: value for name, value in attributes.items() if value})


def end(span: Span | None, error: BaseException | None = None) -> None:
    """Ends the span of a statement, with the SQLSTATE of an error or the name of its class."""
    if span is not None and tracing.active is not None:
        tracing.active.end(span, None if error is None else sqlstate(error) or type(error).__name__)


def transaction(system: str) -> AbstractContextManager[None]:
    """The span of a transaction, above those of its statements; nothing without tracing."""
    return nullcontext() if tracing.active is None else tracing.active.transaction(system)


def watch(engines: Iterable[AsyncEngine], system: str) -> None:
    """Makes a span for each statement that goes through SQLAlchemy on these engines, and on those made from them.

    Without tracing, the engines stay as they are.
    """
    if tracing.active is None:
        return

    def before(_c: object, _cursor: object, statement: str, _parameters: object, context: Any, _many: object) -> None:
        context.keyturn_span = begin(statement, system)

    def after(_c: object, _cursor: object, _text: str, _parameters: object, context: Any, _many: object) -> None:
        end(context.keyturn_span)

    def failed(about: Any) -> None:
        context = about.execution_context
        end(getattr(context, "keyturn_span", None), about.original_exception)

    for engine in set(engines):
        event.listen(engine.sync_engine, "before_cursor_execute", before)
        event.listen(engine.sync_engine, "after_cursor_execute", after)
        event.listen(engine.sync_engine, "handle_error", failed)
