"""The report page (being written)."""

from pathlib import Path

from paperlib.files import write_text
from paperlib.records import Run


def export_notebooks(run: Run) -> list[Path]:
    """Executed notebooks as HTML."""
    return []


def write_report(run: Run) -> Path:
    """Write report.html."""
    return write_text(run.out / "report.html", "<!doctype html>")
