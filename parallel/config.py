"""What a layout is: the typed fields behind `conf/strategy/`, `conf/overlap/` and `conf/precision/`."""

from dataclasses import dataclass
from enum import Enum
from typing import Optional

import torch

from models.config import ConfigError
from parallel.expert_parallel.build import DispatcherName, PlacementName, RowRoom
from parallel.pipeline.schedules import ScheduleName


class Recompute(Enum):
    none = "none"
    full = "full"
    selective = "selective"


class Reduction(Enum):
    """How data-parallel ranks keep the same weights."""

    none = "none"
    all_reduce = "all_reduce"
    shard = "shard"
    shard_optimizer = "shard_optimizer"
    shard_gradients = "shard_gradients"


class EngineName(Enum):
    """Whose code lays the model over ranks and steps it."""

    native = "native"
    accelerate = "accelerate"
    deepspeed = "deepspeed"


@dataclass
class StrategyConfig:
    name: str = "single"
    """Name of the strategy, as in strategy=NAME."""
    reduction: Reduction = Reduction.none
    """none; all_reduce: replicas (DDP); shard: FSDP2, ZeRO-3; shard_optimizer: ZeRO-1; shard_gradients: ZeRO-2."""
    engine: EngineName = EngineName.native
    """Who runs it: native (everything below), accelerate (DDP, FSDP2) or deepspeed (ZeRO-1, 2, 3)."""
    pp: int = 1
    """Pipeline ranks, each with some of the layers; outermost. -1 is the rest of the world."""
    dp_replicate: int = 1
    """Ranks that hold copies of each other; -1 is the rest of the world."""
    dp_shard: int = 1
    """Ranks that share one copy of the parameters (FSDP2); -1 is the rest of the world."""
    tp: int = 1
    """Tensor-parallel ranks, each with a part of every matrix and of the sequence; innermost. -1 is the rest."""
    ep: int = 1
    """Expert-parallel ranks, out of dp_shard x tp (without dp_shard: dp_replicate x tp); -1 is all of these."""
    etp: int = 1
    """Ranks that split each routed expert by width: 1, or as many as tp."""
    dispatcher: DispatcherName = DispatcherName.all_to_all
    """ep above 1: how rows reach experts: all_to_all, all_gather (all to all), symmetric_memory (by NVLink)."""
    rows: RowRoom = RowRoom.exact
    """Not all_to_all, or capacity: room for as many rows as there are (exact: the host waits), or all (static)."""
    placement: PlacementName = PlacementName.contiguous
    """ep above 1: contiguous keeps a group of experts on few ranks (fewer peers), round_robin on many (even load)."""
    schedule: ScheduleName = ScheduleName.one_f_one_b
    """pp above 1: in which order stages take micro-batches; switchyard schedule NAME draws it."""
    stages_per_rank: Optional[int] = None
    """pp above 1: stages of the model on each pipeline rank; null is the schedule's own number."""
    nvlink_domain: Optional[int] = None
    """Neighbouring ranks with a fast network, which tp is to stay in; null is a node's. A rack may be one (NVL72)."""
    compile: bool = False
    """Compile what each block computes between collectives, one graph a part (torch.compile); the first step waits."""
    cuda_graph: bool = False
    """GPU: launch a micro-batch's forward and backward as a CUDA graph each, once two steps have compiled all in it."""
    recompute: Recompute = Recompute.none
    """What backward computes again: none, full (attention and experts) or selective (of these all but products)."""


