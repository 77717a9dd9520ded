"""The peer: transformers on our words, two gloo ranks, beside a point of ours."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.measured_machine import make_measured
from harness.train_alone import train_alone
from harness.worker_pool import WorkerPool
from transformers import AutoConfig, AutoModelForCausalLM

from conf.compose import compose
from launch.cli import main
from models import hf_config
from models.router import Router
from train.metrics.jsonl import METRICS_FILE, read_jsonl
from train.metrics.summary import SUMMARY_FILE, RunSummary

# What transformers calls DeepSeek-V3, whose biases it does not move.
MODEL = [
    "model=tiny_mla",
    "model.moe.score=sigmoid",
    "model.moe.normalise_weights=true",
    "model.moe.bias_update_rate=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pool: WorkerPool) -> Path:
    """Both from the same weights: a run's, exported."""
    parent = tmp_path_factory.mktemp("bench")
    run, folder = parent / "run", parent / "b"
    pool.run(1, train_alone, *MODEL, "data=synthetic", "train.steps=1", "logging=off", f"run.dir={run}")
    assert main(["export", str(run), "--format", "hf"]) == 0
    make_measured(folder, nproc=2)
    words = [f"to={folder}", "nproc=2", "rounds=1", *MODEL, "strategy=fsdp", "train.steps=12", "train.log_every=1"]
    words += [f"model.init_from={run / 'hf'}", "optim.warmup_steps=2"]
    assert main(["bench", *words, "peer=transformers", "peer.compile=false"]) == 0
    return folder


def test_the_peer_is_a_row_among_ours(folder: Path) -> None:
    points = {point["name"]: point for point in json.loads((folder / "bench.json").read_text())["points"]}
    assert points.keys() == {"fsdp", "transformers"}
    for point in points.values():
        assert point["tokens_per_sec"]["median"] > 0
        assert 0 < point["mfu"]["median"] < 1
    assert "roofline" not in points["transformers"]


def test_its_summary_has_our_keys_and_counts_our_flops(folder: Path) -> None:
    ours, peer = (RunSummary.read(folder / "runs" / f"{name}-r1" / SUMMARY_FILE) for name in ("fsdp", "transformers"))
    assert ours is not None
    assert peer is not None
    for name in ("steps", "tokens", "parameters", "parameters_active", "world_size", "device"):
        assert getattr(ours, name) == getattr(peer, name)
    flops_a_token = [s.mfu * s.peak_tflops / s.tokens_per_sec for s in (ours, peer) if s.mfu]
    assert flops_a_token[0] == pytest.approx(flops_a_token[1], rel=1e-6)


def test_where_its_steps_go_is_told_as_ours_is(folder: Path) -> None:
    points = {point["name"]: point for point in json.loads((folder / "bench.json").read_text())["points"]}
    for point in points.values():
        assert {"compute_fwd", "compute_bwd", "compute_opt", "exposed_comm/fsdp"} <= point["breakdown_s"].keys()
        assert "of a step; try " in point["bound_by"]
    run = folder / "runs" / "transformers-r1"
    rows = [row for row in read_jsonl(run / METRICS_FILE) if "train/loss" in row]  # our last one has the books
    for row in rows[1:]:  # ranks begin the first step at moments of their own
        assert row["time/wall_s"] == pytest.approx(row["perf/step_time_s"], rel=0.05, abs=2e-3)
    assert "host clock; " in (run / "config.yaml").read_text()


def column(run: Path, key: str) -> list[float]:
    return [row[key] for row in read_jsonl(run / METRICS_FILE) if key in row]


def test_its_loss_falls(folder: Path) -> None:
    """Random tokens teach that they are even: the loss of every model falls to ln 256 and stays there."""
    for name in ("fsdp", "transformers"):
        found = column(folder / "runs" / f"{name}-r1", "train/loss")
        assert len(found) == 12
        assert all(map(math.isfinite, found))
        assert math.log(256) - 0.01 < sum(found[-4:]) / 4 < sum(found[:4]) / 4


def test_it_trains_as_ours_does(folder: Path) -> None:
    """So it is the same function, and the global batch's mean gradient that it clips and steps by."""
    ours, peer = (folder / "runs" / f"{name}-r1" for name in ("fsdp", "transformers"))
    for key in ("train/loss", "train/grad_norm"):
        assert column(peer, key)[0] == pytest.approx(column(ours, key)[0], rel=1e-5)
        assert column(peer, key) == pytest.approx(column(ours, key), rel=1e-3)
    assert column(peer, "train/loss") == pytest.approx(column(ours, "train/loss"), abs=2e-5)


def built_and_plain() -> tuple[dict[str, Any], dict[str, Any], float, bool]:
    """On one rank: the peer's buffers and transformers' own, the spread of its weights, and whether ranks' differ."""
    from benchmarks.peer_transformers import build

    job = compose([*MODEL, "strategy=fsdp"]).config
    torch.manual_seed(7 + torch.distributed.get_rank())
    network = build(job, torch.device("cpu"), compiled=False)
    published = hf_config.write_config(job.model, "float32")
    config = AutoConfig.for_model(published.pop("model_type"), **published)
    plain = AutoModelForCausalLM.from_config(config)
    weights = network.get_input_embeddings().weight.to_local().detach().double()
    sums = [torch.zeros_like(weights) for _ in range(2)]
    torch.distributed.all_gather(sums, weights)
    spread = weights.std().item() / plain.get_input_embeddings().weight.std().item()
    return dict(network.named_buffers()), dict(plain.named_buffers()), spread, not torch.equal(*sums)


QWEN = ["model=tiny", "model.attention.qk_norm=true", "model.moe.score=softmax", "model.moe.n_shared=0"]


def dealt_by_the_peer(*model: str) -> list[tuple[Any, Any]]:
    """What each of its routers chose and how it weighed, and what ours does with the same weights."""
    from benchmarks.peer_transformers import build

    words = ["strategy=fsdp", "data.sequence_length=32", "model.moe.routing=balanced", "model.moe.balance=none"]
    job = compose([*model, *words]).config
    network = build(job, torch.device("cpu"), compiled=False)
    found: list[tuple[Any, Any]] = []

    def compare(gate: Any, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, ...]) -> None:
        ours = Router(job.model.moe, job.model.dim)
        ours.gate.weight.data = gate.weight.detach()
        routing = ours(inputs[0].detach().view(2, 32, -1))
        found.append(((output[2], output[1].detach()), (routing.experts_TK, routing.weights_TK.detach())))

    for layer in network.model.layers[1:]:
        layer.mlp.gate.register_forward_hook(compare)
    network(input_ids=torch.arange(64).view(2, 32))
    return found


@pytest.mark.parametrize("model", [[word for word in MODEL if "bias" not in word], QWEN], ids=["deepseek_v3", "qwen3"])
def test_a_peer_deals_experts_out_as_ours_does(model: list[str], pool: WorkerPool) -> None:
    (found,) = pool.run(1, dealt_by_the_peer, *model)
    assert len(found) == 2
    for (peer_experts, peer_weights), (experts, weights) in found:
        assert torch.equal(peer_experts, experts)
        torch.testing.assert_close(peer_weights, weights)


def test_what_is_drawn_shard_by_shard_is_as_transformers_draws_it(pool: WorkerPool) -> None:
    """Angles too, which are in no file and had no storage at first."""
    for built, plain, spread, different in pool.run(2, built_and_plain):
        assert built.keys() == plain.keys()
        assert any("inv_freq" in name for name in built)
        for name, buffer in plain.items():
            assert torch.equal(built[name], buffer), name
        assert spread == pytest.approx(1, abs=0.1)
        assert different
