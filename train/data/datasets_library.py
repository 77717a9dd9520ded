"""The `datasets` package of Hugging Face: imported when it is needed, kept quiet, and its tables read as text."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from train.data.source import DataError


def import_datasets(needed_by: str) -> Any:
    """The package, without its progress bars and warnings. Raises DataError, which says how to install it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{needed_by} needs the package datasets: pip install 'switchyard[data]'") from error
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or reading a local file asks the hub to count it
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    return datasets


@contextmanager
def no_cache() -> Iterator[str]:
    """A folder for the lock files that `load_dataset` leaves even where it has nothing to keep; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="switchyard-", ignore_cleanup_errors=True) as folder:
        yield folder


def texts(dataset: Any, field: str, where: str, count: int = 0) -> Iterator[list[str]]:
    """The field `field` of the records of a streamed `dataset`, some hundred at a time; `count` were read before.

    Raises:
        DataError: if it is not there, or no text; the message begins with `where`. And whatever reading raises.
    """
    if dataset.features is not None:
        feature = dataset.features.get(field)
        _check_field(list(dataset.features), str(getattr(feature, "dtype", type(feature).__name__)), field, where)
    for table in dataset.with_format("arrow").iter(batch_size=256):
        kind = str(table.schema.field(field).type) if field in table.column_names else ""
        _check_field(table.column_names, kind, field, where)
        column = table[field].to_pylist()
        if None in column:
            row = count + column.index(None)
            raise DataError(
                f"{where}: record {row} has nothing in its field {field!r}: leave it out, or give it a text"
            )
        count += len(column)
        yield column


def one_line(error: BaseException) -> str:
    """What an error of another library says, on one line that is not too long."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 300 else said[:300] + "…"


def _check_field(names: list[str], kind: str, field: str, where: str) -> None:
    if not names:
        raise DataError(f"{where} holds no records: give it some, or leave it out")
    if field not in names:
        raise DataError(f"{where}: no field {field!r}; set data.text_field to one of {', '.join(names)}")
    if kind not in ("string", "large_string", "string_view"):
        raise DataError(f"{where}: field {field!r} is not text but {kind}; set data.text_field to one that is")