@dataclass
class OverlapConfig:
    name: str = "default"
    """Name of the preset, as in overlap=NAME."""
    grad_reduce: bool = True
    """Reduce gradients, in buckets (fsdp: by parts), behind the backward of earlier layers; false: after it."""
    bucket_mib: float = 25.0
    """Without FSDP2: size of a gradient bucket, MiB; smaller buckets start earlier, larger ones use the wire better."""
    param_prefetch: int = 1
    """fsdp: how many parts ahead parameters are gathered behind compute, forward and backward; 1 is FSDP2's own."""
    reshard_after_forward: bool = True
    """fsdp: free gathered parameters after forward (ZeRO-3); false keeps them, one gather less (ZeRO-2)."""
    shared_experts: bool = False
    """ep, etp: compute shared experts while rows travel, gate and up on the way there, down on the way back."""
    dispatch_chunks: int = 1
    """ep: parts in which rows travel, each to other experts, behind the experts of the part before; 1: all at once."""
    forward_backward: bool = False
    """ep: rows of one micro-batch travel behind the compute of another, which goes the other way, layer by layer."""
    async_tp: int = 1
    """tp above 1: chunks in which sequences are gathered and scattered, each behind others' products; 1 is whole."""
    pipeline_p2p: bool = True
    """pp above 1: messages between stages travel behind the compute of other micro-batches; false waits for each."""
    optimizer: bool = False
    """Update the weights of a bucket (fsdp: a part) behind the rest of backward, once reduced; without clipping."""
    data: int = 2
    """Batches prepared behind the step, in a thread, pinned and copied without blocking; 0 loads between steps."""
    checkpoint: bool = True
    """Write checkpoints behind the steps that follow; false holds training up until they are committed."""

    def check(self) -> None:
        """Refuse values that no layout has.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        if self.bucket_mib <= 0:
            raise ConfigError(f"overlap.bucket_mib={self.bucket_mib}: set it above 0")
        if self.param_prefetch < 1:
            raise ConfigError(f"overlap.param_prefetch={self.param_prefetch}: set it to at least 1")
        if self.dispatch_chunks < 1:
            raise ConfigError(f"overlap.dispatch_chunks={self.dispatch_chunks}: set it to at least 1 (all at once)")
        if self.async_tp < 1:
            raise ConfigError(f"overlap.async_tp={self.async_tp}: set it to 1 (whole sequences) or more")
        if self.data < 0:
            raise ConfigError(f"overlap.data={self.data}: set it to 0 (load between steps) or more")


class Dtype(Enum):
    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def torch(self) -> torch.dtype:
        """The torch dtype of that name."""
        dtypes = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
        return dtypes[self.value]


class Matmul(Enum):
    default = "default"
    fp8 = "fp8"


@dataclass
class PrecisionConfig:
    name: str = "fp32"
    """Name of the preset, as in precision=NAME."""
    parameters: Dtype = Dtype.float32
    """Master weights and optimizer state."""
    compute: Dtype = Dtype.float32
    """Activations, and the weights that they meet; norms, router, softmax and loss use at least float32."""
    reduce: Dtype = Dtype.float32
    """fsdp, zero: gradients on the wire and in their sum."""
    matmul: Matmul = Matmul.default
    """fp8: attention's projections, dense and shared feed-forwards multiply e4m3, scaled by rows; default: no."""

    def check(self, reduction: Reduction) -> None:
        """Refuse dtypes that cannot meet, or that nothing would read.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        parameters = self.parameters.value
        if self.parameters is Dtype.bfloat16:
            raise ConfigError("precision.parameters=bfloat16: AdamW's small steps round away; set it to float32")
        for name in ("compute", "reduce"):
            dtype: Dtype = getattr(self, name)
            if dtype is Dtype.float64 and self.parameters is not Dtype.float64:
                raise ConfigError(
                    f"precision.{name}=float64 is wider than precision.parameters={parameters}: "
                    f"set it to {parameters}, or use precision=fp64"
                )
        if self.matmul is Matmul.fp8 and self.compute is not Dtype.bfloat16:
            raise ConfigError(
                f"precision.matmul=fp8: float8 goes with bfloat16, not precision.compute={self.compute.value}; set "
                "that to bfloat16, or use precision=fp8"
            )
        if reduction in (Reduction.none, Reduction.all_reduce) and self.reduce is not self.parameters:
            raise ConfigError(
                f"precision.reduce={self.reduce.value}: only sharding (fsdp, zero1) reduces in a dtype of its own; "
                f"set it to {parameters}, as precision.parameters"
            )
