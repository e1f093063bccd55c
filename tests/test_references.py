"""Every reference in a comment, a docstring or a page of the documentation leads to something in this repository.

The tests check files and folders, tests, numbered guarantees and decisions, names of Keyturn's code, quoted headings,
and links. Standards are not in the repository, so references such as "RFC 6749 section 5.2" are left to the reader.
"""

from __future__ import annotations

import ast
import builtins
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = "app", "clients", "tests", "bench", "examples", "migrations", "dev.py"
ENDINGS = "py|md|toml|yaml|yml|json|lock|sh|mjs|conf|java|c|js|sql|svg|ini|mako"
MADE = {
    ".git",
    ".venv",
    ".venv-clients",
    ".venv-docs",
    ".venv-package",
    ".venv-scalekit",
    ".venv-tracing",
    "node_modules",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".import_linter_cache",
    "keyturn-data",
    "mutants",
    "build",
    "dist",
}
FOLDERS = "app|tests|docs|bench|migrations|deploy|examples|openapi"


@dataclass(frozen=True)
class Place:
    """A text that may refer to something, and its place in the repository."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


# -- the possible targets


@cache
def files() -> frozenset[str]:
    """The repository's files and folders, relative to its root. A folder's name ends with a slash."""
    names: set[str] = set()
    for folder, inner, found in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in MADE and not name.endswith(".egg-info")]
        at = Path(folder).relative_to(ROOT)
        names.update(str(at / name) for name in found)
        names.update(f"{at / name}/" for name in inner)
    return frozenset(names)


def code() -> list[Path]:
    return sorted(
        ROOT / name
        for name in files()
        if name.endswith(".py")
        and (name in CODE or name.partition("/")[0] in CODE)
        and not name.startswith("bench/rivals")
    )


def pages() -> list[Path]:
    return sorted(ROOT / name for name in files() if name.endswith(".md") and name != "CHANGELOG.md")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def docstrings(module: ast.AST) -> Iterator[ast.Constant]:
    """Strings that stand alone: docstrings of modules, classes and functions, and those below a constant or a field."""
    for node in ast.walk(module):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as constant):
                yield constant


@cache
def definitions() -> dict[str, set[str]]:
    """The names that each module and each class of Keyturn defines, under its full and its shorter names."""
    found: dict[str, set[str]] = {}

    def add(name: str, inner: set[str]) -> None:
        parts = name.split(".")
        for i in range(len(parts)):
            found.setdefault(".".join(parts[i:]), set()).update(inner)

    for path in code():
        module = module_of(path)
        add(module, set(names_in(tree(path))))
        for parent in Path(module.replace(".", "/")).parents:
            if parent.name:
                child = module.removeprefix(str(parent).replace("/", ".") + ".").partition(".")[0]
                add(str(parent).replace("/", "."), {child})
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                add(f"{module}.{node.name}", set(names_in(node)))
    return found


def names_in(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name
            case ast.Assign():
                yield from (t.id for target in statement.targets for t in ast.walk(target) if isinstance(t, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in statement.names)
    if isinstance(node, ast.ClassDef):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                yield inner.attr  # self.x = …
        for base in node.bases:
            if isinstance(base, ast.Name):
                yield from definitions_of_base(base.id)


def definitions_of_base(name: str) -> Iterator[str]:
    for path in code():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                yield from names_in(node)


@cache
def words() -> frozenset[str]:
    """All words of the code: identifiers, and the words of strings that are no docstrings."""
    found: set[str] = set(dir(builtins))
    for path in code():
        if path == Path(__file__):
            continue  # this file names things that do not exist
        module = tree(path)
        documentation = {id(constant) for constant in docstrings(module)}
        for node in ast.walk(module):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.keyword(arg=str() as name):
                    found.add(name)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    found.add(node.name)
                case ast.alias(name=name, asname=other):
                    found.update(name.split("."), [other] if other else [])
                case ast.ImportFrom(module=str() as name):
                    found.update(name.split("."))
                case ast.Constant(value=str() as text) if id(node) not in documentation:
                    found.update(re.findall(r"\w+", text))
                case ast.Constant(value=bytes() as data):
                    found.update(re.findall(r"\w+", data.decode(errors="replace")))
        found.update(module_of(path).split("."))
    for name in files():
        if name.endswith((".toml", ".yaml", ".conf", ".mjs", ".c", ".js", "Caddyfile", "Dockerfile", "run", ".sql")):
            found.update(re.findall(r"\w+", (ROOT / name).read_text(encoding="utf-8")))
    return frozenset(found)


@cache
def headings(path: Path) -> tuple[str, ...]:
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return tuple(re.findall(r"^#+ +(.+?) *$", fence.sub("", path.read_text(encoding="utf-8")), re.MULTILINE))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, made by GitHub's rule."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(path))
    return set(plain)


@cache
def numbered(name: str) -> frozenset[str]:
    return frozenset(n for h in headings(ROOT / "docs" / name) for n in re.findall(r"^(\d+)\. ", h))


# -- the references

TICKED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PATH = re.compile(
    rf"(?<![\w/.:~…-])((?:(?:{FOLDERS})/(?:[\w./*-]*\w/?)?|(?:[\w-]+/)*[\w*-]+\.(?:{ENDINGS})\b)(?:::\w+)?)(?![\w])"
)
"""A file (relative to the root, to the page that names it, or to `app`), a folder, or a test in a file."""
GUARANTEE = re.compile(r"\b[Gg]uarantees? (\d+)((?:, \d+)*(?:,? (?:and|to) \d+)?)")
DECISION = re.compile(r"\b[Dd]ecisions? (\d+)((?:, \d+)*(?:,? (?:and|to) \d+)?)")
SECTION = re.compile(r"(?<!\w)(?:[Ss]ections? |§ ?)(\d+)")
OUTSIDE = re.compile(
    r"(?:(?:RFC|NIST SP|FIPS) [\d-]+(?:[A-Z]|bis)?"
    r"|ECMA-48|W3C Trace Context"
    r"|(?:OpenID Connect (?:Core|Discovery|RP-Initiated Logout)|Back-Channel Logout)(?: 1\.0)?)"
    r",?(?: [Ss]ections? [\d.]+(?:,| and))*\s*$"
)
QUOTED = re.compile(r"\b(README|[a-z]+\.md|see),? (?:section )?\"([^\"]+)\"")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"/(?:home|root|Users)/|\b\w+/shared/|\bthe design\b|\b[Aa]ttack #?\d|\b[Ii]ssues? #?\d")
TESTS_OWN = "test_it.py", "test_them.py"
"""Files that tests write into a folder of their own."""
OF_OTHERS = frozenset(
    [
        "JWT_SECRET",
        "TokenObtainPairView",
        "TokenRefreshView",
        "TokenVerifyView",
        "TokenBlacklistView",
        "ROTATE_REFRESH_TOKENS",
        "BLACKLIST_AFTER_ROTATION",
        "OutstandingToken",
        "BlacklistedToken",
        "SECRET_KEY",
        "rest_framework_simplejwt",
        "token_blacklist",
        "token_not_valid",
        "app_metadata",
        "user_metadata",
    ]
)
"""Names of the services that users leave for Keyturn, in docs/from-*.md."""

FOR_OPERATORS = (
    *("README.md", "SECURITY.md", "docs/clients.md", "docs/scaling.md", "docs/tracing.md"),
    *("bench/README.md", "bench/RESULTS.md"),
)
"""Pages that also name things of other products: a column of Postgres, a class of a generated client."""


def broken(place: Place, imported: frozenset[str] = frozenset()) -> Iterator[str]:
    """The problem of each reference of a place that leads nowhere."""
    text = place.text
    for name in PATH.findall(text):
        if problem := no_file(name, place.path):
            yield problem
    for pattern, page in ((GUARANTEE, "guarantees.md"), (DECISION, "decisions.md")):
        for first, more in pattern.findall(text):
            for number in [first, *re.findall(r"\d+", more)]:
                if number not in numbered(page):
                    yield f"docs/{page} has no number {number}"
    for found in SECTION.finditer(text):
        if not OUTSIDE.search(text[: found.start()]):
            yield f"{found.group()!r} of what? (a decision is called `decision N`)"
    for where, heading in QUOTED.findall(text):
        page = {"README": ROOT / "README.md", "see": place.path}.get(where, ROOT / "docs" / where)
        if page.suffix == ".md" and not any(re.sub(r"^\d+\. ", "", h) == heading for h in headings(page)):
            yield f'{page.name} has no heading "{heading}"'
    for found in ELSEWHERE.finditer(text):
        yield f"{found.group()!r} is not in this repository"
    for name in () if str(place.path.relative_to(ROOT)) in FOR_OPERATORS else TICKED.findall(text):
        if name in OF_OTHERS and place.path.name.startswith("from-"):
            continue
        if problem := no_name(name, imported):
            yield problem


def no_file(name: str, at: Path) -> str:
    path, _, test = name.partition("::")
    path = path.removesuffix(".")
    known = files()
    if "*" in path:
        return "" if any(Path(each).match(path) for each in known) else f"no file is {path}"
    if "/" not in path:
        found = [each for each in known if Path(each).name == path]
        if not found and path not in TESTS_OWN and path.removesuffix(".py") not in sys.stdlib_module_names:
            return f"no file is called {path}" if path.endswith((".py", ".md")) else ""
    else:
        beside = str((at.parent / path).relative_to(ROOT)) if at.suffix == ".md" else path
        found = [each for each in (path, beside, f"app/{path}", path.removesuffix("/") + "/") if each in known]
        if not found:
            return f"there is no {path}"
    if test and test not in {n for each in found if each.endswith(".py") for n in names_in(tree(ROOT / each))}:
        return f"there is no {name}"
    return ""


def no_name(name: str, imported: frozenset[str]) -> str:
    """The problem of a name in backticks that looks like one of Keyturn's and does not exist; else ""."""
    if re.fullmatch(r"_?[A-Za-z]\w*_\w*|_[a-z]\w*|[A-Z][a-z]+(?:[A-Z][a-z]+)*", name):  # a_name, _name, AName, Name
        return "" if name in words() or name.removeprefix("KEYTURN_").lower() in words() else f"no code says {name}"
    if not re.fullmatch(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", name) or name.rpartition(".")[2] in ENDINGS.split("|"):
        return ""
    known = definitions()
    owner, _, last = name.rpartition(".")
    if owner in known:
        return "" if last in known[owner] else f"{owner} has no {last}"
    first = owner.partition(".")[0]
    if first in known or first in {"app", "tests", "bench"}:
        return f"there is no {owner}"
    if (
        first in imported
        or first in sys.stdlib_module_names
        or first in dir(builtins)
        or (first.islower() and find_spec(first))
    ):
        return ""
    return "" if first.islower() and last in words() else f"nobody knows {first}"


# -- the texts that may refer to something


def comments(path: Path) -> Iterator[Place]:
    """The comments and docstrings of a file. Comments on consecutive lines are one text.

    White space becomes a single blank.
    """
    source = path.read_text(encoding="utf-8")
    block: list[str] = []
    began = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield Place(path, began, " ".join(block))
                block = []
            began = began if block else token.start[0]
            last = token.start[0]
            block.append(token.string.lstrip("#").strip())
    if block:
        yield Place(path, began, " ".join(block))
    for constant in docstrings(tree(path)):
        yield Place(path, constant.lineno, " ".join(str(constant.value).split()))


def paragraphs(path: Path) -> Iterator[Place]:
    """The paragraphs of a page, without its blocks of code."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", lambda found: "\n" * found.group().count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    line = 1
    for part in re.split(r"(\n\s*\n)", text):
        if not all(each.startswith("    ") for each in part.splitlines()):
            yield Place(path, line, " ".join(part.split()))
        line += part.count("\n")


def no_target(place: Place) -> Iterator[str]:
    for target in LINK.findall(place.text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        to = (place.path.parent / name).resolve() if name else place.path
        if not to.exists():
            yield f"there is no {target}"
        elif anchor and anchor not in anchors(to):
            yield f"{to.name} has no heading #{anchor}"


def foreign(path: Path) -> frozenset[str]:
    """The names that a file imports from other packages."""
    return frozenset(
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0)
        for alias in node.names
    )


def broken_in(path: Path) -> list[str]:
    places = comments(path) if path.suffix == ".py" else paragraphs(path)
    imported = foreign(path) if path.suffix == ".py" else frozenset()
    return [f"{place}: {problem}" for place in places for problem in (*broken(place, imported), *no_target(place))]


# -- the tests


@pytest.mark.parametrize("path", [*code(), *pages()], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_reference_resolves_inside_the_repository(path: Path) -> None:
    found = broken_in(path)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "see app/no_such_file.py",
        "`sessions/no_such_file.py` reads",
        "tests/test_races.py::test_that_is_not_there",
        "as app/nowhere/ has it",
        "see no_such_file.py",
        "no index (guarantee 11)",
        "guarantees 1, 2 and 99",
        "decision 999 says why",
        "docs/decisions.md section 15",
        "as section 4 says",
        "an instance polls (§3)",
        'README, "No such heading"',
        "attack 17",
        "a promise of the design",
        "`Database.no_such_method`",
        "`app.no_such_room.Thing`",
        "`app.errors.NoSuchError`",
        "`NoSuchClass.method`",
        "`a_name_that_no_code_says`",
        "[a link](no_such_page.md)",
        "[a link](guarantees.md#no-such-heading)",
    ],
)
def test_a_broken_reference_would_be_found(text: str) -> None:
    place = Place(ROOT / "docs" / "planted.md", 1, text)
    assert [*broken(place), *no_target(place)], text


@pytest.mark.parametrize(
    "text",
    [
        "see app/errors.py, `storage/database.py`, app/storage/, tests/test_races.py and docs/decisions.md",
        "no index (guarantee 5)",
        "guarantees 1 to 10",
        "decisions 15 and 34",
        "RFC 6749 section 5.2 and RFC 9112 sections 6.3 and 9.3",
        "W3C Trace Context section 3.2.4 and ECMA-48 section 8.3.117",
        "OpenID Connect Core section 3.1.3.7 and OpenID Connect Back-Channel Logout 1.0 sections 2.4 and 2.6",
        "RFC 6265bis section 5.6.7 and NIST SP 800-38D section 8.3",
        'guarantees.md, "Guarantees when things fail"',
        "`Database.incarnation`, `app.errors.Refusal`, `errors.Refusal`, `judge` and `asyncio.timeout`",
        "`ix_sessions_ended_at` in `deploy/`",
        "[a link](decisions.md#34-clocks-may-step)",
    ],
)
def test_a_sound_reference_is_taken(text: str) -> None:
    place = Place(ROOT / "docs" / "planted.md", 1, text)
    assert [*broken(place), *no_target(place)] == []


def test_the_decisions_by_topic_name_each_decision_and_no_other() -> None:
    page = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    by_topic = re.findall(r"^- \*\*.+?\*\*: ([\d, ]+)$", page.partition("## 1. ")[0], re.MULTILINE)
    assert {number for numbers in by_topic for number in numbers.split(", ")} == numbered("decisions.md")


def test_comments_and_docstrings_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text('"""A module (guarantee\n77)."""\n# see docs/decisions.md, decision\n# 888\nx = "guarantee 66"\n')
    assert [place.text for place in comments(path)] == [
        "see docs/decisions.md, decision 888",
        "A module (guarantee 77).",
    ]
