"""The progress bar of everything that takes its time."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def bar(disable: bool = False) -> Progress:
    """A bar on standard error, with what is done, how long it has taken, and how long it will take."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=disable,
    )  # fmt: skip
