"""Routing, dispatch and experts against a dense computation that needs none of them."""

import pytest
import torch
from harness.dense_experts import D, E, K, T, dense, experts
from harness.expert_trip import there_and_back
from harness.interpreted import check_interpreted, needs_triton
from torch._subclasses.fake_tensor import FakeTensorMode

from models.config import ExpertBackend, MoEConfig, ScoreFunction
from models.dispatcher import LocalDispatcher
from models.experts import RoutedExperts, choose_backend
from models.placement import ExpertPlacement
from models.router import Router, Routing, update_expert_bias


def routing(kind: str) -> Routing:
    generator = torch.Generator().manual_seed(2)
    if kind == "one_expert":
        experts_TK = torch.tensor([[2, 0, 1]]).expand(T, K).contiguous()  # experts 3 and 4 get nothing
    else:
        experts_TK = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(T)])
    return Routing(experts_TK, torch.rand(T, K, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["spread", "one_expert"])
@pytest.mark.parametrize("slots", [tuple(range(E)), (4, 2, 0, 3, 1)])
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("loop", "float64", 1e-12), ("grouped_mm", "float32", 1e-4)]
)
def test_equals_the_dense_computation(kind: str, slots: tuple, backend: str, dtype: str, tolerance: float) -> None:
    module = experts(ExpertBackend(backend), getattr(torch, dtype), slots)
    dispatcher = LocalDispatcher(ExpertPlacement.on_one_rank(slots))
    route = routing(kind)
    generator = torch.Generator().manual_seed(3)
    x_TD = torch.randn(T, D, generator=generator, dtype=torch.float64).to(getattr(torch, dtype)).requires_grad_()
    weights_TK = route.weights_TK.clone().requires_grad_()
    route = Routing(route.experts_TK, weights_TK)

    y_TD, counts_E = there_and_back(dispatcher, module, x_TD, route)
    assert torch.equal(counts_E, torch.bincount(route.experts_TK.flatten(), minlength=E))

    leaves = [x_TD, weights_TK, *module.parameters()]
    probe_TD = torch.randn(T, D, generator=generator, dtype=torch.float64).to(y_TD.dtype)
    gradients = torch.autograd.grad((y_TD * probe_TD).sum(), leaves)
    wide = experts(ExpertBackend.loop, torch.float64, slots)
    x_wide, w_wide = x_TD.detach().double().requires_grad_(), weights_TK.detach().requires_grad_()
    expected_TD = dense(x_wide, wide, Routing(route.experts_TK, w_wide))
    expected = torch.autograd.grad(
        (expected_TD * probe_TD).sum(), [x_wide, w_wide, *wide.parameters()], allow_unused=True
    )
    torch.testing.assert_close(y_TD.double(), expected_TD, rtol=0, atol=tolerance * expected_TD.abs().max().item())
    for got, want in zip(gradients, expected, strict=True):
        assert want is not None
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * want.abs().max().item())


def test_auto_backend() -> None:
    auto = ExpertBackend.auto
    rows_ND = torch.zeros(3, 32)
    assert choose_backend(auto, rows_ND.double(), 16) is ExpertBackend.loop
    assert choose_backend(auto, rows_ND, 16) is ExpertBackend.grouped_mm
    assert choose_backend(ExpertBackend.loop, rows_ND, 16) is ExpertBackend.loop
    assert choose_backend(auto, rows_ND, 30) is ExpertBackend.loop  # 120 bytes: grouped_mm wants multiples of 16
    assert choose_backend(auto, rows_ND.bfloat16(), 36) is ExpertBackend.loop


def test_auto_is_fused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = ExpertBackend.auto
    with FakeTensorMode():
        rows_ND = torch.empty(3, 32, device="cuda", dtype=torch.bfloat16)
    monkeypatch.setattr("models.experts.triton_lacks", lambda: None)
    assert choose_backend(auto, rows_ND, 16) is ExpertBackend.fused
    assert choose_backend(ExpertBackend.triton, rows_ND, 16) is ExpertBackend.triton
    assert choose_backend(auto, rows_ND, 16, whole_backward=False) is ExpertBackend.grouped_mm
    assert choose_backend(ExpertBackend.grouped_mm, rows_ND, 16) is ExpertBackend.grouped_mm
    assert choose_backend(auto, rows_ND, 36) is ExpertBackend.loop
    monkeypatch.setattr("models.experts.triton_lacks", lambda: "it is not there")
    assert choose_backend(auto, rows_ND, 16) is ExpertBackend.grouped_mm


@needs_triton
@pytest.mark.parametrize("kernels", ["experts", "products"])
def test_kernels_are_the_loop(kernels: str) -> None:
    check_interpreted(f"harness.kernels_beside_{kernels}")


@pytest.mark.parametrize("backend", [ExpertBackend.loop, ExpertBackend.grouped_mm])
def test_rows_of_no_slot_are_in_nothing(backend: ExpertBackend) -> None:
    module = experts(backend, torch.float32, tuple(range(E)))
    offsets_E = torch.tensor([2, 2, 5, 6, 6], dtype=torch.int32)
    generator = torch.Generator().manual_seed(7)
    rows_ND, probe_ND = (torch.randn(10, D, generator=generator) for _ in range(2))
    outcomes = []
    for n_rows in (6, 10):
        rows_ND[6:] = probe_ND[6:] = float("nan")
        rows_nD = rows_ND[:n_rows].clone().requires_grad_()
        y_nD = module.compute(rows_nD, offsets_E, *module.parameters())
        gradients = torch.autograd.grad(y_nD, [rows_nD, *module.parameters()], probe_ND[:n_rows])
        outcomes.append([y_nD[:6], gradients[0][:6], *gradients[1:]])
    for without, beside in zip(*outcomes, strict=True):
        assert torch.equal(without, beside)


