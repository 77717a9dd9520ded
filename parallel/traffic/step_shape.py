"""What a step takes, as far as its communication depends on it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepShape:
    """Of every rank alike."""

    n_micro_batches: int
    micro_batch_size: int
    """Sequences of a micro-batch."""
    sequence_length: int
    counts_targets: bool = False
    """Whether ranks must tell each other how many targets they have: documents end in their sequences."""
    n_dropped: int = 0
    """(token, expert) pairs beyond capacity, of all ranks and layers: the one thing that no config tells."""
