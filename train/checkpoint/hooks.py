"""What others want to know of a save, or to have a say in: the ledger, the fence, the fault injector."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.faults.config import Place
from train.ledger.ledger import Ledger


@dataclass(frozen=True)
class Hooks:
    """Called from the thread that writes, but for `reach` at load."""

    ledger: Ledger | None = None
    """Of this rank's attempt."""
    attempt: int = 1
    """Its number."""
    still_ours: Callable[[], bool] = lambda: True
    """Asked on rank 0 just before a checkpoint gets its name, and before others are dropped: whether no newer attempt
    has taken the run."""
    reach: Callable[[Place, int], None] = lambda place, step: None
    """Told at load (step 0), write and rename; an OSError from it is one of the disk's."""
    committed: Callable[[Path, int], None] = lambda checkpoint, step: None
    """Told of each checkpoint that has its name, on every rank."""

    def note(self, event: str, *, sync: bool = False, **fields: Any) -> None:
        """Write to the ledger, if there is one."""
        if self.ledger:
            self.ledger.write(event, sync=sync, **fields)
