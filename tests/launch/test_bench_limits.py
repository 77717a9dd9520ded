"""Limits of counts: which files are refused, and what is above its limit."""

import json
from pathlib import Path

import pytest
import yaml

from launch.bench.counts import Counts, most, read_counts
from launch.bench.limits import excesses, read_limits
from models.config import ConfigError
from train.metrics.counts import COUNTS_FILE, RunCounts, Said

POINTS = ["fast", "plain"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fast: {kernels_a_layer: 240.5, host_waits: 0, kernels/copy_cast: 600, bytes/dp/all_reduce: 8}", ""),
        ("{}", "write a mapping of points to counts"),
        ("[fast]", "write a mapping of points to counts"),
        ("fast: 3", "write a mapping of points to counts"),
        ("fast: {", "is not YAML: "),
        ("fsat: {kernels: 3}", "no point is called fsat: they are fast, plain"),
        ("fast: {kernel: 3}", "fast has kernel, and counts are kernels, host_waits, "),
        ("fast: {kernels/gemm: 3}", "fast has kernels/gemm, and counts are "),
        ("fast: {graphs/late: 3}", "fast has graphs/late, and counts are "),
        ("fast: {bytes/dp: 3}", "fast has bytes/dp, and counts are "),
        ("fast: {bytes/dp/all_redcue: 3}", "fast has bytes/dp/all_redcue, and counts are "),
        ("fast: {kernels/copy_cast/late: 3}", "fast has kernels/copy_cast/late, and counts are "),
        ("fast: {1: 3}", "fast has 1, and counts are "),
        ("fast: {kernels: many}", "fast has kernels: many; set it to a number, 0 or more"),
        ("fast: {kernels: -1}", "fast has kernels: -1; set it to a number, 0 or more"),
        ("fast: {kernels: .nan}", "fast has kernels: nan; set it to a number, 0 or more"),
        ("fast: {kernels: true}", "fast has kernels: True; set it to a number, 0 or more"),
    ],
)
def test_files(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    if not said:
        assert read_limits(str(path), POINTS)["fast"]["kernels_a_layer"] == 240.5
        return
    with pytest.raises(ConfigError) as refusal:
        read_limits(str(path), POINTS)
    assert str(refusal.value).startswith(f"limits={path}")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_limits_of_the_shapes_are_of_their_points() -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    points = list(yaml.safe_load((folder / "shapes.yaml").read_text()))
    assert list(read_limits(str(folder / "limits.yaml"), points)) == points


TRACE = {"source": "kernels", "launched_by_category": {"copy_cast": 7, "attention": 2}, "host_waits": {"log": 4}}


def counted(folder: Path, trace: object = TRACE) -> Counts:
    said = [Said("dp", "all_reduce", 2, 4, 800), Said("dp", "all_reduce", 4, 4, 80), Said("ep", "all_to_all", 2, 8, 64)]
    RunCounts(graphs=5, late_graphs=1, graph_breaks=0, said=said).write(folder / COUNTS_FILE)
    return read_counts(folder, json.loads(json.dumps(trace)), n_layers=4)


def test_counts_come_from_the_run_and_its_trace(tmp_path: Path) -> None:
    assert counted(tmp_path) == {
        **{"kernels": 9, "kernels/copy_cast": 7, "kernels/attention": 2, "kernels_a_layer": 2.2},
        **{"host_waits": 0, "host_waits/log": 4},
        **{"graphs": 5, "late_graphs": 1, "graph_breaks": 0},
        **{"collectives": 16, "collectives/dp/all_reduce": 8, "collectives/ep/all_to_all": 8},
        **{"bytes": 944, "bytes/dp/all_reduce": 880, "bytes/ep/all_to_all": 64},
    }
    on_cpu = {"source": "host ranges", "launched_by_category": {}, "host_waits": {}}
    assert "kernels" not in counted(tmp_path, on_cpu)
    assert "kernels" not in counted(tmp_path, {"source": "kernels"})  # of a version that did not count
    (tmp_path / COUNTS_FILE).write_text('{"graphs": 5}')
    assert read_counts(tmp_path, None, n_layers=4) == {}


def test_an_engine_with_collectives_of_its_own_has_graphs_alone(tmp_path: Path) -> None:
    RunCounts(graphs=0, late_graphs=0, graph_breaks=0, said=None).write(tmp_path / COUNTS_FILE)
    counts = read_counts(tmp_path, None, n_layers=4)
    assert counts == {"graphs": 0, "late_graphs": 0, "graph_breaks": 0}
    (line,) = excesses({"fast": {"bytes/dp/all_reduce": 0, "graphs": 0}}, {"fast": counts})
    assert line.startswith("fast: bytes/dp/all_reduce has a limit of 0 and was not counted: ")


def test_what_is_above_is_a_line_and_what_is_not_there_is_nought(tmp_path: Path) -> None:
    limits = {"fast": {"kernels": 8, "kernels/optimizer": 0, "kernels/copy_cast": 7, "late_graphs": 0, "bytes/tp/x": 0}}
    assert excesses(limits, {"fast": counted(tmp_path), "plain": {}}) == [
        "fast: kernels 9 is above its limit of 8",
        "fast: late_graphs 1 is above its limit of 0",
    ]


def test_of_several_jobs_the_most_counts() -> None:
    assert most([{"graphs": 4, "bytes": 9}, {"graphs": 5}, {}]) == {"graphs": 5, "bytes": 9}
