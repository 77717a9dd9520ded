"""A published model's folder, as on the Hugging Face hub: config.json and safetensors.

    model.safetensors                                               all tensors, or
    model.safetensors.index.json, model-00001-of-00003.safetensors  which file holds which

Names and their meaning are models/hf.py's. A rank reads the rows that it holds, and nothing else, from the file.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import ConfigError, ModelConfig
from models.hf import PublishedNames, PublishedTensor
from models.hf_config import check_same_function, rope_interleaved
from models.initialise import Shard
from parallel.comm import Communicator

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
READABLE = ("F64", "F32", "F16", "BF16")
"""safetensors' names for the dtypes that weights are taken from."""


@dataclass(frozen=True)
class Header:
    """What a file says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class PublishedWeights:
    """A published model's weights."""

    names: PublishedNames
    files: dict[str, Path]
    """By their name."""

    @classmethod
    def open(cls, folder: Path, config: ModelConfig, wanted: Mapping[str, Tensor], asked: str) -> "PublishedWeights":
        """Look whether `folder` holds the model `config`, whose tensors are `wanted`, by logical name.

        `asked` is what was typed, as messages begin.

        Raises:
            ConfigError: if it does not.
        """
        published = _read_table(folder / CONFIG_FILE, asked)
        check_same_function(config, published, str(folder / CONFIG_FILE))
        names = PublishedNames(config, rope_interleaved(published))
        headers = _read_headers(folder, asked)
        known = set()
        for name, tensor in wanted.items():
            if there := names.find(name.removeprefix("model.")):
                _check_header(there.name, headers.get(there.name), tuple(tensor.shape), asked)
                known.add(there.name)
        _refuse_strangers(headers.keys() - known, config.n_layers, asked)
        return cls(names, {name: headers[name].file for name in known})

    @torch.no_grad()
    def load(self, state: dict[str, Shard], _: Communicator) -> None:
        """See Weights; each rank reads for itself, and there are no hashes to share out."""
        from safetensors import safe_open

        parts: dict[Path, list[tuple[PublishedTensor, Shard]]] = {}
        for name, shard in state.items():
            there = self.names.find(name.removeprefix("model."))
            if there is None:
                shard.local.zero_()
            elif shard.local.numel():
                parts.setdefault(self.files[there.name], []).append((there, shard))
        for file, tensors in parts.items():
            with safe_open(file, framework="pt") as opened:
                for there, shard in tensors:
                    shard.local.copy_(_read_part(opened.get_slice(there.name), there, shard))


def _read_part(stored: Any, there: PublishedTensor, shard: Shard) -> Tensor:
    """The part of a tensor in a file that `shard` holds: its rows, from the narrowest range that has them."""
    box = tuple(slice(start, start + n) for start, n in zip(shard.offset, shard.local.shape, strict=True))
    if there.rows is None:
        return stored[box]
    rows = there.rows[box[0]]
    first, last = int(rows.min()), int(rows.max())
    return stored[(slice(first, last + 1), *box[1:])][rows - first]


def _read_headers(folder: Path, asked: str) -> dict[str, Header]:
    """Every tensor of the folder's files, by its name there."""
    if (folder / SINGLE_FILE).exists():
        return _headers_of(folder / SINGLE_FILE, asked)
    index = folder / INDEX_FILE
    if not index.exists():
        raise ConfigError(f"{asked}: no {SINGLE_FILE} and no {INDEX_FILE} there; other formats are to be converted")
    file_of = _read_table(index, asked).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise ConfigError(f"{asked}: {index} has no weight_map from names to files; copy it again")
    headers: dict[str, Header] = {}
    for file in sorted(set(file_of.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise ConfigError(f"{asked}: {index.name} names {file}, which is not there; copy it too")
        headers |= _headers_of(folder / file, asked)
    for name, file in file_of.items():
        if name not in headers or headers[name].file.name != file:
            raise ConfigError(f"{asked}: {index.name} says that {file} holds {name}, and it does not; copy both again")
    return headers


def _headers_of(file: Path, asked: str) -> dict[str, Header]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ConfigError(f"{asked}: reading it takes the package safetensors: pip install 'switchyard[hf]'") from error
    try:
        with safe_open(file, framework="pt") as opened:
            stored = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: Header(file, tuple(s.get_shape()), s.get_dtype()) for name, s in stored.items()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{asked}: {file} is damaged ({error}); copy it again") from error


def _check_header(name: str, header: Header | None, shape: tuple[int, ...], asked: str) -> None:
    if header is None:
        raise ConfigError(f"{asked}: {name} is not there, and this model has it; copy the folder again")
    if header.shape != shape:
        raise ConfigError(f"{asked}: {name} is {list(header.shape)} there and {list(shape)} in this model")
    if header.dtype not in READABLE:
        raise ConfigError(f"{asked}: {name} is {header.dtype} there; convert it to one of {', '.join(READABLE)}")


def _refuse_strangers(names: Iterable[str], n_layers: int, asked: str) -> None:
    """A tensor that this model lacks would be another function, but for two kinds that take no part in it."""
    for name in sorted(names):
        layer = name.removeprefix("model.layers.").partition(".")[0]
        predicts_further = layer.isdecimal() and int(layer) >= n_layers  # DeepSeek-V3's multi-token prediction
        if not predicts_further and not name.endswith("rotary_emb.inv_freq"):
            raise ConfigError(f"{asked}: {name} is there, and this model has no place for it")


def _read_table(file: Path, asked: str) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{asked}: {file} is damaged ({error}); copy it again") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{asked}: {file} holds no table of values; copy it again")
    return table
