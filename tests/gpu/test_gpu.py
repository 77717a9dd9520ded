"""What only a GPU can show: NCCL layouts, fused kernels, bf16, pinned copies. Run on one or two GPUs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.torchrun import torchrun
from torch.utils._python_dispatch import TorchDispatchMode

from conf.compose import compose
from models.attention import build_attention
from models.config import ExpertBackend, MoEConfig
from models.experts import RoutedExperts
from models.positions import Positions
from parallel.pipeline.schedules import ScheduleName

pytestmark = pytest.mark.gpu
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
COMMON = (
    "model=tiny",
    "train.steps=10",
    "train.log_every=1",
    "logging=off",
    "checkpoint=off",
    "train.eval_sequences=4",
)


def losses(nproc: int, folder: Path, *words: str) -> list[float]:
    done = torchrun(nproc, *COMMON, *words, f"run.dir={folder}", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]  # the last one has the books alone


@pytest.fixture(scope="module")
def cpu_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(1, tmp_path_factory.mktemp("cpu"), "strategy=single", "precision=fp64", "train.device=cpu")


def test_one_gpu_equals_the_cpu_in_float64(cpu_losses: list[float], tmp_path: Path) -> None:
    got = losses(1, tmp_path, "strategy=single", "precision=fp64")
    assert got == pytest.approx(cpu_losses, abs=1e-9)


ALL_OPTIONS = (
    "model.attention.qk_norm=true",
    "model.attention.bias=true",
    "model.attention.rope_fraction=0.5",
    "model.moe.n_groups=4",
    "model.moe.groups_per_token=2",
    "model.moe.capacity_factor=0.9",
    "model.moe.sequence_loss_weight=0.01",
    "model.moe.batch_loss_weight=0.01",
    "model.moe.z_loss_weight=0.001",
    "model.loss_chunk_size=500",
    "data.boundaries=attention",
)


def test_every_option_on_gpus_equals_the_cpu_in_float64(tmp_path: Path) -> None:
    on_cpu = losses(1, tmp_path / "cpu", "strategy=single", "precision=fp64", "train.device=cpu", *ALL_OPTIONS)
    nproc = min(2, torch.cuda.device_count())
    strategy = "fsdp" if nproc == 2 else "single"
    got = losses(nproc, tmp_path / "gpu", f"strategy={strategy}", "precision=fp64", *ALL_OPTIONS)
    assert got == pytest.approx(on_cpu, abs=1e-9)


@pytest.mark.parametrize("model", ["tiny", "tiny_mla"])
def test_documents_in_bf16_stay_near_float32(model: str, tmp_path: Path) -> None:
    words = ("strategy=single", f"model={model}", "data.boundaries=attention")
    exact = losses(1, tmp_path / "fp32", *words, "precision=fp32")
    rough = losses(1, tmp_path / "bf16", *words, "precision=bf16")
    assert rough == pytest.approx(exact, abs=5e-2)


@TWO
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("overlap", ["default", "max"])
def test_two_gpus_equal_one_process_in_float64(
    strategy: str, overlap: str, cpu_losses: list[float], tmp_path: Path
) -> None:
    got = losses(2, tmp_path, f"strategy={strategy}", "precision=fp64", f"overlap={overlap}")
    assert got == pytest.approx(cpu_losses, abs=1e-9)


LAYOUTS = [
    "zero1",
    "ep",
    "ep strategy.dispatcher=all_gather",
    "ep strategy.dispatcher=symmetric_memory",
    "ep strategy.placement=round_robin",
    "fsdp_ep",
    "tp",
    "tp strategy.etp=2",
    "tp_ep",
    "fsdp strategy.recompute=full",
    *(f"pp strategy.schedule={name.name} model.n_layers=6" for name in ScheduleName),
]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, list[float]]:
    """By the number of layers (None: the model's own), in float64 on the CPU."""
    words = ("strategy=single", "precision=fp64", "train.device=cpu")
    depths: dict[int | None, tuple[str, ...]] = {None: (), 6: ("model.n_layers=6",)}
    return {n: losses(1, tmp_path_factory.mktemp("cpu"), *words, *deeper) for n, deeper in depths.items()}


@TWO
@pytest.mark.parametrize("words", LAYOUTS)
def test_every_layout_on_two_gpus(words: str, references: dict[int | None, list[float]], tmp_path: Path) -> None:
    """NCCL carries what gloo does, and bf16 stays near float64."""
    expected = references[6 if "n_layers=6" in words else None]
    got = losses(2, tmp_path / "fp64", *f"strategy={words}".split(), "precision=fp64")
    assert got == pytest.approx(expected, abs=1e-9)
    rough = losses(2, tmp_path / "bf16", *f"strategy={words}".split(), "precision=bf16")
    assert rough != expected
    assert rough == pytest.approx(expected, abs=5e-2)


@pytest.mark.parametrize("model", ["tiny", "tiny_mla"])
def test_bf16_stays_near_float32(model: str, tmp_path: Path) -> None:
    exact = losses(1, tmp_path / "fp32", "strategy=single", "precision=fp32", f"model={model}")
    for strategy in ("single", "fsdp"):
        rough = losses(1, tmp_path / strategy, f"strategy={strategy}", "precision=bf16", f"model={model}")
        assert rough != exact
        assert rough == pytest.approx(exact, abs=5e-2)


def test_one_process_and_fsdp_compute_the_same_in_bf16(tmp_path: Path) -> None:
    """Both round masters to bf16 in the same places; the first step has seen no reduction yet."""
    one = losses(1, tmp_path / "single", "strategy=single", "precision=bf16")
    sharded = losses(1, tmp_path / "fsdp", "strategy=fsdp", "precision=bf16")
    assert one[0] == sharded[0]
    assert one == pytest.approx(sharded, abs=2e-2)


@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_a_job_resumes_on_gpus(strategy: str, tmp_path: Path) -> None:
    words = (f"strategy={strategy}", "checkpoint=default", "optim.schedule=constant")
    whole = losses(1, tmp_path / "constant", *words)
    first = losses(1, tmp_path / "parts", *words, "train.steps=6")
    both = losses(1, tmp_path / "parts", *words)
    assert both[:6] == first
    assert both == pytest.approx(whole, abs=1e-4)


def test_grouped_mm_equals_the_loop() -> None:
    moe = MoEConfig(n_routed=8, expert_dim=128)
    generator = torch.Generator("cuda").manual_seed(0)
    counts = torch.tensor([40, 0, 3, 117, 1, 64, 200, 31], device="cuda")
    rows_ND = torch.randn(int(counts.sum()), 256, generator=generator, device="cuda").bfloat16().requires_grad_()
    probe_ND = torch.randn(rows_ND.shape, generator=generator, device="cuda").bfloat16()
    outcomes = []
    for backend in (ExpertBackend.loop, ExpertBackend.grouped_mm):
        module = RoutedExperts(moe, 256, 1, tuple(range(8)), backend).cuda()
        weights = torch.Generator("cuda").manual_seed(1)
        for parameter in module.parameters():
            parameter.data.normal_(std=0.06, generator=weights)
        y_ND = module.compute(rows_ND, counts.cumsum(0).int(), *module.parameters())
        outcomes.append([y_ND, *torch.autograd.grad(y_ND, [rows_ND, *module.parameters()], probe_ND)])
    for loop, grouped in zip(*outcomes, strict=True):
        error = (loop.float() - grouped.float()).norm() / loop.float().norm()
        assert error < 1e-2
        assert grouped.float().abs().max() > 0


class Attentions(TorchDispatchMode):
    """Notes what attention is done by."""

    def __init__(self) -> None:
        super().__init__()
        self.done_by: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func.__name__:
            self.done_by.append(func.__name__.removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["moe_5b", "moe_5b_gqa"])
def test_attention_runs_on_cudnn(name: str) -> None:
    """Heads of 192 and 128, which flash refuses, and eight queries that share keys: none falls through to what is
    slower."""
    model = compose([f"model={name}"]).config.model
    attention = build_attention(model).to("cuda", torch.bfloat16)
    x_BSD = torch.randn(1, 512, model.dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    positions = Positions.of(None, 512, model.attention, torch.bfloat16, x_BSD.device)
    with Attentions() as seen:
        attention(x_BSD, positions).sum().backward()
    assert seen.done_by == [f"_scaled_dot_product_cudnn_attention{which}" for which in ("", "_backward")]
