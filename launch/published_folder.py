"""A checkpoint written as a published model's folder, as on the Hugging Face hub.

    config.json, generation_config.json
    model.safetensors                                               all tensors, or
    model-00001-of-00003.safetensors, model.safetensors.index.json  files of a given size, and which holds which
    tokenizer.json, tokenizer_config.json                           of a run with data.tokenizer

One file's tensors are in memory at a time. The folder appears under its name when it is complete.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.balanced_routing import balanced
from models.config import ConfigError, ModelConfig
from models.hf import PublishedNames, PublishedTensor
from models.hf_config import write_config
from models.initialise import whole
from train.checkpoint.tensors import load_tensors
from train.data.config import DataConfig, DataSource
from train.data.tokenizer import open_tokenizer
from train.init_from import CheckpointWeights, wanted_tensors
from train.published_weights import CONFIG_FILE, INDEX_FILE, SINGLE_FILE


@dataclass(frozen=True)
class Piece:
    """One tensor on its way."""

    logical_name: str
    there: PublishedTensor
    shape: tuple[int, ...]
    stored_dtype: torch.dtype
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """In the file."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class PublishedFolder:
    """What is to be written."""

    config: dict[str, Any]
    """config.json."""
    files: dict[str, list[Piece]]
    """Tensors by file name, in the model's order."""
    checkpoint: Path
    tokenizer: Path | None

    @classmethod
    def plan(
        cls, model: ModelConfig, data: DataConfig, weights: CheckpointWeights, dtype: torch.dtype, shard_bytes: int
    ) -> "PublishedFolder":
        """Lay the tensors of `weights` out over files of at most `shard_bytes`.

        The routers' biases stay float32, as transformers keeps them, whatever `dtype` is.

        Raises:
            ConfigError: if no published architecture says `model` with these weights, or its tokenizer is gone.
        """
        if balanced(model):
            raise ConfigError(
                "model.moe.routing=balanced dealt experts out to tokens, as no published architecture does, and to no "
                "use: train with model.moe.routing=learned"
            )
        config = write_config(model, str(dtype).removeprefix("torch."), _end_of_document(data))
        names = PublishedNames(model, interleaved=True)
        pieces = []
        for name in wanted_tensors(model):
            entry = weights.stored[name]
            stored_dtype = entry.properties.dtype
            if there := names.find(name.removeprefix("model.")):
                kept = torch.float32 if name.endswith("expert_bias_E") else dtype
                pieces.append(Piece(name, there, tuple(entry.size), stored_dtype, kept))
            elif (bias_E := _load(weights.checkpoint, {name: torch.empty(entry.size, dtype=stored_dtype)})[name]).any():
                raise ConfigError(
                    f"model.moe.balance={model.moe.balance.value} left biases on the choice of experts ({name}, up to "
                    f"{bias_E.abs().max():g}), which {config['model_type']} has not: train with "
                    "model.moe.balance=none, or model.moe.score=sigmoid"
                )
        tokenizer = Path(os.path.expanduser(data.tokenizer)) if data.tokenizer else None
        return cls(config, _by_file(pieces, shard_bytes), weights.checkpoint, tokenizer)

    def write(self, folder: Path) -> None:
        """Write everything to `folder`, new or empty.

        Raises:
            ConfigError: if it is neither, or cannot be written to; nothing is left behind.
        """
        try:
            from safetensors import SafetensorError
        except ImportError as error:
            raise ConfigError("--format hf takes the package safetensors: pip install 'switchyard[hf]'") from error
        temporary = None
        try:
            if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
                raise ConfigError(f"{folder} is there and not empty: name another with --to, or move it away")
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            self._fill(temporary)
            _give_usual_rights(temporary)
            temporary.rename(folder)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{folder} cannot be written ({error}): name another with --to") from error
        finally:
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)  # gone already, if all went well

    def _fill(self, folder: Path) -> None:
        from safetensors.torch import save_file

        for file, pieces in self.files.items():
            save_file(self._converted(pieces), folder / file, metadata={"format": "pt"})
        if list(self.files) != [SINGLE_FILE]:
            everything = [(piece, file) for file, pieces in self.files.items() for piece in pieces]
            index = {
                "metadata": {"total_size": sum(piece.n_bytes for piece, _ in everything)},
                "weight_map": {piece.there.name: file for piece, file in everything},
            }
            _write_table(folder / INDEX_FILE, index)
        _write_table(folder / CONFIG_FILE, self.config)
        special = {key: self.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        _write_table(folder / "generation_config.json", {"do_sample": False} | special)
        if self.tokenizer:
            from tokenizers import Tokenizer

            shutil.copyfile(self.tokenizer, folder / "tokenizer.json")
            described = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": self.config["max_position_embeddings"],
                "eos_token": Tokenizer.from_file(str(self.tokenizer)).id_to_token(self.config["eos_token_id"]),
                "clean_up_tokenization_spaces": False,
            }
            _write_table(folder / "tokenizer_config.json", described)

    def _converted(self, pieces: list[Piece]) -> dict[str, Tensor]:
        loaded = _load(
            self.checkpoint,
            {piece.logical_name: torch.empty(piece.shape, dtype=piece.stored_dtype) for piece in pieces},
        )
        tensors = {}
        for piece in pieces:
            tensor = piece.there.to_theirs(loaded.pop(piece.logical_name)).to(piece.dtype)
            if not tensor.isfinite().all():
                raise ConfigError(
                    f"{piece.there.name} has values that are not finite in {piece.dtype}: choose another --dtype "
                    "or, if the run diverged, an earlier step-… folder"
                )
            tensors[piece.there.name] = tensor
        return tensors


def _end_of_document(data: DataConfig) -> int | None:
    """The token that ends a document in what a run was trained on; None where its text is not ours to read.

    Raises:
        DataError: if data.tokenizer is not there any more.
    """
    read_as_text = {DataSource.stdlib, DataSource.text, DataSource.hf}
    if not any(source.source in read_as_text for source in data.sources().values()):
        return None
    return open_tokenizer(data.tokenizer, data.end_of_document).separator


def _by_file(pieces: list[Piece], shard_bytes: int) -> dict[str, list[Piece]]:
    shards: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if piece.n_bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(piece)
        room -= piece.n_bytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def _load(checkpoint: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fill `state`, tensors by logical name, from `checkpoint`, and give it back."""
    load_tensors({name: whole(name, tensor) for name, tensor in state.items()}, checkpoint, alone=True)
    return state


def _write_table(file: Path, table: dict[str, Any]) -> None:
    file.write_text(json.dumps(table, indent=2) + "\n")


def _give_usual_rights(folder: Path) -> None:
    """As if open() and mkdir() had made them: mkdtemp and safetensors let nobody else read."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
    folder.chmod(0o777 & ~mask)
