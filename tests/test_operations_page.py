"""docs/operations.md names commands, metrics and events of the log that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from app import metrics
from app.commands.command import parser
from tests.test_logs import PAGE as LOGS
from tests.test_logs import in_the_docs
from tests.test_metrics_list import RULES

PAGE = Path(__file__).parent.parent / "docs" / "operations.md"
AN_ID = "01a2f6a4-0000-7000-8000-000000000000"
PLACEHOLDERS = {
    "EMAIL": "ada@example.com",
    "ROLE": "editor",
    "USE": "access",
    "USER": "ada@example.com",
    "SESSION": AN_ID,
    "ID": AN_ID,
    "NAME": "acme",
    "FILE": "token",
}

_CODE = re.compile(r"`([^`\n]+)`")
_SERIES = re.compile(r'(keyturn_[a-z_]+)(?:\{(\w+)="(\w+)"\})?')
_NOT_EVENTS = {"client", "limit", "cause", "error", "duration_ms", "session_id", "user_id", "sid", "q"}
"""Words in code that are members of lines or keys, and not events."""


def understood(words: list[str]) -> bool:
    """Whether the command line takes these words. A noun alone is taken where there is such a noun."""
    try:
        _, unknown = parser().parse_known_args(words if len(words) > 1 else [*words, "--help"])
    except SystemExit as e:
        return e.code == 0
    return not unknown


def faults(page: str) -> Iterator[str]:
    """Whatever the page names that there is not."""
    known = {metric.name: metric for metric in metrics.METRICS}
    events = in_the_docs(LOGS.read_text(encoding="utf-8")).keys()
    text = re.sub(r"(?s)```.*?```", "", page)
    for code in _CODE.findall(text):
        if code.startswith("keyturn "):
            words = [PLACEHOLDERS.get(word, word) for word in shlex.split(code)[1:]]
            if not understood(words):
                yield f"no such command: {code}"
        elif code.startswith("keyturn_"):
            found = _SERIES.fullmatch(code)
            metric = known.get(found[1]) if found else None
            if found is None or metric is None or (found[2] and found[3] not in metric.labels.get(found[2], ())):
                yield f"no such metric: {code}"
        elif re.fullmatch(r"[a-z]+(?:_[a-z]+)+|request", code) and code not in events | _NOT_EVENTS:
            yield f"no such event of the log: {code}"


def test_every_command_metric_and_event_of_the_page_exists() -> None:
    assert list(faults(PAGE.read_text(encoding="utf-8"))) == []


def test_the_page_says_what_to_do_for_each_alert() -> None:
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    alerts = [rule["alert"] for group in rules for rule in group["rules"]]
    rows = re.findall(r"^\| (Keyturn\w+) \| (.+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [alert for alert, _, _ in rows] == alerts
    named = {word for row in rows for word in re.findall(r"\bKeyturn[A-Z]\w+", " ".join(row))}
    assert named <= {*alerts}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("`keyturn why USER`", "`keyturn whence USER`"),
        ("--preview`", "--previewed`"),
        ("`keyturn_hash_slots`", "`keyturn_hash_slot`"),
        ('{outcome="reuse"}', '{outcome="reused"}'),
        ("`redis_may_evict`", "`redis_might_evict`"),
    ],
)
def test_a_page_that_names_what_there_is_not_would_be_found(
    before: str, after: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert before in page
    assert len(list(faults(page.replace(before, after)))) >= 1
    capsys.readouterr()  # the parser says on stderr why it refuses
