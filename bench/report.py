"""The findings of the scenarios: rows of ratios against their targets, tables of figures, curves for the plots."""

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from bench.contenders import Run

DISTURBED = 0.1
"""If other processes take more than this share of the machine's CPU time, a run counts as disturbed.

In a quiet run the harness itself and the kernel take 0.01 to 0.03.
"""


@dataclass
class Row:
    """One row of the table of targets: a ratio (or a size) in each round, and its targets."""

    work: str
    against: str
    least: float | None  # None: the row has a stretch target alone
    stretch: float | None
    rounds: list[float]
    better: Literal["higher", "lower"] = "higher"
    unit: str = "x"
    void: list[str] = field(default_factory=list)  # the reasons of the runs that do not count

    @property
    def verdict(self) -> str:
        if self.void:
            return "void"
        if not self.rounds:
            return "not measured"
        if self.stretch is not None and self._reaches(self.stretch):
            return "stretch"
        if self.least is None:
            return "not reached"
        return "holds" if self._reaches(self.least) else "missed"

    def _reaches(self, target: float) -> bool:
        middle = median(self.rounds)
        return middle >= target if self.better == "higher" else middle <= target

    def cells(self) -> list[str]:
        sign = ">=" if self.better == "higher" else "<="
        middle = f"{number(median(self.rounds))} {self.unit}" if self.rounds else ""
        spread = f"{number(min(self.rounds))} to {number(max(self.rounds))}" if self.rounds else ""
        targets = ["" if target is None else f"{sign} {number(target)}" for target in (self.least, self.stretch)]
        return [self.work, self.against, *targets, middle, spread, self.verdict]


@dataclass
class Figures:
    """The runs of one contender under one load, one for each round."""

    name: str
    load: str
    runs: list[Run]

    def cells(self) -> list[str]:
        good = [run for run in self.runs if run.void is None] or self.runs
        rates = [run.rate for run in good]
        latency = [
            number(median(run.latency[p] for run in good) / 1000) if all(p in run.latency for run in good) else ""
            for p in ("p50", "p90", "p99", "p99.9", "max")
        ]
        names = ("service", "Postgres", "Redis", "driver")
        cpu = [number(median(run.cpu[n] for run in good)) if all(n in run.cpu for run in good) else "" for n in names]
        cpu.append(number(median(sum(run.cpu.values()) for run in good)))
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        return [
            self.name,
            self.load,
            f"{median(rates):,.0f}",
            spread,
            *latency,
            *cpu,
            f"{max(run.others for run in good):.0%}",
        ]


@dataclass
class Curve:
    """One curve of a plot."""

    plot: str
    name: str
    points: list[tuple[float, float]]


@dataclass
class Findings:
    """All findings of one scenario."""

    rows: list[Row] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def void(self) -> list[str]:
        return [
            f"{figures.name}, {figures.load}: {run.void}"
            for figures in self.figures
            for run in figures.runs
            if run.void
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Findings":
        return cls(
            [Row(**row) for row in found["rows"]],
            [Figures(f["name"], f["load"], [Run(**run) for run in f["runs"]]) for f in found["figures"]],
            [Curve(c["plot"], c["name"], [(x, y) for x, y in c["points"]]) for c in found["curves"]],
            found["notes"],
        )


def ratios(ours: list[Run], theirs: list[Run]) -> list[float]:
    """Ratios of the rates, round by round, without the rounds in which one of the two runs is void."""
    return [a.rate / b.rate for a, b in zip(ours, theirs, strict=True) if not a.void and not b.void and b.rate]


def number(value: float) -> str:
    """Three significant digits, without a power of ten."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


ROWS = ["work", "against", "at least", "stretch", "measured", "rounds", "verdict"]
FIGURES = ["who", "load", "a second", "rounds", "p50 ms", "p90", "p99", "p99.9", "max"]
FIGURES += ["service µs", "Postgres µs", "Redis µs", "driver µs", "all µs", "others"]


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table whose columns are aligned, so that it can be read as plain text."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([row(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(row, lines)])


def text(findings: Findings) -> str:
    """The findings of one scenario, as Markdown."""
    parts = []
    if findings.rows:
        parts.append(table(ROWS, [row.cells() for row in findings.rows]))
    if findings.figures:
        parts.append(table(FIGURES, [figures.cells() for figures in findings.figures]))
    others = max((run.others for figures in findings.figures for run in figures.runs), default=0.0)
    if others > DISTURBED:
        parts.append(f"DISTURBED: other processes took up to {others:.0%} of the machine; the ratios say little.")
    parts += [f"VOID: {why}" for why in findings.void()]
    parts += findings.notes
    return "\n\n".join(parts)
