"""A bench's folder in which the machine has been measured, which takes as long as a job; the README's bench does it."""

import json
from dataclasses import asdict
from pathlib import Path

from launch.bench.ceilings import Ceilings


def make_measured(folder: Path, nproc: int) -> None:
    """Make `folder`, for benches of `nproc` ranks."""
    folder.mkdir()
    (folder / "ceilings.json").write_text(json.dumps(asdict(Ceilings("cpu", "float32", 0.2, 0.1, 0.1, 0.1, 30.0))))
    (folder / f"bus-{nproc}.json").write_text("{}")
