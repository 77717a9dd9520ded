"""The table of kernels: names as profilers wrote them."""

import pytest

from models.config import ConfigError
from parallel.comm_kind import CommKind
from train.trace.kernels import Category, Communication, UnknownCommunication, classify


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", None),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", None),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", None),
        ("ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)", None),
        ("ncclKernel_AllGather_RING_LL_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)", None),
        ("ncclKernel_Broadcast_RING_LL_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)", None),
        ("ncclSymkDevKernel_AllReduce_AGxLL_R_sum_f32(ncclSymkDevWorkArgs4K)", None),
        ("ncclSymDevKernel_AllGather_LL(ncclSymDevArgs)", None),
        ("void dpsk::ep::internode::combine<false, 8, __nv_bfloat16, 8, 2, 16, 24>(int4*, float*)", CommKind.ep),
        ("void dpsk::ep::internode::cached_notify<false>(int, int)", CommKind.ep),
        ("void dpsk::ep::cuda::get_dispatch_layout<256, 32, 8>(long const*, int*)", CommKind.ep),
        ("void deep_ep::internode_ll::dispatch<true, false, 7168>(void*, float*)", CommKind.ep),
        ("_ZN7deep_ep9intranode8dispatchILi8ELi768ELi8192EEEvP4int4Pf", CommKind.ep),
        ("void deep_ep::legacy::layout::get_dispatch_layout<256, 32, 8>(long const*)", CommKind.ep),
        ("c10d::nvshmem_extension::allToAllV(void*, void*, long*, unsigned long, int, int)", CommKind.ep),
        ("void c10d::nvshmem_extension::exchangeSplitAndOffset_2d<false>(long*, long*)", CommKind.ep),
        ("void alltoall_on_stream_kernel<char, (threadgroup_t)2>(int, char*)", None),
        ("void (anonymous namespace)::two_shot_all_reduce_kernel<c10::BFloat16, 16, 2>(c10::BFloat16**)", None),
        ("void multimem_all_gather_kernel<16>(char*, char*, unsigned long)", None),
        ("Memcpy PtoP (Device -> Device)", None),
        ("peer_rows_wanted", CommKind.ep),
        ("peer_rows_taken", CommKind.ep),
        ("peer_rows_summed", CommKind.ep),
    ],
)
def test_communication(name: str, kind: CommKind | None) -> None:
    assert classify(name) == Communication(kind)


@pytest.mark.parametrize(
    "name",
    [
        "ncclDevKernel_Transmogrify_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "void deep_ep::elastic::hybrid_teleport_impl<8>(int4*)",
        "void vllm::cross_device_reduce_1stage<float, 2>(vllm::RankData*)",
        "my_all_gather_kernel",
        "void fused::AllToAllKernel<float>(float*)",
        "_ZN4mine20reduce_scatter_kernelIfEEvPfS1_",
        "symm_mem_copy_kernel",
    ],
)
def test_what_looks_like_communication_is_never_called_compute(name: str) -> None:
    with pytest.raises(UnknownCommunication, match=r"looks like communication.*train/trace/kernels\.py") as refused:
        classify(name)
    assert isinstance(refused.value, ConfigError)
    assert "<" not in str(refused.value), "the bare name, short enough for a line"


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", Category.dense_gemm),
        ("nvjet_sm90_qqtst_128x256_128x4_2x1_v_bz_coopA_bias_TNT", Category.dense_gemm),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize128x128x64_cublas", Category.dense_gemm),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_256x64_16x4_nt_align4>(Params)", Category.dense_gemm),
        ("void cutlass::device_kernel<dpsk::grouped_gemm::cuda::fp8_ptp128c::GemmKernel>(Params)", Category.dense_gemm),
        (
            "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::"
            "GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tuple<int, int, int> > > > >(Params)",
            Category.expert_gemm,
        ),
        (
            "void cutlass::device_kernel<dpsk::grouped_gemm::cuda::m_grouped_fp8_ptp128c::GemmKernel>(Params)",
            Category.expert_gemm,
        ),
        ("grouped_rows", Category.expert_gemm),
        ("grouped_weights", Category.expert_gemm),
        ("grouped_tiles", Category.permutation),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x128", Category.attention),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Traits<128> >(Params)", Category.attention),
        ("triton_tem_fused_flex_attention_0", Category.attention),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
            "FusedOptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::FusedAdamMathFunctor<float> >()",
            Category.optimizer,
        ),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
            "TensorListMetadata<1>, at::native::(anonymous namespace)::LpNormFunctor<float> >()",
            Category.norm_reduction,
        ),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float> >(ReduceOp)", Category.norm_reduction),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_1", Category.norm_reduction),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>(float*)", Category.norm_reduction),
        ("void at::native::vectorized_gather_kernel<16, long>(char*, char*)", Category.permutation),
        ("rows_of_tokens", Category.permutation),
        ("rows_spread", Category.permutation),
        ("one_pass_adamw", Category.optimizer),
        ("gradients_add", Category.elementwise),
        ("gradients_norm", Category.norm_reduction),
        ("cross_entropy_of_tokens", Category.norm_reduction),
        ("void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>(TensorInfo)", Category.permutation),
        (
            "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<Policy900, false, long>(long*)",
            Category.permutation,
        ),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)"
            "::{lambda()#2}>(int)",
            Category.copy_cast,
        ),
        (
            "void at::native::detail::split_with_sizes_copy_out_contiguous_no_cast_kernel<at::native::detail>(char**)",
            Category.copy_cast,
        ),
        ("void at::native::detail::chunk_cat_cuda_kernel<float, c10::BFloat16>(float**)", Category.copy_cast),
        ("Memcpy DtoD (Device -> Device)", Category.copy_cast),
        ("Memset (Device)", Category.copy_cast),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >(int)",
            Category.elementwise,
        ),
        ("_ZN2at6native12_GLOBAL__N__43distribution_elementwise_grid_stride_kernelIfLi4EEvv", Category.elementwise),
        # Named after the collective that it follows, in torch.compile's way; and in template arguments.
        ("swiglu_forward", Category.elementwise),
        ("swiglu_back", Category.elementwise),
        ("triton_poi_fused__to_copy_all_gather_into_tensor_wait_tensor_3", Category.elementwise),
        ("void cutlass::device_kernel<epilogue::AllReduceLikeName, cutlass::gemm::X>(Params)", Category.dense_gemm),
        ("void mine::whatever(ncclComm*)", Category.other),
    ],
)  # fmt: skip
def test_compute(name: str, category: Category) -> None:
    assert classify(name) is category
