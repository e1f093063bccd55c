"""What of a contract would break a client that was written for an older one.

A client sends what the old contract lets it send, and reads what the old contract promises. So requests may only get
wider and answers only narrower. Names count too, because generated clients have them: ids of operations, schemas, tags.
What the old contract calls deprecated may go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

Json = Mapping[str, Any]
Way = Literal["request", "answer"]
UPPER = ("maxLength", "maximum", "exclusiveMaximum", "maxItems", "maxProperties")
LOWER = ("minLength", "minimum", "exclusiveMinimum", "minItems", "minProperties")
EVERY_TYPE = frozenset({"null", "boolean", "string", "integer", "number", "array", "object"})


def breaks(old: Json, new: Json) -> list[str]:
    """Each change from `old` to `new` that may break a client, as a sentence. Both are OpenAPI 3.1 documents."""
    return [*_Comparison(old, new).all()]


class _Comparison:
    def __init__(self, old: Json, new: Json) -> None:
        self.old, self.new = old, new
        self._open: set[tuple[Way, str, str]] = set()  # pairs of components that are being compared

    def all(self) -> Iterator[str]:
        for name in self.old["components"]["schemas"]:
            if name not in self.new["components"]["schemas"]:
                yield f"schema {name}: its name is gone"
        for path, methods in self.old["paths"].items():
            for method, operation in methods.items():
                where = f"{method.upper()} {path}"
                other = self.new["paths"].get(path, {}).get(method)
                if other is not None:
                    yield from (f"{where}: {each}" for each in self._operation(operation, other))
                elif not operation.get("deprecated"):
                    yield f"{where}: the operation is gone"

    def _operation(self, old: Json, new: Json) -> Iterator[str]:
        if old["operationId"] != new["operationId"]:
            yield f"its operationId was {old['operationId']}"
        if old["tags"][:1] != new["tags"][:1]:
            yield f"its first tag was {old['tags'][0]}"
        for scheme in old.get("security", []):
            if scheme not in new.get("security", []) and new.get("security"):
                yield f"credentials are refused: {', '.join(scheme) or 'none'}"
        if not old.get("security") and new.get("security") and {} not in new["security"]:
            yield "it asks for credentials"
        yield from self._parameters(old, new)
        yield from self._body(old.get("requestBody"), new.get("requestBody"))
        for status, answer in old["responses"].items():
            if status not in new["responses"]:
                yield f"status {status} is gone"
                continue
            yield from (f"{status}: {each}" for each in self._answer(answer, new["responses"][status]))

    def _parameters(self, old: Json, new: Json) -> Iterator[str]:
        before = {(each["in"], each["name"]): each for each in old.get("parameters", ())}
        after = {(each["in"], each["name"]): each for each in new.get("parameters", ())}
        for key, parameter in before.items():
            if key not in after:
                if not parameter.get("deprecated"):
                    yield f"parameter {key[1]} is gone"
                continue
            yield from self._schemas(f"parameter {key[1]}", parameter["schema"], after[key]["schema"], "request")
        for key, parameter in after.items():
            if parameter.get("required") and not before.get(key, {}).get("required"):
                yield f"parameter {key[1]} is required"

    def _body(self, old: Json | None, new: Json | None) -> Iterator[str]:
        if old is None:
            if new is not None and new.get("required"):
                yield "a body is required"
        elif new is None:
            yield "the body is gone"
        else:
            if new.get("required") and not old.get("required"):
                yield "a body is required"
            yield from self._contents(old, new, "request")

    def _answer(self, old: Json, new: Json) -> Iterator[str]:
        for name in old.get("headers", {}):
            if name not in new.get("headers", {}):
                yield f"header field {name} is gone"
        yield from self._contents(old, new, "answer")

    def _contents(self, old: Json, new: Json, way: Way) -> Iterator[str]:
        for kind, content in old.get("content", {}).items():
            if kind not in new.get("content", {}):
                yield f"media type {kind} is gone"
            else:
                yield from self._schemas("body", content["schema"], new["content"][kind]["schema"], way)

    def _schemas(self, where: str, old: Json, new: Json, way: Way) -> Iterator[str]:
        """Each form that the sender may send needs one that the reader takes."""
        sent, taken = (_forms(self.old, old), _forms(self.new, new))
        if way == "answer":
            sent, taken = taken, sent
        for name, form in sent:
            found = None
            for other_name, other in taken:
                if not _types(form) <= _types(other):
                    continue
                one, two = ((name, form), (other_name, other))[:: 1 if way == "request" else -1]
                faults = [*self._forms(where, one, two, way)]
                found = faults if found is None else min(found, faults, key=len)
            if found is None:
                yield f"{where}: its type was {_said(_forms(self.old, old))}, and is {_said(_forms(self.new, new))}"
            else:
                yield from found

    def _forms(self, where: str, old: tuple[str, Json], new: tuple[str, Json], way: Way) -> Iterator[str]:
        pair = (way, old[0], new[0])
        if pair in self._open:
            return
        if old[0]:
            self._open.add(pair)
        yield from self._members(where, old[1], new[1], way)
        sent, taken = (old[1], new[1]) if way == "request" else (new[1], old[1])
        yield from (f"{where}: {each}" for each in _narrower(sent, taken))
        if "items" in old[1] and "items" in new[1]:
            yield from self._schemas(f"{where}[]", old[1]["items"], new[1]["items"], way)
        before, after = old[1].get("additionalProperties"), new[1].get("additionalProperties")
        if isinstance(before, dict) and isinstance(after, dict):
            yield from self._schemas(f"{where}.*", before, after, way)
        self._open.discard(pair)

    def _members(self, where: str, old: Json, new: Json, way: Way) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, member in before.items():
            if name in after:
                yield from self._schemas(f"{where}.{name}", member, after[name], way)
            elif not member.get("deprecated"):
                yield f"{where}.{name} is gone"
        was, is_ = set(old.get("required", ())), set(new.get("required", ()))
        if way == "request":
            yield from (f"{where}.{name} is required" for name in sorted(is_ - was))
        else:
            gone = {name for name, member in before.items() if member.get("deprecated") and name not in after}
            yield from (f"{where}.{name} may be absent" for name in sorted((was - is_) - gone) if name in after)


def _forms(document: Json, schema: Json) -> list[tuple[str, Json]]:
    """The alternatives of a schema, each with its name, or with none."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return [(inner or name, form) for inner, form in _forms(document, document["components"]["schemas"][name])]
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return [form for each in several for form in _forms(document, each)]
    return [("", schema)]


