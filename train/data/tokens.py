"""Tokens that are there already: a .npy or .bin file, or the folder that `switchyard tokenize` wrote."""

from hashlib import sha256
from pathlib import Path

import numpy as np

from train.data.config import READERS, DataConfig, SourceConfig, TokenDtype
from train.data.source import Corpus, DataError
from train.data.stream import InOrder, ShuffledStream
from train.data.token_folder import TokenFolder
from train.data.windows import TokenWindows, advice, first_outside

BLOCKS, BLOCK_BYTES = 64, 64 * 1024
SCANNED_WHOLE = 256 * 2**20  # bytes; more would be felt at each start


def open_tokens(source: SourceConfig, data: DataConfig, vocab_size: int, seed: int) -> Corpus:
    """The tokens at `source.path`: training windows shuffled by `seed`, held-out ones in order.

    Of a file, the last `data.heldout_fraction` is held out; its ids are looked through for one that is not below the
    model's `vocab_size`, all of them in a file of up to 256 MiB, else those in 64 blocks of 64 KiB spread evenly. The
    same blocks, the file's size and its dtype make its fingerprint: a file of 100 GB cannot be read at each start, so
    an edit elsewhere in a file of more than 4 MiB goes unnoticed. A folder has a fingerprint of all its tokens.

    Raises:
        DataError: naming the file and what to change.
    """
    try:
        path = Path(source.path or "").expanduser()
        is_folder = path.is_dir()
    except (OSError, RuntimeError) as error:  # a folder above may not be entered, a name too long, no such ~user
        raise DataError(f"data.path={source.path} cannot be looked at ({error}): name another file") from error
    if is_folder:
        _refuse_dtype(source, path)
        folder = TokenFolder.open(path)
        _refuse_what_is_settled(folder, path, source, data)
        return folder_corpus(folder, str(path), data, seed)
    ids = _map_file(path, source)
    _check_ids(ids, path, vocab_size)
    n_heldout = round(len(ids) * data.heldout_fraction)
    n_train = len(ids) - n_heldout
    split = f"data.heldout_fraction={data.heldout_fraction}"
    train = TokenWindows([ids[:n_train]], data.sequence_length, vocab_size, f"{path} (what {split} leaves)")
    heldout = TokenWindows([ids[n_train:]], data.sequence_length, vocab_size, f"{path} (the end, {split})")
    separator = _separator(data.end_of_document, path, vocab_size)
    return Corpus(ShuffledStream(train, seed), InOrder(heldout), _fingerprint(ids), separator, tokenizer=None)


def folder_corpus(folder: TokenFolder, name: str, data: DataConfig, seed: int) -> Corpus:
    """The tokens of a tokenised folder, called `name` in messages.

    Raises:
        DataError: if a split holds no sample.
    """
    train = TokenWindows(folder.train, data.sequence_length, folder.vocab_size, f"{name} (train)")
    heldout = TokenWindows(folder.heldout, data.sequence_length, folder.vocab_size, f"{name} (held out)")
    return Corpus(ShuffledStream(train, seed), InOrder(heldout), folder.fingerprint, folder.separator, folder.tokenizer)


def _refuse_what_is_settled(folder: TokenFolder, path: Path, source: SourceConfig, data: DataConfig) -> None:
    """Refuse what was settled when the folder was made; other parts of a mixture may have a use for it."""
    end = data.end_of_document
    if end is not None and end.isdecimal() and int(end) != folder.separator:
        raise DataError(f"data.end_of_document={end}: a document in {path} ends with {folder.separator}; leave it out")
    others = [part for part in data.sources().values() if part is not source]
    if any(READERS["heldout_fraction"] & {part.source} for part in others):
        return
    if data.heldout_fraction != DataConfig.heldout_fraction:
        raise DataError(
            f"data.heldout_fraction={data.heldout_fraction}: {path} was split when it was tokenised; leave it out"
        )


def _map_file(path: Path, source: SourceConfig) -> np.ndarray:
    """The ids in a file, 1-D and memory-mapped."""
    if not path.exists():
        raise DataError(f"{path} does not exist: set data.path to a .bin or .npy file, or a tokenised folder")
    if not path.is_file() or path.suffix not in (".bin", ".npy"):
        raise DataError(f"{path} is no .bin or .npy file and no tokenised folder: name one of these in data.path")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: write tokens to it, or name another file in data.path")
        return _map_npy(path, source) if path.suffix == ".npy" else _map_bin(path, source.dtype)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): let this user read it") from error


def _map_npy(path: Path, source: SourceConfig) -> np.ndarray:
    _refuse_dtype(source, path)
    try:
        ids = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # the header is parsed as Python, and what a damaged one raises has no end
        raise DataError(f"{path} is not a whole .npy file of numbers: write it again with numpy.save") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {ids.dtype} of shape {ids.shape}: save the ids as one row of integers, as uint16 or uint32"
        )
    return ids


def _map_bin(path: Path, dtype: TokenDtype) -> np.ndarray:
    kind = np.dtype(dtype.value).newbyteorder("<")
    if (size := path.stat().st_size) % kind.itemsize:
        raise DataError(
            f"{path} has {size} bytes, not a multiple of {dtype.value}'s {kind.itemsize}: "
            "set data.dtype to the type that its ids were written in"
        )
    return np.memmap(path, kind, mode="r")


def _refuse_dtype(source: SourceConfig, path: Path) -> None:
    if source.dtype is not SourceConfig.dtype:
        raise DataError(f"data.dtype={source.dtype.value}: {path} says itself how it holds ids; leave it out")


def _check_ids(ids: np.ndarray, path: Path, vocab_size: int) -> None:
    step = BLOCK_BYTES // ids.itemsize
    starts = range(0, len(ids), step) if ids.nbytes <= SCANNED_WHOLE else _block_starts(len(ids), step)
    for start in starts:
        if (wrong := first_outside(ids[start : start + step], vocab_size)) is not None:
            wrong_id = int(ids[start + wrong])
            largest = wrong_id if wrong_id < 0 else max(int(ids[begin : begin + step].max()) for begin in starts)
            hint = " (data.dtype, if they were written in another type)" if path.suffix == ".bin" else ""
            raise DataError(
                f"{path}: token {start + wrong} is {wrong_id}, outside the vocabulary of {vocab_size}: "
                f"{advice(largest)}{hint}"
            )


def _fingerprint(ids: np.ndarray) -> str:
    digest = sha256(f"{ids.nbytes} {ids.dtype.str} ".encode())
    step = BLOCK_BYTES // ids.itemsize
    for start in _block_starts(len(ids), step):
        digest.update(ids[start : start + step].tobytes())
    return digest.hexdigest()


def _block_starts(length: int, step: int) -> list[int]:
    """Where blocks of `step` begin: all of them if there are few, else 64, the first and the last among them."""
    n_blocks = min(BLOCKS, -(-length // step))
    return [round(i * (length - step) / (n_blocks - 1)) if i else 0 for i in range(n_blocks)]


def _separator(typed: str | None, path: Path, vocab_size: int) -> int | None:
    """The id in data.end_of_document."""
    if typed is None:
        return None
    if not (typed.isascii() and typed.isdigit() and int(typed) < vocab_size):
        raise DataError(
            f"data.end_of_document={typed}: {path} is tokens without a tokenizer; set it to an id below "
            f"{vocab_size}, or leave it out"
        )
    return int(typed)
