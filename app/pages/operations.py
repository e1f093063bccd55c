"""The operations of the contract (OpenAPI 3.1), each with all that its part of the reference shows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .schemas import Json

_FORM = "application/x-www-form-urlencoded"
_FIRST_REFUSAL = 400
_METHODS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    id: str
    group: str
    method: str
    path: str
    title: str
    description: str
    credentials: tuple[str, ...]
    """The names of the credentials of which it takes one. Empty if it takes none."""
    needs_credentials: bool
    parameters: tuple[Json, ...]
    media_type: str
    """The media type of the body. Empty if there is no body."""
    body: Json
    example: Any
    """An example of the body."""
    body_is_optional: bool
    answers: Mapping[str, Json]
    """By status: those of success."""
    refusals: Mapping[str, Json]
    """By status: those that not every operation has."""

    def curl(self, base: str) -> str:
        """A command that sends a request."""
        words = [f"curl {base}{self.path.replace('{', '$').replace('}', '')}"]
        if self.method not in {"GET", "POST"} or (self.method == "POST" and not self.media_type):
            words[0] = words[0].replace("curl", f"curl -X {self.method}", 1)
        if self.needs_credentials and "bearer" in self.credentials:
            words.append('-H "Authorization: Bearer $ACCESS_TOKEN"')
        if self.media_type == _FORM:
            words += [f"--data-urlencode {shlex.quote(f'{name}={value}')}" for name, value in self.example.items()]
        elif self.media_type:
            words += [f"-H 'Content-Type: {self.media_type}'", f"-d {shlex.quote(written(self.example))}"]
        return " \\\n  ".join(words)


def written(example: Any) -> str:
    """An example as JSON: on one line if that is short, else with one member on each line."""
    short = json.dumps(example, ensure_ascii=False)
    return short if len(short) <= 60 else json.dumps(example, ensure_ascii=False, indent=2)  # noqa: PLR2004  # columns


def operations(contract: Json) -> tuple[tuple[Operation, ...], Mapping[str, str]]:
    """All operations, and by status what each operation (or each that takes a body) is refused with alike."""
    found = [
        (path, method, each)
        for path, methods in contract["paths"].items()
        for method, each in methods.items()
        if method in _METHODS
    ]
    common = dict(_common([each for *_, each in found]))
    common |= {k: v for k, v in _common([each for *_, each in found if "requestBody" in each]) if k not in common}
    return tuple(_operation(path, method, each, common) for path, method, each in found), dict(sorted(common.items()))


def _common(of: list[Json]) -> Iterator[tuple[str, str]]:
    """The refusals that are alike in nearly all of these: status and sentence."""
    for status in {status for each in of for status in each["responses"] if int(status) >= _FIRST_REFUSAL}:
        sentences = [each["responses"][status]["description"] for each in of if status in each["responses"]]
        usual = min(sentences, key=len)
        if len(sentences) == len(of) and all(sentence.startswith(usual) for sentence in sentences):
            yield status, usual


def _operation(path: str, method: str, each: Json, common: Mapping[str, str]) -> Operation:
    content = each.get("requestBody", {}).get("content", {})
    media_type = next(iter(content), "")
    credentials = [name for needed in each.get("security", ()) for name in needed]
    answers: dict[str, Json] = each["responses"]
    return Operation(
        id=each["operationId"],
        group=each["tags"][0],
        method=method.upper(),
        path=path,
        title=_sentence(each.get("summary", each["operationId"])),
        description=each.get("description", ""),
        credentials=tuple(credentials),
        needs_credentials=bool(credentials) and {} not in each["security"],
        parameters=tuple(each.get("parameters", ())),
        media_type=media_type,
        body=content.get(media_type, {}).get("schema", {}),
        example=_example_of(content.get(media_type, {})),
        body_is_optional=not each.get("requestBody", {}).get("required", False),
        answers={k: v for k, v in answers.items() if int(k) < _FIRST_REFUSAL},
        refusals={k: v for k, v in answers.items() if int(k) >= _FIRST_REFUSAL and common.get(k) != v["description"]},
    )


def _sentence(title: str) -> str:
    """A title in the case of a sentence: "List User Identities" becomes "List user identities"."""
    first, *others = title.split()
    return " ".join((first, *(word.lower() if word.istitle() else word for word in others)))


def _example_of(media: Json) -> Any:
    """The first example of a body or answer, or None."""
    return next((each["value"] for each in media.get("examples", {}).values()), None)


def content_of(answer: Json) -> tuple[str, Json, Any]:
    """Media type, schema and example of an answer. All are empty if it has no body."""
    content = answer.get("content", {})
    media_type = next(iter(content), "")
    media = content.get(media_type, {})
    return media_type, media.get("schema", {}), _example_of(media)
