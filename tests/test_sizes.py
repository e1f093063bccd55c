"""The limit for the lengths of the files of app/."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 300
"""Lines. docs/decisions.md names each longer file, with the reason."""


def test_a_file_of_the_product_has_at_most_300_lines_or_a_reason() -> None:
    decisions = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    files = {path: path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "app").rglob("*.py")}
    assert len(files) > 20
    too_long = {
        name: lines
        for path, lines in files.items()
        if lines > MOST and f"`{(name := path.relative_to(ROOT).as_posix())}`" not in decisions
    }
    assert too_long == {}, "split these, or write into docs/decisions.md why they stay as they are"
