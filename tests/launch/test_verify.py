"""`switchyard verify`: what is right is green, what is wrong is named, and nothing a layout divides is scaled away."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.command_line import CommandLine
from conf.compose import compose
from conf.options import Options
from conf.schema import validate
from launch.cli import main
from launch.verify.command import strategies
from launch.verify.compare import FLOAT64, compare, describe
from launch.verify.job import Job
from launch.verify.pieces import Piece, merge
from launch.verify.ranks import RankFailed, run_ranks
from launch.verify.routing import Share, pinned, recorded
from launch.verify.scale_down import scale_down
from launch.verify.trial import WholeStep
from models.config import ConfigError, MoEConfig
from models.flops import count_parameters
from models.router import Router
from parallel.mesh import Axis, Degrees
from parallel.traffic.tally import Traffic
from parallel.world import World

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = list(Options.find().files["strategy"])
LINE = CommandLine.parse([], "")


def test_layouts_that_are_right_are_green(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "model=tiny_mla", "strategy=fsdp_ep,pp", "data.boundaries=attention"]) == 0
    out = capsys.readouterr().out
    assert "2 layouts equal to one process" in out
    assert "not as predicted" not in out
    assert "dp_shard=2 ep=2" in out
    assert "pp=2 1f1b" in out


def test_an_even_length_stays_even_when_scaled_down() -> None:
    words = ["model=dsv3", "model.moe.routing=balanced", "model.moe.balance=none", "model.moe.top_k=6"]
    job = compose([*words, "data=synthetic", "data.sequence_length=3072", "strategy=tp"]).config
    validate(job, 2)
    assert scale_down(job, Degrees.resolve(job.strategy, 2)).data.sequence_length == 128  # 6 of 256 experts a token


def test_engines_are_compared_with_their_routing_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train.micro_batch_size=2", "strategy.recompute=full", "train.steps=2"]
    assert main(["verify", "model=tiny", "strategy=accelerate_ddp,accelerate_fsdp,deepspeed_zero3", *words]) == 0
    out = capsys.readouterr().out
    assert "2 layouts equal to one process" in out
    assert "not here" in out
    assert "accelerate_fsdp runs on GPUs only: on CPU Accelerate ignores its FSDP2 settings" in out
    assert main(["verify", "model=tiny", "strategy=accelerate_fsdp"]) == 2
    assert "accelerate_fsdp runs on GPUs only" in capsys.readouterr().err


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_rank_takes_its_share_of_pinned_choices(recomputed: bool) -> None:
    """Two layers, two micro-batches of two ranks' two sequences each; rank 1, backward in the other order."""
    moe = MoEConfig(n_routed=16, top_k=1)
    routers = [Router(moe, dim=4) for _ in range(2)]
    for router in routers:
        torch.nn.init.normal_(router.gate.weight)
    calls = [np.full((4, 3, 1), 4 * call) + np.arange(4).reshape(4, 1, 1) for call in range(4)]
    share = Share(Axis(None, rank=1, size=2), micro_batch_size=2, n_micro_batches=2, recomputed=recomputed)
    x_BSD = torch.randn(2, 3, 4)
    with recorded(3) as taken, pinned(calls, share):
        for _ in range(2):
            for router in routers:
                router(x_BSD)
            for router in reversed(routers if recomputed else []):
                router(x_BSD)
    order = [0, 1, 1, 0, 2, 3, 3, 2] if recomputed else [0, 1, 2, 3]
    assert len(taken) == len(order)
    for seen, call in zip(taken, order, strict=True):
        np.testing.assert_array_equal(seen, calls[call][2:])
    with recorded(3) as taken:
        routers[0](x_BSD)
    assert not np.array_equal(taken[0], calls[3][2:])


BROKEN = {
    "ddp reduces twice": (
        "ddp",
        """
        from parallel.gradient_reducer import GradientReducer
        whole = GradientReducer.finish_step
        def twice(self):
            whole(self)
            whole(self)
        GradientReducer.finish_step = twice
        """,
        ("step 1: gradient gradient.", "a factor of 2: reduced twice, or not averaged, over strategy.dp_replicate (2)"),
    ),
    "nothing is clipped where there are ranks": (
        "ddp",
        """
        import torch.distributed as dist
        import parallel.native_engine as engine
        whole = engine.clip_coefficient
        engine.clip_coefficient = lambda norm, most: whole(norm, most) if dist.get_world_size() == 1 else None
        """,
        ("step 1: updated weight model.",),
    ),
    "an engine does not step": (
        "deepspeed_zero2",
        """
        from parallel.deepspeed_engine import DeepSpeedEngine
        whole = DeepSpeedEngine.update
        def still(self, max_norm, losses):
            self.set_rate(0.0)
            return whole(self, max_norm, losses)
        DeepSpeedEngine.update = still
        """,
        ("step 1: updated weight model.",),
    ),
    "experts' gradients are not reduced": (
        "hsdp_ep",
        """
        from parallel.mesh import Axis, Grid
        import torch.distributed as dist
        whole = Grid.mesh
        def without_copies(self, names, *more):
            return whole(self, names[-1:] if names[0] == "copies" else names, *more)
        Grid.mesh = without_copies
        """,
        ("two ranks that hold the same part differ",),
    ),
}


