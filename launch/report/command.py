"""`switchyard report RUN… [to=FILE.html]`: runs beside each other, on one page that opens from disk."""

from collections.abc import Sequence
from pathlib import Path

from launch.jobs.typed_path import typed_path
from launch.report.find_runs import commands, find_runs, not_done
from launch.report.page import page
from models.config import ConfigError

REPORT_FILE = "report.html"


def report(words: Sequence[str]) -> int:
    """Write the page of the runs that `words` name, and print where it is: to=FILE, or report.html in the folder that
    is named, or, of several, here.

    Raises:
        ConfigError: for a word that is no folder of runs, and a file that cannot be written.
    """
    folders, to = [], None
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"unknown flag {word}: report takes folders of runs, and to=FILE.html")
        if word.startswith("to="):
            to = typed_path(word, word.removeprefix("to=") or REPORT_FILE)
        else:
            folders.append(typed_path(word, word))
    if not folders:
        raise ConfigError("report takes folders of runs, or of a sweep: switchyard report runs/NAME runs/OTHER")
    if to is None:
        to = folders[0] / REPORT_FILE if len(folders) == 1 else Path(REPORT_FILE)
    print(write_report(folders, to))
    return 0


def write_report(folders: Sequence[Path], to: Path) -> Path:
    """Write the page of the runs in `folders`. Returns `to`.

    Raises:
        ConfigError: where there is no run, or `to` cannot be written.
    """
    runs = find_runs(folders)
    title = folders[0].name if len(folders) == 1 else f"{len(runs)} runs"
    text = page(title, runs, commands(folders), not_done(folders))
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"to={to}: {error.strerror}; name a file in a folder that you may write to") from error
    return to
