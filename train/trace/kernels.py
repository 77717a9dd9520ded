"""What each GPU kernel is, by its name: an explicit table.

A kernel that only looks like communication raises: counted as compute, it would seem to hide what it is. Compute that
the table does not know is `other`, which is seen in the result.

    communication   NCCL, DeepEP, NVSHMEM, torch's symmetric memory, copies between devices
    compute         the rest, in the categories below; copies and memsets included
"""

import re
from dataclasses import dataclass
from enum import Enum

from models.config import ConfigError
from parallel.comm_kind import CommKind


class Category(Enum):
    """What a compute kernel does."""

    dense_gemm = "dense_gemm"
    expert_gemm = "expert_gemm"
    attention = "attention"
    optimizer = "optimizer"
    norm_reduction = "norm_reduction"
    permutation = "permutation"
    """Gather, scatter, sort and scan too."""
    copy_cast = "copy_cast"
    """Copies, casts, fills, transpositions, memcpy and memset."""
    elementwise = "elementwise"
    other = "other"


@dataclass(frozen=True)
class Communication:
    """A kernel that moves data between ranks."""

    kind: CommKind | None
    """What it is for, where the name alone says so; used where no range of ours says it."""


class UnknownCommunication(ConfigError):
    """A kernel looks like communication, and the table has no line for it."""

    def __init__(self, kernel: str) -> None:
        super().__init__(f"kernel {kernel} looks like communication: say what it is in train/trace/kernels.py")


_COMMUNICATION: tuple[tuple[str, CommKind | None], ...] = (
    # Sought at the start of the bare name: no template arguments, no parameters.
    (r"nccl(Dev)?Kernel_?(AllReduce|AllGather|ReduceScatter|Broadcast|Reduce|SendRecv|AlltoAll|Generic)", None),
    (r"nccl(Sym|Symk)(Dev)?Kernel_?(AllReduce|AllGather|ReduceScatter)", None),
    # The layout of a dispatch is part of its price: DeepSeek's own profile runs it on the communication stream.
    (r"dpsk::ep::\w+::(get_dispatch_layout|(cached_)?notify\w*|dispatch|combine|barrier)", CommKind.ep),
    (r"deep_ep::(\w+::)+(get_dispatch_layout|(cached_)?notify\w*|dispatch|combine|barrier|clean_\w+)", CommKind.ep),
    # torch's all-to-all over NVSHMEM, lengths on the device.
    (r"(c10d::nvshmem_extension::)?(exchangeSplitAndOffset|allToAllV|allToAllGet)(_2d|Kernel)*$", CommKind.ep),
    (r"(c10d::nvshmem_extension::)?(multi_?root_?)?tile_?reduce(_?kernel)?$", None),
    (r"nvshmem|(\w+_)?(barrier|sync|alltoall|broadcast|fcollect|reduce|reducescatter)_on_stream_kernel", None),
    # torch's symmetric memory.
    (r"(\w+::)*(multimem|one_shot|two_shot)_\w*(all_reduce|all_gather|reduce)_kernel(_inplace)?$", None),
    (r"(c10d::symmetric_memory::)?(barrier|put_signal|wait_signal)_kernel$", None),
    (r"peer_rows_(wanted|taken|summed)$", CommKind.ep),
    (r"Memcpy PtoP", None),
)  # fmt: skip

_LOOKS_LIKE_COMMUNICATION = re.compile(
    r"nccl|nvshmem|all_?gather|all_?reduce|reduce_?scatter|all_?to_?all|send_?recv|deep_?ep|dpsk::ep\b|inter_?node"
    r"|intra_?node|symm_?mem|symmetric_memory|multimem|on_stream_kernel|cross_device_reduce|Memcpy PtoP",
    re.IGNORECASE,
)