IN_EVERY_RUN = ("ddp reduces twice", "nothing is clipped where there are ranks")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_EVERY_RUN else [pytest.mark.soak]) for name in BROKEN]
)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    """With the code broken in every process, as a user's own change would."""
    strategy, code, said = BROKEN[name]
    lines = [line.removeprefix("        ") for line in code.splitlines()]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "verify", "model=tiny", f"strategy={strategy}", "train.steps=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "1 of 1 layout failed or differ" in done.stdout
    for text in said:
        assert text in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def raise_on_rank_1(world: World) -> int:
    if world.rank == 1:
        raise RuntimeError("out of luck")
    torch.distributed.barrier()
    return world.rank


def be_killed_on_rank_1(world: World) -> int:
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()
    return world.rank


def tell_rank(world: World) -> int:
    print("noise, which goes to a file")
    return world.rank


def test_ranks_return_or_the_first_that_failed_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_ranks(3, "cpu", tell_rank) == [0, 1, 2]
    with pytest.raises(RankFailed, match=r"^rank 1: RuntimeError: out of luck$"):
        run_ranks(2, "cpu", raise_on_rank_1)
    with pytest.raises(RankFailed, match=r"^rank 1: died with exit code -9$"):
        run_ranks(2, "cpu", be_killed_on_rank_1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", ["tiny_mla", "moe_5b", "dsv3"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_scaled_job_is_small_and_keeps_what_is_divided(model: str, strategy: str) -> None:
    words = [f"model={model}", "train.global_batch_size=32", "data=synthetic", "data.sequence_length=128"]
    job = Job.compose(strategy, words, None, None)
    asked = compose([*words, f"strategy={strategy}"]).config
    validate(job.scaled, job.n_ranks)
    was, now = asked.model, job.scaled.model
    assert count_parameters(now).total < 6e6
    assert replace(now.moe, expert_dim=0) == replace(was.moe, expert_dim=0)
    for name in ("n_heads", "n_kv_heads", "kind", "yarn", "qk_norm", "bias", "rope_fraction"):
        assert getattr(now.attention, name) == getattr(was.attention, name)
    assert now.n_dense_layers == was.n_dense_layers
    assert job.degrees == Degrees.resolve(asked.strategy, job.n_ranks)
    assert job.scaled.train.micro_batches(job.degrees.dp, job.degrees.pp) >= 2 * job.degrees.pp * (job.degrees.pp > 1)


def test_layers_go_by_whole_rounds_of_stages() -> None:
    tiny = compose(["model=tiny", "strategy=pp", "strategy.pp=4", "train.global_batch_size=16"]).config
    for n_layers in range(8, 64):
        job = replace(tiny, model=replace(tiny.model, n_layers=n_layers))
        scaled = scale_down(job, Degrees.resolve(job.strategy, 4))
        assert scaled.model.n_layers <= n_layers
        assert (n_layers - scaled.model.n_layers) % 4 == 0
        assert scaled.model.n_layers <= 1 + 8 + 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=fdsp"], "strategy=fdsp: no such strategy; did you mean fsdp?"),
        (["strategy=ddp,nope"], "strategy=nope: no such strategy"),
        (["strategy=ddp", "nproc=0"], "nproc=0: set it to the number of ranks, at least 1"),
        (["strategy=fsdp_tp", "nproc=3"], "strategy.tp=2 takes a multiple of 2 ranks, and 3 were started"),
        (
            ["strategy=tp", "model.attention.n_heads=3", "model.attention.n_kv_heads=1"],
            "does not divide over strategy.tp",
        ),
        (["strategy=ddp", "strategy.compile=true"], "verify looks at each layer's choices while it computes"),
        (
            ["strategy=ddp", "strategy.cuda_graph=true", "precision=bf16", "overlap.grad_reduce=false"],
            "strategy.cuda_graph=true: verify looks at each layer's choices while it computes",
        ),
        (
            ["strategy=ep", "strategy.dispatcher=symmetric_memory"],
            "strategy.dispatcher=symmetric_memory: GPUs read each other's memory, a cpu does not; set it to all_gather",
        ),
        (["strategy=ddp", "train.stepz=1"], "unknown key 'train.stepz'"),
    ],
)
def test_bad_words_are_refused_before_a_process_is_started(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "model=tiny", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_names_of_strategies() -> None:
    assert strategies("all", LINE) == STRATEGIES
    assert strategies("ddp,tp", LINE) == ["ddp", "tp"]
    assert strategies(None, LINE) == ["ddp"]
    with pytest.raises(ConfigError, match="no such strategy"):
        strategies("", LINE)


def test_the_job_that_is_compared_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "model=moe_5b", "strategy=ep", "--cfg", "job"]) == 0
    out = capsys.readouterr().out
    assert "# ep on 2 ranks, as it is compared" in out
    assert "n_routed: 64" in out


