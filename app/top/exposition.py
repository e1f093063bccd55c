"""The text of a metrics door, read: the samples of the metrics that Keyturn has. Pure.

The reader takes the lines that Prometheus's text format 0.0.4 and OpenMetrics 1.0 have in common: comments, and samples
of a name, labels and a value. A sample of an unknown name is passed over, so a later release may have more metrics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from ..metric_kinds import Metric
from ..metrics import METRICS

Series: TypeAlias = tuple[str, tuple[str, ...]]
"""A sample's name, and the words of its labels in the order of the metric; a bucket's bound comes last."""
Samples: TypeAlias = Mapping[Series, float]

_SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)(?:\s+\S+)?(?:\s+#.*)?\Z", re.ASCII
)
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\]*)"\s*(?:,|\Z)', re.ASCII)
_MOST_SAMPLES = 100_000
_LONGEST_LINE = 4096  # characters: Keyturn's have some 200
_ENDLESS = 1e18  # above each number that Keyturn gives; sums and differences of smaller ones stay finite


class NotMetricsError(ValueError):
    """The text is none that a metrics door of Keyturn gives. The message repeats no part of it."""


def samples_in(text: str) -> Samples:
    """The samples of Keyturn's metrics in a text.

    Raises:
        NotMetricsError: a line is no sample, or there is not one of Keyturn's.
    """
    found: dict[Series, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        sample = _SAMPLE.match(line) if len(line) <= _LONGEST_LINE else None
        if sample is None:
            raise NotMetricsError(f"line {number} is no sample of a metric")
        labels = _KNOWN.get(sample["name"])
        if labels is None:
            continue
        try:
            given = _labels(sample["labels"] or "")
            words, value = tuple(given[name] for name in labels), _number(sample["value"])
            if labels[-1:] == ("le",) and words[-1] != "+Inf":
                _number(words[-1])
        except (KeyError, ValueError):
            raise NotMetricsError(f"line {number} is no sample of Keyturn's metric {sample['name']}") from None
        found[sample["name"], words] = value
        if len(found) > _MOST_SAMPLES:
            raise NotMetricsError("there are more samples than Keyturn has")
    if not found:
        raise NotMetricsError("no metric of Keyturn's is there")
    return found


def _labels(text: str) -> Mapping[str, str]:
    """The labels of a sample. One after another, so that no text takes longer than its length asks for.

    Raises:
        ValueError: something else is among them.
    """
    given: dict[str, str] = {}
    at = 0
    while label := _LABEL.match(text, at):
        given[label[1]] = label[2]
        at = label.end()
    if text[at:].strip():
        raise ValueError("no label")
    return given


def _number(text: str) -> float:
    """A number that can be added up and shown.

    Raises:
        ValueError: the text is none, or one without end.
    """
    value = float(text)
    if not abs(value) < _ENDLESS:  # NaN is below nothing
        raise ValueError("endless")
    return value


def names_of(metric: Metric) -> Mapping[str, tuple[str, ...]]:
    """The names of a metric's samples, each with the names of its labels."""
    labels = tuple(metric.labels)
    if metric.kind != "histogram":
        return {metric.name: labels}
    return {f"{metric.name}_bucket": (*labels, "le"), f"{metric.name}_sum": labels, f"{metric.name}_count": labels}


_KNOWN = {name: labels for metric in METRICS for name, labels in names_of(metric).items()}
