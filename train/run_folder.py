"""The folder of a run: where it is, whose it is, and the config.yaml that says so."""

import glob
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from models.config import ConfigError
from train.config import RunConfig
from train.ledger.events import process_started_ns
from train.metrics.summary import Attempt

# What makes two runs the same job. The rest (strategy, overlap, steps, logging, cadence) may change at a resume.
IDENTITY = ("model", "data", "optim", "precision", "train.seed", "train.global_batch_size")
# Where text and tokenizer lie may change: the fingerprint of the tokens says whether they are the same.
NOT_IDENTITY = (
    "model.init_from",
    "model.expert_backend",
    "model.row_backend",
    "model.loss_backend",
    "model.loss_chunk_size",
    "optim.halves",
    "data.path",
    "data.mixture[].path",
    "data.tokenizer",
    "data.cache_dir",
)


def named_folder(run: RunConfig) -> Path | None:
    """The folder that `run.dir` or `run.name` names, absolute; None if the run is to be named by its start.

    Raises:
        ConfigError: if nothing can be written there or, for a run that its start will name, in `run.root`.
    """
    key = "dir" if run.dir is not None else "name" if run.name is not None else "root"
    typed = getattr(run, key)
    try:
        folder = Path(run.root if key == "name" else "", typed).expanduser().resolve()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links, no such ~user
        raise ConfigError(f"run.{key}={typed}: {error}; name another folder") from error
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise ConfigError(f"run.{key}={typed}: {nearest} is not a folder that can be written to; name another")
    return None if key == "root" else folder


def new_folder(run: RunConfig, model_name: str, strategy_name: str, launcher: int | None = None) -> Path:
    """A folder named by time, model and strategy. Every rank makes one and rank 0's counts: their clocks differ.

    `launcher`: the process that may start this one again, and to which the same folder shall belong then.
    """
    root = Path(run.root).expanduser().resolve()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(time.time()))
    if not launcher:
        return root / f"{stamp}-{model_name}-{strategy_name}-{os.getpid()}"
    # When it began by the clock that nobody sets: the wall clock may be another one when it starts its ranks again.
    ending = f"{model_name}-{strategy_name}-{process_started_ns(launcher) // 10_000_000}-{launcher}"
    return next(root.glob(f"????????-??????-{glob.escape(ending)}"), root / f"{stamp}-{ending}")


def check_same_job(folder: Path, config: dict[str, Any], corpus_fingerprint: str, defaults: dict[str, Any]) -> None:
    """Refuse to continue another job in its folder.

    Args:
        folder: may be absent: a new job.
        config: the resolved configuration as plain values.
        corpus_fingerprint: SHA-256 of the corpus that is open now.
        defaults: what keys are that an older version did not know of: its runs did as these say.

    Raises:
        ConfigError: naming the first value that differs.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return
    advice = "set it back to continue that run, or name another run.name"
    before = read_config(path)
    new = identity(config)
    unknown_then = {key: value for key, value in identity(defaults).items() if key in new}
    old = unknown_then | identity(before)
    # A preset's name first: it is what was typed, and the values below it differ for its sake.
    for key in sorted(old.keys() | new.keys(), key=lambda key: (not key.endswith(".name"), key)):
        if old.get(key) != new.get(key):
            raise ConfigError(f"{key}={new.get(key)}, and {folder} holds a run with {key}={old.get(key)}: {advice}")
    fingerprint = before["environment"]["corpus_sha256"]
    if fingerprint != corpus_fingerprint:
        raise ConfigError(
            f"the corpus is not the one that {folder} was trained on (sha256 {corpus_fingerprint[:12]}, was "
            f"{fingerprint[:12]}; another Python version has another standard library): name another run.name"
        )


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values.

    Raises:
        ConfigError: if it is not one.
    """
    try:
        config = yaml.safe_load(path.read_text())
        config["environment"]["corpus_sha256"]
    except (OSError, UnicodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is not the config.yaml of a run: name another folder") from error
    return config


def write_config(folder: Path, config: dict[str, Any], environment: dict[str, Any]) -> None:
    """Write config.yaml, with what the run was started on, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "config.yaml.tmp"
    temporary.write_text(yaml.safe_dump(config | {"environment": environment}, sort_keys=False))
    temporary.replace(folder / "config.yaml")


def describe_environment(attempt: Attempt, corpus_fingerprint: str) -> dict[str, Any]:
    """Versions, source, topology, the peak that MFU divides by, whose clock times steps, and the corpus, as plain
    values."""
    packages = ("switchyard", "torch", "accelerate", "deepspeed", "hydra-core", "wandb")
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in packages},
        "git_commit": _git_commit(),
        "hostname": platform.node(),
        "resumed_after_step": attempt.resumed_after_step,
        "world_size": attempt.world_size,
        "ranks_per_node": int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        "device": attempt.device,
        "peak_tflops": attempt.peak.tflops,
        "peak_source": attempt.peak.source,
        "time_source": attempt.time_source,
        "corpus_sha256": corpus_fingerprint,
    }


def device_name(device: torch.device) -> str:
    """What a person calls the device: its kind and its maker's name for it."""
    maker = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return f"{device.type}: {maker or platform.machine()}"


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a run the job that it is, of its plain configuration, by dotted key."""
    flat: dict[str, Any] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                walk(value, f"{key}.{name}" if key else name)
        elif isinstance(node, list):
            for index, value in enumerate(node):
                walk(value, f"{key}[{index}]")
        elif _is_identity(re.sub(r"\[\d+\]", "[]", key)):
            flat[key] = node

    walk(config, "")
    return flat


def _is_identity(key: str) -> bool:
    return key not in NOT_IDENTITY and any(key == part or key.startswith(part + ".") for part in IDENTITY)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the source that runs, `+dirty` if it was edited; None outside a repository."""
    here = Path(__file__).resolve().parent
    git = ["git", "--no-optional-locks", "-C", str(here)]  # a run that is killed leaves no lock in the repository
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+dirty" if changes.stdout.strip() else "")
