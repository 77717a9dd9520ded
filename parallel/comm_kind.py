"""What communication is for."""

from enum import Enum


class CommKind(Enum):
    """What the communication is for."""

    dp = "dp"
    """Gradients and parameters between data-parallel ranks."""
    fsdp = "fsdp"
    """The same inside FSDP2. torch issues these (parallel/torch_internals.py watches it do so)."""
    tp = "tp"
    """Activations and gradients between tensor-parallel ranks."""
    ep = "ep"
    """Rows to and from the ranks of their experts."""
    pp = "pp"
    """Activations and gradients between pipeline stages."""
    control = "control"
    """Numbers for logs and decisions; no tensors of the model."""
