"""Where wide tables go."""

from rich.console import Console

WIDTH = 140
"""Columns of a table that goes to a file."""


def table_console() -> Console:
    """Standard output: as wide as the terminal, or WIDTH where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