_COMPUTE: tuple[tuple[str, Category], ...] = (
    # The first that is found anywhere in the whole name. torch.compile's triton_ kernels bear the names of what they
    # fuse, which for element-wise ones may be a collective's or a softmax's: their own prefix goes before.
    (r"^triton_poi_fused", Category.elementwise),
    (r"^triton_(red|per)_fused", Category.norm_reduction),
    (r"^triton_for_fused", Category.optimizer),
    (r"^triton_tem_fused\w*flex_attention", Category.attention),
    (r"^triton_tem_fused\w*grouped_mm", Category.expert_gemm),
    (r"^triton_tem_fused", Category.dense_gemm),
    (r"multi_tensor_apply_kernel.*LpNorm|lpnorm_cleanup", Category.norm_reduction),
    (r"multi_tensor_apply_kernel.*Copy", Category.copy_cast),
    (r"multi_tensor_apply|one_pass_adamw|FusedAdam|fused_adam|FusedSgd", Category.optimizer),
    (r"sdpa|[Ff]lash|fmha|_attn_(fwd|bwd)|flex_attention|compute_attn", Category.attention),
    (r"^grouped_(rows|weights)", Category.expert_gemm),
    (r"^grouped_tiles", Category.permutation),
    (r"grouped_gemm::\w+::utils::transpose", Category.copy_cast),
    (r"grouped_gemm::\w+::fp8_", Category.dense_gemm),  # DeepSeek's; its experts' are m_grouped_…
    (r"m_grouped|GroupProblemShape|GroupedProblem|GemmGrouped|grouped_mm|grouped_gemm", Category.expert_gemm),
    (r"^nvjet_|gemm|Gemm|GEMM|gemv|splitKreduce|cublasLt", Category.dense_gemm),
    (r"^Mem(cpy|set)|direct_copy_kernel|split_with_sizes_copy|chunk_cat|CatArrayBatchedCopy", Category.copy_cast),
    (r"bfloat16_copy_kernel|float8_copy_kernel|FillFunctor|transpose|cast_(to|back)|copy_tensor", Category.copy_cast),
    (r"elementwise_kernel_with_index|distribution_elementwise", Category.elementwise),
    (r"^rows_(of_tokens|gather_sum|spread)", Category.permutation),
    (r"gather|scatter|index_elementwise|index_kernel|indexSelect|indexFunc|index_(put|add|copy)", Category.permutation),
    (r"indexing_backward|[Ss]ort|topk|TopK|permute|tensor_kernel_scan|DeviceScan|DeviceSelect", Category.permutation),
    (r"[Ee]mbedding|histogram|bincount|searchsorted|masked_select|fused_mapping|expand_to_fused", Category.permutation),
    (r"layer_?norm|LayerNorm|rms_?norm|RMSNorm|ln_(fwd|bwd)|GammaBeta", Category.norm_reduction),
    (r"[Ss]oft[Mm]ax|nll_loss|cross_entropy|reduce_kernel|DeviceReduce|reduce_fused", Category.norm_reduction),
    (r"^gradients_add", Category.elementwise),
    (r"^gradients_norm", Category.norm_reduction),
    (r"elementwise|rotary|swiglu|silu|dropout|fused_(dropout|rope)|foreach", Category.elementwise),
)  # fmt: skip


def classify(kernel: str) -> Category | Communication:
    """What the kernel of this name (demangled or not) does.

    Raises:
        UnknownCommunication: if it looks like communication and the table does not have it.
    """
    bare = _bare(kernel)
    # Inductor's own kernels never communicate, whatever they are named after.
    if not bare.startswith("triton_"):
        for pattern, kind in _COMMUNICATION:
            if re.match(pattern, bare):
                return Communication(kind)
        if _LOOKS_LIKE_COMMUNICATION.search(bare):
            raise UnknownCommunication(bare)
    return next((category for pattern, category in _COMPUTE if re.search(pattern, kernel)), Category.other)


def _bare(kernel: str) -> str:
    """`kernel` without return type, template arguments and parameters: these name types, not what is done."""
    if kernel.startswith("_ZN"):
        return "::".join(_mangled_names(kernel[3:].lstrip("K")))
    if kernel.startswith("Mem"):  # "Memcpy PtoP (Device -> Device)"
        return kernel
    named = kernel.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", named, maxsplit=1)[0].strip()


def _mangled_names(rest: str) -> list[str]:
    """The leading names of an Itanium-mangled nested name: `2at6native…` are at, native, …"""
    names: list[str] = []
    while match := re.match(r"(\d+)", rest):
        end = match.end() + int(match[1])
        names.append(rest[match.end() : end])
        rest = rest[end:]
    return names
