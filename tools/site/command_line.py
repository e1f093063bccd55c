"""The page of all commands, made from the parser of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from app.commands.command import parser

_HEAD = """\
# Command line

This page is made from the source. `keyturn --help` and `keyturn COMMAND --help` show the same.

Type `python3 dev.py keyturn …` in a checkout, and `keyturn …` where the package is installed.

## Rules of all commands

- `--config FILE` names a TOML file with [settings](configuration.md). It may stand before or after the verb.
- `--help` shows the words of a command. `keyturn --version` prints the release.
- A command that reads takes `--json`: one JSON value for programs.
- An option is written in full. The line names an option that does not exist.

| exit code | meaning |
|---|---|
| 0 | The command is done. |
| 1 | The command was refused, or something that it names does not exist. |
| 2 | Wrong use: a word, an option or a setting. |
| 3 | Postgres, Redis or an issuer is away. Try again later. |
"""


def command_line() -> str:
    """The page, as Markdown."""
    commands = list(_commands(parser(), ""))
    index = "".join(f"| [`{each.prog}`](#{_anchor(each.prog)}) | {about} |\n" for each, about in commands)
    sections = "".join(_section(each, about) for each, about in commands)
    return f"{_HEAD}\n## All commands\n\n| command | what it does |\n|---|---|\n{index}{sections}"


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


def _commands(of: argparse.ArgumentParser, about: str) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Each command that has no verbs below it, with the sentence of its help."""
    words = [each for each in of._actions if isinstance(each, argparse._SubParsersAction)]  # noqa: SLF001  # argparse has no public way to its words
    if not words:
        yield of, about
    for each in words:
        abouts = {choice.dest: choice.help or "" for choice in each._choices_actions}  # noqa: SLF001  # as above
        for name, inner in each.choices.items():
            yield from _commands(inner, _sentence(abouts.get(name, "")))


def _section(command: argparse.ArgumentParser, about: str) -> str:
    actions = [
        each
        for each in command._actions  # noqa: SLF001  # as above
        if each.help != argparse.SUPPRESS and not {"--help", "--config"} & set(each.option_strings)
    ]
    usage = " ".join((command.prog, *(_usage(each) for each in actions)))
    parts = [f"\n### {command.prog}\n\n{about}\n\n```text\n{_wrapped(usage)}\n```\n"]
    if actions:
        parts.append("\n| word | meaning |\n|---|---|\n")
        parts += [f"| {_word(each)} | {_meaning(each)} |\n" for each in actions]
    return "".join(parts)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.metavar:
        return str(action.metavar)
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def _usage(action: argparse.Action) -> str:
    value = _value(action)
    several = "…" if action.nargs in {"*", "+"} or isinstance(action, argparse._AppendAction) else ""  # noqa: SLF001  # as above
    if not action.option_strings:
        return f"[{value}{several}]" if action.nargs in {"?", "*"} else f"{value}{several}"
    shown = f"{action.option_strings[-1]} {value}".rstrip()
    return f"{shown}{several}" if action.required else f"[{shown}]{several}"


def _word(action: argparse.Action) -> str:
    value = _value(action).replace("|", "\\|")
    name = ", ".join(action.option_strings)
    return f"`{f'{name} {value}'.strip()}`"


def _meaning(action: argparse.Action) -> str:
    values = {**vars(action), "prog": "keyturn"}
    values |= {"choices": ", ".join(map(str, action.choices))} if action.choices else {}
    return _sentence(((action.help or "") % values).replace("|", "\\|"))


def _sentence(words: str) -> str:
    words = words[:1].upper() + words[1:]
    return words if not words or words.endswith((".", "?", "!")) else f"{words}."


def _wrapped(usage: str) -> str:
    lines = [""]
    for word in usage.replace("] [", "]\n[").split("\n"):
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) > 100 and lines[-1]:  # noqa: PLR2004  # columns
            lines.append(f"    {word}")
        else:
            lines[-1] = joined if len(lines) == 1 else f"{lines[-1]} {word}"
    return "\n".join(lines)
