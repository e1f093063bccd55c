"""The schemas of the contract (JSON Schema in OpenAPI 3.1), in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Json = Mapping[str, Any]

_FORMATS = {"uuid": "UUID", "date-time": "moment"}
_LONGEST_PATTERN = 60  # characters: a longer one is for programs alone


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an object."""

    name: str
    required: bool
    type: str
    """The type of its value, in words."""
    of: str | None
    """The name of the object that its value is, or that its items are."""
    description: str
    bounds: tuple[str, ...]
    """The bounds that a value must keep to."""


class Schemas:
    """The named schemas of a contract."""

    def __init__(self, contract: Json) -> None:
        self._named: Json = contract["components"]["schemas"]

    def name_of(self, schema: Json) -> str | None:
        """The name under which a schema stands in the contract, or None."""
        reference: str = self._value(schema).get("$ref", "")
        return reference.rpartition("/")[2] or None

    def resolved(self, schema: Json) -> Json:
        """The schema itself, where only its name was given. Null, as a further possibility, is left out."""
        name = self.name_of(schema)
        return self._value(schema) if name is None else self.resolved(self._named[name])

    def members(self, schema: Json) -> Iterator[Member]:
        """The members of an object."""
        whole = self.resolved(schema)
        for name, each in whole.get("properties", {}).items():
            value = self._value(each)
            items = self._value(value.get("items", {}))
            yield Member(
                name,
                name in whole.get("required", ()),
                self.type_of(each),
                self.name_of(value) or self.name_of(items),
                each.get("description") or value.get("description") or self.resolved(value).get("description", ""),
                tuple(_bounds(value)) or tuple(_bounds(items)),
            )

    def parameter(self, parameter: Json) -> Member:
        """A parameter of an operation, as a member. Its type also tells where in the request it stands."""
        [found] = self.members({"properties": {parameter["name"]: parameter.get("schema", {})}})
        return replace(
            found,
            required=parameter.get("required", False),
            type=f"{found.type}, in the {parameter['in']}",
            description=parameter.get("description", ""),
        )

    def type_of(self, schema: Json) -> str:
        """The type in words, as "list of strings or null"."""
        value = self._value(schema)
        name = self.name_of(value)
        if name is not None:
            words = "object" if self.resolved(value).get("type") == "object" else self.type_of(self.resolved(value))
        elif value.get("type") == "array":
            words = f"list of {self.type_of(value.get('items', {}))}s"
        else:
            words = _FORMATS.get(value.get("format", "")) or str(value.get("type", "any value"))
        return f"{words} or null" if {"type": "null"} in schema.get("anyOf", ()) else words

    def _value(self, schema: Json) -> Json:
        """The one schema of several that is not null."""
        several = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
        return self._value(several[0]) if len(several) == 1 else schema


def _bounds(value: Json) -> Iterator[str]:
    if "enum" in value:
        yield "one of " + ", ".join(f"`{word}`" for word in value["enum"])
    if "const" in value:
        yield f"always `{value['const']}`"
    for least, most, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("", "maxItems", " items"),
    ):
        match value.get(least), value.get(most):
            case None, None:
                pass
            case low, None:
                yield f"at least {low:g}{unit}"
            case None, high:
                yield f"at most {high:g}{unit}"
            case low, high:
                yield f"{low:g} to {high:g}{unit}"
    if len(pattern := value.get("pattern", "")) in range(1, _LONGEST_PATTERN):
        yield f"matches `{pattern}`"
