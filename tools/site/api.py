"""The reference of the API as Markdown, made from the contract: the same facts as the page `/docs` of a service."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from app.http.examples import of_answer
from app.pages.operations import Operation, content_of, operations
from app.pages.schemas import Member, Schemas

_CONTRACT = Path(__file__).parents[2] / "openapi" / "openapi.json"  # tests/test_openapi.py holds it current

_BASE = "http://127.0.0.1:8000"

_HEAD = """\
# API

This page is made from the contract, `openapi/openapi.json`. A running service shows the same at `/docs`, and gives the
contract to programs at `/openapi.json`. [clients.md](clients.md) says what a client does with each answer.

"""


def api() -> str:
    """The page, as Markdown."""
    document: dict[str, Any] = json.loads(_CONTRACT.read_text(encoding="utf-8"))
    found, common = operations(document)
    order = [tag["name"] for tag in document.get("tags", ())]
    about = {tag["name"]: tag.get("description", "") for tag in document.get("tags", ())}
    schemas = Schemas(document)
    parts = [_HEAD, "## Refusals that every operation may give\n\n| status | when |\n|---|---|\n"]
    parts += [f"| {status} | {_cell(sentence)} |\n" for status, sentence in common.items()]
    linked = {"ErrorAnswer"}
    for name, each in groupby(sorted(found, key=lambda one: order.index(one.group)), key=lambda one: one.group):
        parts.append(f"\n## {name[:1].upper()}{name[1:]}\n\n{about[name]}\n")
        parts += [text for one in each for text in _operation(one, schemas, linked)]
    parts.append("\n## Objects\n")
    parts += _objects(schemas, linked, document["components"]["schemas"])
    return "".join(parts)


def _operation(one: Operation, schemas: Schemas, linked: set[str]) -> Iterator[str]:
    yield f"\n### {one.title}\n\n`{one.method} {one.path}`\n\n"
    if one.description:
        yield f"{one.description}\n\n"
    names = " or ".join(f"`{name}`" for name in one.credentials)
    yield f"Credentials: {names}{'' if one.needs_credentials else ', or none'}.\n" if names else "Credentials: none.\n"
    parameters = [schemas.parameter(each) for each in one.parameters]
    body = list(schemas.members(one.body)) if one.media_type else []
    if parameters or body:
        yield "\n| field | type | meaning |\n|---|---|---|\n"
        yield from _rows((*parameters, *body), linked)
    yield f"\n```bash\n{one.curl(_BASE)}\n```\n\n| status | answer |\n|---|---|\n"
    for status, answer in one.answers.items():
        media_type, schema, _ = content_of(answer)
        name = schemas.name_of(schema)
        linked |= {name} if name else set()
        good = answer.get("description", "")
        shown = f"[{name}](#{name.lower()})" if name else f"`{media_type}`" if media_type else "No body."
        yield f"| {status} | {shown}{'' if good in {'', 'Successful Response'} else f' {_cell(good)}'} |\n"
    for status, answer in one.refusals.items():
        yield f"| {status} | {_cell(answer['description'])} |\n"


def _objects(schemas: Schemas, linked: set[str], named: Mapping[str, Any]) -> Iterator[str]:
    """The objects that a table names, and those that they name in turn."""
    made: dict[str, str] = {}
    while missing := sorted(linked - made.keys()):
        for name in missing:
            schema = {"$ref": f"#/components/schemas/{name}"}
            about = schemas.resolved(schema).get("description", "")
            rows = "".join(_rows(schemas.members(schema), linked))
            table = f"\n| field | type | meaning |\n|---|---|---|\n{rows}" if rows else ""
            example = json.dumps(of_answer(schema, named), ensure_ascii=False, indent=2)
            made[name] = f"\n### {name}\n\n{about}\n{table}\n```json\n{example}\n```\n"
    yield from (made[name] for name in sorted(made))


def _rows(members: Iterable[Member], linked: set[str]) -> Iterator[str]:
    for each in sorted(members, key=lambda member: not member.required):  # stable: else as in the contract
        linked |= {each.of} if each.of else set()
        kind = f"[{each.of}](#{each.of.lower()})" if each.of else each.type
        kind += "" if each.required else ", optional"
        bounds = f"{'; '.join(each.bounds)}." if each.bounds else ""
        meaning = " ".join(words for words in (each.description, bounds[:1].upper() + bounds[1:]) if words)
        yield f"| `{each.name}` | {_cell(kind)} | {_cell(meaning)} |\n"


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")
