"""The report of a run: one HTML file that needs nothing else, neither network nor script."""

from __future__ import annotations

from pathlib import Path

from burnish.folder import RunFolder
from burnish.report.page import page
from burnish.report.record import NoRunError, read

__all__ = ["NoRunError", "build"]


def build(folder: RunFolder) -> Path:
    """Write `report.html` into the run folder, of whatever the run has got done; its path.

    Raises `NoRunError`, a ValueError, for a folder that is no run folder.
    """
    folder.report.write_text(page(read(folder)), encoding="utf-8")
    return folder.report
