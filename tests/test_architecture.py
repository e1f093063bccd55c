"""Makes the drawings and tables of docs/architecture.md from the source.

`python -m tests.test_architecture` writes them into the page, and the tests compare the page with the source.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
GROUND = "the ground floor"
NOT_SHOWN = {"__future__", "typing_extensions"}


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("app", include_external_packages=True, cache_dir=None)


@cache
def modules() -> tuple[str, ...]:
    """The names of all modules of app/ except `__init__`, written as `sessions.rotation`."""
    found = (ROOT / "app").rglob("*.py")
    names = (".".join(path.relative_to(ROOT / "app").with_suffix("").parts) for path in found)
    return tuple(sorted(name for name in names if not name.endswith("__init__")))


def imports(module: str) -> set[str]:
    """The modules of app/ that a module of app/ imports.

    If the import names a package (whose `__init__` passes on names of its files), the package itself is listed.
    """
    found = graph().find_modules_directly_imported_by(f"app.{module}")
    return {name.removeprefix("app.") for name in found if name.startswith("app.")}


def room(module: str) -> str:
    """The folder of a module, or the module itself if it lies directly in app/."""
    return module.partition(".")[0]


@cache
def ground() -> frozenset[str]:
    """The files that lie directly in app/ and import no room, not even through another such file."""
    rooms = {room(module) for module in modules() if "." in module}
    single = {module for module in modules() if "." not in module}
    while above := {
        file for file in single if {room(each) for each in imports(file)} & (rooms | (set(modules()) - single))
    }:
        single -= above
        rooms |= above
    return frozenset(single)


def arrows(between: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The arrows of a drawing, without each arrow that a longer path of arrows implies."""
    kept = {a: set(to) for a, to in between.items()}
    for a in sorted(between):
        for b in sorted(between[a]):
            kept[a].discard(b)
            if not leads(kept, a, b):
                kept[a].add(b)
    return ((a, b) for a in sorted(kept) for b in sorted(kept[a]))


def leads(ways: dict[str, set[str]], a: str, b: str) -> bool:
    seen, ahead = {a}, [a]
    while ahead:
        for to in ways.get(ahead.pop(), ()):
            if to == b:
                return True
            if to not in seen:
                seen.add(to)
                ahead.append(to)
    return False


def mermaid(between: dict[str, set[str]]) -> str:
    lines = ["```mermaid", "flowchart TD"]
    number = {name: f"n{i}" for i, name in enumerate(sorted(between))}
    lines += [f'  {number[name]}["{name}"]' for name in sorted(between)]
    lines += [f"  {number[a]} --> {number[b]}" for a, b in arrows(between)]
    return "\n".join([*lines, "```", ""])


def rooms() -> str:
    between: dict[str, set[str]] = {}
    for module in modules():
        if (own := room(module)) not in ground():
            between.setdefault(own, set()).update({room(each) for each in imports(module)} - {own} - ground())
    names = ", ".join(f"`{name}`" for name in sorted(ground()))
    return f"{mermaid(between)}\nNot drawn: {GROUND} ({names}). Every room may import these.\n"


def inside(folder: str) -> str:
    mine = {module.partition(".")[2] for module in modules() if room(module) == folder}
    between = {
        file: {each.partition(".")[2] for each in imports(f"{folder}.{file}") if room(each) == folder} & mine
        for file in mine
    }
    return mermaid(between)


def listed() -> str:
    lines = ["| file | what it is | imports, of ours |", "|---|---|---|"]
    for module in modules():
        path = ROOT / "app" / f"{module.replace('.', '/')}.py"
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = " ".join(text.partition("\n\n")[0].split())
        first = re.split(r"(?<=[.!?]) (?=[A-Z`])", first)[0]
        used = ", ".join(f"`{name}`" for name in sorted(imports(module)))
        lines.append(f"| `{path.relative_to(ROOT / 'app')}` | {first.replace('|', chr(92) + '|')} | {used} |")
    return "\n".join([*lines, ""])


def doors() -> str:
    libraries: dict[str, set[str]] = {}
    for module in modules():
        for name in graph().find_modules_directly_imported_by(f"app.{module}"):
            if not name.startswith("app") and name not in sys.stdlib_module_names | NOT_SHOWN:
                libraries.setdefault(name, set()).add(module)
    lines = ["| library | imported by |", "|---|---|"]
    lines += [
        f"| {name} | {', '.join(f'`{each}`' for each in sorted(libraries[name]))} |" for name in sorted(libraries)
    ]
    return "\n".join([*lines, ""])


PARTS = {
    "rooms": rooms,
    "inside sessions": lambda: inside("sessions"),
    "inside policies": lambda: inside("policies"),
    "inside revocation": lambda: inside("revocation"),
    "libraries": doors,
    "files": listed,
}


def place(part: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {part} -->\n).*(?=<!-- /{part} -->)", re.DOTALL)


@pytest.mark.parametrize("part", PARTS)
def test_the_page_shows_the_source_as_it_is(part: str) -> None:
    found = place(part).search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group() == PARTS[part](), "python -m tests.test_architecture writes it again"


def test_a_drawing_leaves_out_only_what_a_longer_way_says() -> None:
    assert list(arrows({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == [("a", "b"), ("b", "c")]
    assert list(arrows({"a": {"b", "c"}, "b": set(), "c": set()})) == [("a", "b"), ("a", "c")]
    assert ("b", "a") in arrows({"a": {"b"}, "b": {"a"}}), "a circle stays a circle"


def test_every_file_of_federation_stands_in_one_line_of_its_table() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("### Inside federation\n")[2].partition("\n###")[0]
    named = re.findall(r"`(\w+)`", table)
    assert sorted(named) == [name.partition(".")[2] for name in modules() if room(name) == "federation"]


def test_every_file_says_what_it_is_in_one_sentence() -> None:
    for module in modules():
        path = ROOT / "app" / f"{module.replace('.', '/')}.py"
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name, made in PARTS.items():
        text = place(name).sub(lambda _, made=made: made(), text)  # type: ignore[misc]  # keeps this round's value
    PAGE.write_text(text, encoding="utf-8")
    sys.exit(0)
