"""`model.init_from=FOLDER`: where a new job's weights come from, if not from its seed.

    a run's folder              its newest checkpoint
    a step-… folder             that checkpoint
    a folder with config.json   a published model, see train/published_weights.py

All is looked at before there is a process group, in headers alone; then every rank fills what it holds.
"""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from models.config import ConfigError, ModelConfig
from models.initialise import Shard
from models.transformer import Transformer
from parallel.comm import Communicator
from parallel.logical_state import model_state
from train.checkpoint.folder import newest_checkpoint
from train.checkpoint.manifest import MANIFEST_FILE, OLD_FILE, DamagedCheckpoint, Manifest
from train.checkpoint.tensors import load_tensors
from train.checkpoint.verify import verify
from train.published_weights import CONFIG_FILE, PublishedWeights


class Weights(Protocol):
    """Weights that were found to fit."""

    def load(self, state: dict[str, Shard], comm: Communicator, /) -> None:
        """Fill the parameters and buffers of `state`, by logical name, of any layout. Called by all ranks together."""


@dataclass(frozen=True)
class CheckpointWeights:
    """A checkpoint's weights."""

    checkpoint: Path
    manifest: Manifest
    stored: dict[str, TensorStorageMetadata]
    """Their logical names, shapes and dtypes."""

    @classmethod
    def open(cls, checkpoint: Path, config: ModelConfig, asked: str) -> "CheckpointWeights":
        """Look whether `checkpoint` holds the tensors of `config`. `asked` is what was typed, as messages begin.

        Raises:
            ConfigError: if it does not.
        """
        manifest = Manifest.read(checkpoint)
        try:
            metadata = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
        except (OSError, EOFError, UnpicklingError, AttributeError, ImportError) as error:
            raise DamagedCheckpoint(checkpoint, str(error)) from error
        stored = {name: entry for name, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}
        for name, tensor in wanted_tensors(config).items():
            shape = tuple(stored[name].size) if name in stored else None
            if shape != tuple(tensor.shape):
                there = f"is {list(shape)} there" if shape else "is not there"
                raise ConfigError(
                    f"{asked}: {name} {there} and {list(tensor.shape)} in this model; choose the model that was saved"
                )
        return cls(checkpoint, manifest, stored)

    def load(self, state: dict[str, Shard], comm: Communicator) -> None:
        """Fill the parameters and buffers of `state`, by logical name, of any layout. Called by all ranks together.

        Raises:
            ConfigError: on every rank, if a file of it is not what was written.
        """
        self.verify(comm)
        load_tensors(state, self.checkpoint)

    def verify(self, comm: Communicator | None = None) -> None:
        """Compare all files with their hashes: with `comm` all ranks together, each some. Raises DamagedCheckpoint."""
        verify(self.checkpoint, self.manifest, comm)


def find_weights(init_from: str, config: ModelConfig) -> Weights:
    """What `model.init_from` means, if it fits `config`.

    Raises:
        ConfigError: if there is nothing, or it does not fit.
    """
    asked = f"model.init_from={init_from}"
    folder = typed_folder(init_from, asked)
    if (folder / CONFIG_FILE).exists():
        return PublishedWeights.open(folder, config, wanted_tensors(config), asked)
    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise ConfigError(
            f"{asked}: no checkpoint there; name a run folder, a step-… folder or a Hugging Face folder "
            f"(with {CONFIG_FILE})"
        )
    return CheckpointWeights.open(checkpoint, config, asked)


def typed_folder(typed: str, asked: str) -> Path:
    """The folder that a user typed, absolute; `asked` begins the message.

    Raises:
        ConfigError: if it cannot be one: a name too long, no such ~user.
    """
    try:
        folder = Path(typed).expanduser().resolve()
        folder.exists()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{asked}: {error}; name another folder") from error
    return folder


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `folder` is, or the newest of the run that it is."""
    is_one = any((folder / name).exists() for name in (MANIFEST_FILE, OLD_FILE))
    return folder if is_one else newest_checkpoint(folder / "checkpoints")


def wanted_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """All of a model's tensors by logical name, without storage."""
    with torch.device("meta"):
        state = model_state([Transformer(config, torch.float32)])
    return {name: shard.local for name, shard in state.items()}
