"""Scripts of benchmarks/ that no job runs: what they start, and what they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.interpreted import check_interpreted, interpreted, needs_triton

from conf.schema import validate
from launch.bench.order import Order

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def speed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Beside a machine of two GPUs; python3 tells its words in place of doing what they say."""
    for name, does in (("nvidia-smi", "printf 'GPU 0\\nGPU 1\\n'"), ("python3", 'printf "%s\\n" "$*"')):
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        [BENCHMARKS / "speed.sh", *words],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_table_is_four_benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.bench.order.look_over", validate)  # that a GPU is not here is no matter
    done = speed(tmp_path, "speed", "24", "2")
    assert done.returncode == 0, done.stderr
    orders = [line.split()[3:] for line in done.stdout.splitlines()]  # behind -m launch.cli bench
    parsed = [Order.parse([*words, "train.device=cpu"]) for words in orders]
    assert [(order.folder.name, order.nproc, order.rounds) for order in parsed] == [
        ("one-16k", 1, 2),
        ("one-131k", 1, 1),
        ("two-16k", 2, 2),
        ("two-131k", 2, 1),
    ]
    configs = [order.configs[order.points[0].name].train for order in parsed]
    assert [train.global_batch_size * 4096 // order.nproc for train, order in zip(configs, parsed, strict=True)] == [
        16384,
        131072,
        16384,
        131072,
    ]
    assert [train.steps for train in configs] == [24, 6, 24, 6]
    assert all(len(order.peers) == 1 for order in parsed)
    assert all(order.limits.keys() == {point.name for point in order.points} for order in parsed)


@pytest.mark.parametrize("words", [(), ("speed", "4"), ("speed", "24", "2", "two_16k")])
def test_other_words_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    done = speed(tmp_path, *words)
    assert done.returncode != 0
    assert "usage: benchmarks/speed.sh FOLDER" in done.stderr
    assert not done.stdout


def run_of(folder: Path, n_steps: int, loss: float, held_out: float) -> Path:
    folder.mkdir()
    rows = [{"train/loss": loss} for _ in range(n_steps)] + [{"eval/loss": held_out}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("n_steps", "held_out", "code", "said"),
    [
        (150, 2.01, 0, "is within 1.0% of base"),
        (150, 2.03, 1, "is NOT within 1.0% of base"),
        (99, 2.0, 1, "has 99 loss"),
    ],
)
def test_losses_apart(n_steps: int, held_out: float, code: int, said: str, tmp_path: Path) -> None:
    base, other = run_of(tmp_path / "base", n_steps, 3.0, 2.0), run_of(tmp_path / "other", n_steps, 3.01, held_out)
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "losses_apart.py", base, other],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def shrunk(code: str) -> list[str]:
    """The lines that a benchmark prints on a CPU, which has no times to tell."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.soak
def test_fp8_products_runs_at_small_sizes() -> None:
    """Every product that a CPU has, and the layers compiled."""
    lines = shrunk("import fp8_products; fp8_products.main('cpu', (64,), 16)")
    # Seven weights, each forward and for two gradients; experts, which a CPU refuses, forward and for one.
    assert [sum(f" {what} " in line for line in lines) for what in ("forward", "grad x", "grad W")] == [9, 9, 7]
    assert sum(line.startswith(("shared experts (", "dense feed-forward (", "attention's")) for line in lines) == 3


def dispatch_lines(n_ranks: int, *words: str) -> list[str]:
    """What benchmarks/dispatch.py says on rank 0, below its head."""
    shared = interpreted()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks), *words],
        env=os.environ
        | shared
        | {"PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{shared['PYTHONPATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[5:]


def test_dispatch_runs_at_small_sizes() -> None:
    """NCCL's two by gloo, each with sums as they ought to be, and why the others are not to be had."""
    script = "import dispatch; dispatch.main('cpu', 512, 256)"
    lines = dispatch_lines(2, "--no-python", sys.executable, "-c", script)
    assert len(lines) == 10
    assert lines[2].split()[:4] == ["tokens,", "NCCL", "even", f"{512 * 256 * 4 / 1e6:.2f}"]
    assert [line.split()[0] for line in lines if "refused" not in line] == ["rows,", "rows,", "tokens,"]
    assert all("refused" in line for line in lines[3:])


@needs_triton
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_ways_of_dispatch_bring_what_is_wanted(n_ranks: int) -> None:
    lines = dispatch_lines(n_ranks, "-m", "harness.ways_of_dispatch")
    assert [line.split()[0] for line in lines if "refused" in line] == ["torch,"]
    assert len(lines) == 10


@pytest.mark.soak
def test_libraries_runs_at_small_sizes() -> None:
    """What is ours and torch's, of every section; what needs a GPU says so, and nothing is left out for another
    reason."""
    small = "names=('tiny_mla', 'tiny'), tokens=(256, 128), shrink=16"
    lines = shrunk(f"import libraries; libraries.main('cpu', {small})")[2:]
    left_out = [line for line in lines if "left out" in line]
    assert all(line.endswith("left out: needs a GPU") for line in left_out), lines
    sections = ("loss:", "swiglu", "norm:", "add, norm:", "rope", "optimizer:", "fp8", "sort:", "experts", "as it is")

    def counts(some: list[str]) -> list[int]:
        return [sum(line.startswith(section) for line in some) for section in sections]

    assert counts([line for line in lines if line not in left_out]) == [2, 4, 2, 2, 2, 3, 4, 1, 2, 2]
    assert counts(left_out) == [3, 2, 1, 1, 2, 3, 4, 1, 2, 0]


def test_libraries_refuses_other_words() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "libraries.py", "loss", "ropes"],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "no rows are called ropes: leave words out, or choose of loss swiglu" in done.stderr
    assert not done.stdout


@needs_triton
def test_counting_sort_sorts() -> None:
    check_interpreted("harness.counting_beside_sort")
