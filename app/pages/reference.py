"""The reference of the API as one page, made from the contract. Each operation and each object has an anchor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from markupsafe import Markup

from .html_page import MARK, html_page
from .markup import code, element, inline, joined, link, listing, prose
from .operations import Operation, content_of, operations, written
from .schemas import Json, Member, Schemas


def reference(contract: Mapping[str, Any], names: Mapping[str, str]) -> bytes:
    """The page.

    Args:
        contract: the OpenAPI document. Its last server is the public URL of the service.
        names: the cookie of each scheme that is one, as this service names it.
    """
    found, common = operations(contract)
    order = [tag["name"] for tag in contract.get("tags", ())]
    found = tuple(sorted(found, key=lambda each: order.index(each.group)))  # stable: within a group as in the contract
    about = {tag["name"]: tag.get("description", "") for tag in contract.get("tags", ())}
    groups = [(name, about[name], tuple(each)) for name, each in groupby(found, key=lambda each: each.group)]
    return html_page(
        "Keyturn · API reference",
        link("#content", "Skip to the content", class_="skip"),
        element(
            "header",
            link("./", MARK, element("span", "Keyturn"), class_="brand"),
            link("#operations", "All operations", class_="back"),  # shown where the list is not beside the text
        ),
        _navigation(groups),
        element("main", *_parts(contract, groups, common, names), id="content"),
        kind="reference",
    )


def _navigation(groups: Iterable[tuple[str, str, tuple[Operation, ...]]]) -> Markup:
    lists = [
        element("li", link(f"#{_group_id(name)}", _titled(name), class_="group"), _list_of(each))
        for name, _, each in groups
    ]
    first = element("li", link("#basics", "Basics", class_="group"))
    last = element("li", link("#objects", "Objects", class_="group"))
    return element("nav", element("ul", first, *lists, last), id="operations", aria_label="Operations")


def _list_of(each: Iterable[Operation]) -> Markup:
    return element("ul", *(element("li", link(f"#{one.id}", one.title)) for one in each))


def _parts(
    contract: Json,
    groups: Iterable[tuple[str, str, tuple[Operation, ...]]],
    common: Mapping[str, str],
    names: Mapping[str, str],
) -> Iterable[Markup]:
    schemas = Schemas(contract)
    base = contract["servers"][-1]["url"].rstrip("/")
    yield element(
        "section",
        element("h1", "API reference"),
        prose(contract["info"]["description"]),
        element("h2", "Basics", id="basics"),
        element("p", "Base address: ", code(base), ". Version: ", code(contract["info"]["version"]), "."),
        element("p", "For programs, this page is ", link("openapi.json", "openapi.json"), "."),
        element("p", "A page named ", code("docs/…"), " below comes with the source of Keyturn."),
        element("h3", "Credentials", id="credentials"),
        element(
            "dl",
            *(
                _described(
                    code(name),
                    scheme.get("description", ""),
                    code(names.get(name, scheme.get("name", "Authorization"))),
                )
                for name, scheme in contract["components"].get("securitySchemes", {}).items()
            ),
        ),
        element("h3", "Refusals that every operation may give", id="refusals"),
        element("p", "Each refusal is an ", link("#ErrorAnswer", "ErrorAnswer"), ". These are not repeated below."),
        element(
            "dl", *(_described(_status(status), sentence) for status, sentence in common.items()), class_="answers"
        ),
    )
    linked = {"ErrorAnswer"}
    for name, about, each in groups:
        yield element(
            "section",
            element("h2", _titled(name), id=_group_id(name)),
            prose(about),
            *(_operation(one, base, schemas, linked) for one in each),
        )
    yield element("section", element("h2", "Objects", id="objects"), *_objects(schemas, linked))


def _objects(schemas: Schemas, linked: set[str]) -> list[Markup]:
    """The objects to which members link, and those to which these link in turn."""
    made: dict[str, Markup] = {}
    while missing := linked - made.keys():
        for name in missing:
            schema = {"$ref": f"#/components/schemas/{name}"}
            made[name] = element(
                "article",
                element("h3", name, id=name),
                prose(schemas.resolved(schema).get("description", "")),
                _members(schemas.members(schema), linked),
            )
    return [made[name] for name in sorted(made)]


def _operation(one: Operation, base: str, schemas: Schemas, linked: set[str]) -> Markup:
    parts = [
        element("h3", link(f"#{one.id}", one.title), id=one.id),
        element("p", element("b", one.method, class_=one.method.lower()), " ", code(one.path), class_="line"),
        prose(one.description),
        _credentials(one),
    ]
    if one.parameters:
        parts += [element("h4", "Parameters"), _members(map(schemas.parameter, one.parameters), linked)]
    if one.media_type:
        parts += [
            element("h4", "Body", element("small", " optional") if one.body_is_optional else ""),
            _members(schemas.members(one.body), linked),
        ]
    parts += [element("h4", "Example"), listing(one.curl(base))]
    for status, answer in one.answers.items():
        media_type, schema, shown = content_of(answer)
        good = answer.get("description", "")
        parts.append(element("h4", "Answer ", _status(status), "" if good == "Successful Response" else f" {good}"))
        members = tuple(schemas.members(schema)) if media_type else ()
        if members:
            example = element("summary", "Example of the answer")
            parts += [
                _members(members, linked),
                element("details", example, listing(written(shown))),
            ]
        elif media_type:
            parts.append(element("p", "Media type: ", code(media_type), "."))
        else:
            parts.append(element("p", "No body."))
    if one.refusals:
        described = (_described(_status(k), v["description"]) for k, v in one.refusals.items())
        parts += [element("h4", "Refusals"), element("dl", *described, class_="answers")]
    return element("article", *parts)


def _credentials(one: Operation) -> Markup:
    if not one.credentials:
        return element("p", "Credentials: none.", class_="aside")
    names = joined(*(joined(" or " if n else "", code(name)) for n, name in enumerate(one.credentials)))
    optional = "" if one.needs_credentials else ", or none"
    return element("p", link("#credentials", "Credentials"), ": ", names, optional, ".", class_="aside")


def _members(members: Iterable[Member], linked: set[str]) -> Markup:
    rows = []
    for each in sorted(members, key=lambda member: not member.required):
        linked |= {each.of} if each.of else set()
        about = [element("span", each.type, class_="type")]
        about += [link(f"#{each.of}", each.of)] if each.of else []
        about += [] if each.required else [element("span", "optional", class_="type")]
        bounds = (
            element("p", inline(_titled("; ".join(each.bounds)) + "."), class_="aside") if each.bounds else Markup("")
        )
        rows.append(_described(code(each.name), each.description, *about, more=bounds))
    return element("dl", *rows)


def _described(term: Markup, description: str, *about: Markup, more: Markup = Markup("")) -> Markup:  # noqa: B008  # constant
    heads = joined(term, *(joined(Markup(" "), each) for each in about))
    return element("div", element("dt", heads), element("dd", prose(description), more))


def _status(status: str) -> Markup:
    return element("b", status, class_=f"status of{status[0]}")


def _titled(words: str) -> str:
    return words[:1].upper() + words[1:]


def _group_id(name: str) -> str:
    return f"group-{name}"