def _types(schema: Json) -> frozenset[str]:
    kind = schema.get("type")
    if kind is None:
        return EVERY_TYPE
    kinds = {kind} if isinstance(kind, str) else set(kind)
    return frozenset(kinds | {"integer"} if "number" in kinds else kinds)


def _said(forms: list[tuple[str, Json]]) -> str:
    kinds = {form.get("type", "anything") for _, form in forms}
    return " or ".join(sorted(each if isinstance(each, str) else "/".join(each) for each in kinds))


def _words(schema: Json) -> set[str] | None:
    if "const" in schema:
        return {repr(schema["const"])}
    return {repr(each) for each in schema["enum"]} if "enum" in schema else None


def _narrower(sent: Json, taken: Json) -> Iterator[str]:
    """Why `taken` does not allow all that `sent` allows."""
    words, allowed = _words(sent), _words(taken)
    if allowed is not None and (words is None or not words <= allowed):
        missing = ", ".join(sorted(words - allowed)) if words is not None else "any other word"
        yield f"a reader of the enum does not take {missing}"
    for bound in UPPER:
        if bound in taken and not sent.get(bound, float("inf")) <= taken[bound]:
            yield f"{bound} {taken[bound]} is too low"
    for bound in LOWER:
        if bound in taken and not sent.get(bound, float("-inf")) >= taken[bound]:
            yield f"{bound} {taken[bound]} is too high"
    for word in ("pattern", "format"):
        if word in taken and sent.get(word) != taken[word] and words is None:
            yield f"{word} {taken[word]} does not take all"
    if taken.get("additionalProperties") is False and sent.get("additionalProperties", True) is not False:
        yield "other members are refused"