def test_any_width_runs() -> None:
    moe = MoEConfig(n_routed=E, expert_dim=30)
    module = RoutedExperts(moe, 33, 1, tuple(range(E)), ExpertBackend.auto)
    offsets_E = torch.tensor([1, 1, 2, 4, 4], dtype=torch.int32)
    assert module.compute(torch.zeros(4, 33), offsets_E, *module.parameters()).shape == (4, 33)


@pytest.mark.parametrize(
    ("backend", "dtype"), [("loop", "float64"), ("grouped_mm", "float32"), ("grouped_mm", "bfloat16")]
)
@pytest.mark.parametrize("ends", [[2, 2, 5, 6, 6], [0, 0, 0, 0, 0]])
def test_nothing_comes_of_rows_past_the_last_end(backend: str, dtype: str, ends: list[int]) -> None:
    """Were they NaN: outputs, gradients of rows and of weights are those of the rows before it."""
    module = experts(ExpertBackend(backend), getattr(torch, dtype), tuple(range(E)))
    offsets_E = torch.tensor(ends, dtype=torch.int32)
    generator = torch.Generator().manual_seed(5)
    rows_ND, grad_ND = (torch.randn(16, D, generator=generator).to(getattr(torch, dtype)) for _ in range(2))
    for undefined_ND in (rows_ND, grad_ND):
        undefined_ND[ends[-1] :] = torch.nan
    results = []
    for n_rows in (16, ends[-1]):
        leaf_ND = rows_ND[:n_rows].clone().requires_grad_()
        y_ND = module.compute(leaf_ND, offsets_E, *module.parameters())
        assert y_ND.shape == leaf_ND.shape
        of_rows, *of_weights = torch.autograd.grad(y_ND, [leaf_ND, *module.parameters()], grad_ND[:n_rows])
        results.append([y_ND[: ends[-1]], of_rows[: ends[-1]], *of_weights])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("score", list(ScoreFunction))
@pytest.mark.parametrize("normalise", [True, False])
def test_router(score: ScoreFunction, normalise: bool) -> None:
    moe = MoEConfig(n_routed=E, top_k=K, score=score, normalise_weights=normalise, route_scale=2.5)
    router = Router(moe, D).double()
    router.gate.weight.data = torch.randn(E, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    router.reset_buffers()
    x_TD = torch.randn(T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits_TE = x_TD @ router.gate.weight.T
    scores_TE = logits_TE.softmax(-1) if score is ScoreFunction.softmax else 1 / (1 + (-logits_TE).exp())
    chosen = router(x_TD.unsqueeze(0))
    for t in range(T):
        best = sorted(range(E), key=lambda e: -scores_TE[t, e].item())[:K]
        assert chosen.experts_TK[t].tolist() == best
        weights = scores_TE[t, best]
        weights = 2.5 * (weights / weights.sum() if normalise else weights)
        torch.testing.assert_close(chosen.weights_TK[t], weights)


def test_bias_moves_the_choice_and_not_the_weights() -> None:
    router = Router(MoEConfig(n_routed=E, top_k=1, normalise_weights=False), D).double()
    router.gate.weight.data.zero_()
    router.reset_buffers()
    router.expert_bias_E[3] = 1.0
    chosen = router(torch.ones(1, T, D, dtype=torch.float64))
    assert (chosen.experts_TK == 3).all()
    torch.testing.assert_close(chosen.weights_TK, torch.full((T, 1), 0.5, dtype=torch.float64))


def test_a_token_that_no_expert_wants_gets_no_nan() -> None:
    router = Router(MoEConfig(n_routed=E, top_k=K), D)
    router.gate.weight.data.fill_(-100.0)
    router.reset_buffers()
    assert router(torch.ones(1, T, D)).weights_TK.eq(0).all()


def test_bias_rises_for_idle_experts_and_falls_for_busy_ones() -> None:
    counts_LE = torch.tensor([[0, 4, 8], [4, 4, 4]])
    moved = update_expert_bias(torch.zeros(2, 3), counts_LE, rate=0.5)
    assert moved.tolist() == [[0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("slots", [(0, 1, 1), (0, 2), ()])
def test_a_placement_holds_every_expert_once(slots: tuple) -> None:
    if slots:
        with pytest.raises(ValueError, match="once"):
            ExpertPlacement.on_one_rank(slots)
    else:
        with pytest.raises(ValueError, match="divide"):
            ExpertPlacement.contiguous(8, 3)


def test_auto_takes_the_loop_under_compile_on_cpu() -> None:
    """grouped_mm in float32 does not trace there."""
    module = experts(ExpertBackend.auto, torch.float32, tuple(range(E)))
    rows_ND = torch.randn(6, D, generator=torch.Generator().manual_seed(4))
    offsets_E = torch.tensor([1, 1, 3, 6, 6], dtype=torch.int32)
    weights = tuple(module.parameters())
    compiled = torch.compile(module.compute, backend="aot_eager")
    torch.testing.assert_close(compiled(rows_ND, offsets_E, *weights), module.compute(rows_ND, offsets_E, *weights))
    grouped = experts(ExpertBackend.grouped_mm, torch.float32, tuple(range(E)))
    forced = torch.compile(grouped.compute, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"(?i)bf16|bfloat16"):
        forced(rows_ND, offsets_E, *weights)