WITHOUT = ["precision=bf16", "model.expert_backend=fused", "optim.one_pass=true", "optim.halves=true"]


def test_what_its_dtype_has_nothing_of_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "model=tiny", "strategy=zero1", "nproc=1", "train.steps=1", *WITHOUT]) == 0
    out = capsys.readouterr().out
    said = "not compared, since that dtype has no such thing: model.expert_backend=fused optim.halves=true"
    assert said in " ".join(out.split())


@pytest.mark.parametrize("backend", ["loop", "grouped_mm", "fused", "triton"])
def test_experts_are_those_of_the_dtype(backend: str) -> None:
    """An engine's is float32, which grouped_mm has."""
    words = ["model=tiny", "precision=bf16", f"model.expert_backend={backend}"]
    for strategy, kept in (("ddp", ["loop"]), ("deepspeed_zero2", ["loop", "grouped_mm"])):
        job = Job.compose(strategy, words, None, 2)
        assert job.scaled.model.expert_backend.value == (backend if backend in kept else "auto")
        assert job.not_compared == (() if backend in kept else (f"model.expert_backend={backend}",))


def test_what_float64_does_not_keep_is_no_reason_to_refuse(older_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a wait, on a GPU without Triton: the layout can be compared all the same."""
    monkeypatch.setattr("train.start.compilers.triton_lacks", lambda: "there is no package triton; install it")
    words = ["model=tiny", "precision=bf16", "strategy.dispatcher=all_gather", "strategy.rows=static"]
    Job.compose("ep", [*words, "optim.one_pass=true", "measure.nvtx=true"], None, 2).check_device("cuda")


def step(**changes: object) -> WholeStep:
    same = WholeStep(
        loss=2.0,
        router_loss=0.0,
        grad_norm=1.0,
        chosen_LE=np.array([[3.0, 5.0]]),
        dropped_LE=np.zeros((1, 2)),
        gradients={"gradient.a": np.array([1.0, 2.0]), "gradient.b": np.array([0.5, -0.5])},
        weights={"model.a": np.array([1.0, 1.0])},
        eval_loss=3.0,
        traffic=Traffic(),
    )
    return replace(same, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"loss": 2.0 * (1 + 1e-15)}, None),
        ({"loss": 4.0}, "loss is 4, and 2 in one process; the same but for a factor of 2: reduced twice"),
        ({"loss": float("nan")}, "loss is nan, and 2 in one process"),
        ({"grad_norm": 3.0}, r"grad_norm is 3, .*reduced twice, or not averaged, over strategy.tp \(3\)"),
        (
            {"chosen_LE": np.array([[4.0, 4.0]])},
            "other experts.* first in MoE layer 0, expert 0: 4, and 3 in one process",
        ),
        ({"dropped_LE": np.ones((1, 2))}, "2 pairs were dropped for want of capacity, and 0 in one process"),
        ({"weights": {"model.a": np.array([1.0, 1.1])}}, "updated weight model.a differs: norm ratio"),
        ({"weights": {}}, "updated weight model.a is only in one process"),
        ({"eval_loss": 3.1}, "held-out loss is 3.1, and 3 in one process"),
    ],
)
def test_the_first_thing_that_differs_is_said(changes: dict[str, object], said: str | None) -> None:
    comparison = compare([step(**changes)], [step()], FLOAT64, {"strategy.tp": 3, "strategy.pp": 1})
    if said is None:
        assert comparison.first is None
    else:
        assert comparison.first is not None
        assert re.search(said, comparison.first), comparison.first


A = np.array([1.0, -2.0, 3.0])


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (4 * A, "a factor of 4: reduced twice, or not averaged, over all ranks (4)"),
        (A / 4, "a factor of 0.25: averaged once too often over all ranks (4)"),
        (2 * A, "a factor of 2: reduced twice"),
        (A / 2, "a factor of 1/2: divided twice"),
        (1.7 * A, "a factor of 1.7"),
        (-A, "the same but for its sign"),
        (0 * A, "it is zero"),
        (A + np.array([1, 1, 0]), "it points elsewhere"),
        (A * [1, 1, float("nan")], "1 of its 3 elements are not finite"),
    ],
)
def test_how_a_tensor_differs(ours: np.ndarray, said: str) -> None:
    assert said in describe(ours, A, {"all ranks": 4})


def test_pieces_make_a_whole_or_say_why_not() -> None:
    left, right = Piece(np.array([1.0, 2.0]), (3,), (0,)), Piece(np.array([2.0, 3.0]), (3,), (1,))
    np.testing.assert_array_equal(merge([{"a": left}, {"a": right}])["a"], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="a: no rank has all of it"):
        merge([{"a": left}])
    with pytest.raises(ValueError, match="a: two ranks that hold the same part differ"):
        merge([{"a": left}, {"a": Piece(np.array([9.0, 3.0]), (3,), (1,))}])
