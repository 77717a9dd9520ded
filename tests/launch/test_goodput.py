"""`switchyard goodput`: what it prints, draws and refuses, of runs that go on, ended and died."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from harness.ledger_builder import Rank

from launch.cli import main
from train.ledger.fold import fold
from train.ledger.read import read_ledger
from train.ledger.waterfall import Group, waterfall

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A job that crashed, came back with other ranks, and goes on."""
    folder = tmp_path / "run"
    one = Rank(folder, 1).start(0, 1, 2).tile(init_model=2).event("resumed", step=0, passed_over=[])
    one.steps(1, 4, 1, 1, compute_fwd=4, exposed_comm__dp=2).event("saving", step=3).tile(ckpt_save=1).committed(3)
    one.steps(4, 1).gone(15, "compute_bwd", 5, 14)
    for rank in range(2):
        one = Rank(folder, 2, rank).start(25, 26, 27, ranks=2, layout="fsdp").tile(init_model=2)
        one.event("resumed", step=3, passed_over=[]).steps(4, 1, 1).event("saving", step=5).tile(ckpt_save=1)
        if rank == 0:
            one.committed(5)
        one.steps(6, 1, 1)
    return folder


def test_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goodput", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["wall_s"], said["ranks"], said["rank_seconds"], said["state"]) == (34, 2, 15 + 2 * 19, "open")
    assert sum(said["buckets"].values()) == pytest.approx(said["rank_seconds"])
    assert said["buckets"]["down"] == 20
    assert said["lost_work"] == {"crash": 4}
    assert said["ettr"] == pytest.approx((3 + 4) / 53)
    assert said["ettr"] == said["ettr_durable"]
    assert said["ettr_optimistic"] == pytest.approx((3 + 8) / 53)
    assert said["tokens_per_sec"] == pytest.approx(500 / 34)
    assert [(one["attempt"], one["ranks"], one["cause"]) for one in said["attempts"]] == [
        (1, 1, "crash"),
        (2, 2, "open"),
    ]
    assert said["checkpoints"]["committed"] == 2
    assert said["advice"]["failures"] == 1


def test_tables(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(run / "ledger" / "attempt-0002" / "rank-00001.jsonl", "a") as file:
        file.write('{"ev":"tile","t":340')
    assert main(["goodput", str(run)]) == 0
    printed = capsys.readouterr().out
    shares = {name.strip(): share for name, share in re.findall(r"│ (.*?) +│[ █▏]+│ +(\S+)% │", printed)}
    assert shares["all rank-seconds"] == "100.00"
    assert shares["down"] == "37.74"
    assert shares["lost_work/crash"] == "7.55"
    assert shares["steps at risk, not saved yet"] == "7.55"
    assert shares["goodput (ETTR)"] == "13.21"
    assert re.search(r"│ 1 │ +1 │ ddp +│ +0 │ 1 – 4 │ +1 │ +0\.0 │ +15\.0 │ crash, first rank 0 +│ +5\.7% │", printed)
    assert re.search(
        r"│ 2 │ +2 │ fsdp +│ +3 │ 4 – 7 │ +0 │ +10\.0 │ +9\.0 │ goes on, or nothing saw its end │", printed
    )
    assert "goodput 13.2% of 34.0 s wall, 2 ranks; durable up to step 5; steps at risk until the next save" in printed
    assert "lost work, rank-seconds: crash 4.0 s" in printed
    assert "2 saves (2 committed): training held up 1.00 s by each, 4.00 s from begin to commit, 0.5 GB/s" in printed
    assert "a failure every 24 s (1 seen)" in printed
    assert "1 lines of the ledger were torn or none of ours: left out" in printed


@pytest.mark.parametrize(("saved", "said"), [(0, "none is saved"), (2, "saved up to step 2")])
def test_steps_of_a_finished_job_count_and_are_not_called_durable(
    saved: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Rank(tmp_path, 1).start(0, 1, 2).event("resumed", step=0, passed_over=[]).steps(1, 1, 1)
    if saved:
        one.committed(saved)
    one.steps(3, 1, 1).exit("finished")
    assert main(["goodput", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"goodput 66.7% of 6.0 s wall, 1 ranks; all 4 steps of the finished job, {said}\n" in printed
    assert "durable" not in printed
    assert "risk" not in printed


def test_the_waterfall_takes_each_part_off_what_is_above_it(run: Path) -> None:
    books = fold(read_ledger(run))
    rungs = waterfall(books)
    left = float(books.total)
    for rung in rungs:
        if rung.group is Group.level:
            assert rung.name.startswith("the same at peak") or rung.top == left
        else:
            assert rung.top == left
            left = rung.bottom
    assert left == sum(ns for name, ns in books.counted.items() if name.startswith("compute"))
    assert [rung.name for rung in rungs if rung.group is Group.level] == [
        "all rank-seconds",
        "goodput (ETTR)",
        "compute",
        "the same at peak (speed of light)",
    ]


def test_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg, png = tmp_path / "a.svg", tmp_path / "a.png"
    assert main(["goodput", str(run), "--json", "--svg", str(svg), f"--png={png}"]) == 0
    json.loads(capsys.readouterr().out)
    root = ElementTree.parse(svg).getroot()
    texts = [element.text for element in root.iter(f"{SVG}text")]
    rungs = waterfall(fold(read_ledger(run)))
    assert texts[0] == "run: goodput 13.2% of 53.0 rank-seconds"
    assert texts[1::2] == [rung.name for rung in rungs]
    bars = list(root.iter(f"{SVG}rect"))[2::2]
    assert [float(bar.get("width", 0)) for bar in bars] == [
        pytest.approx(max(1, rung.ns / rungs[0].ns * 640), abs=1) for rung in rungs
    ]
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert [str(int.from_bytes(data[i : i + 4], "big")) for i in (16, 20)] == [root.get("width"), root.get("height")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "goodput takes one run folder: switchyard goodput runs/NAME"),
        (["a", "b"], "goodput takes one run folder"),
        (
            ["nowhere"],
            "nowhere has no ledger/ of a start: name the folder of a run that began; there is no such",
        ),
        (["a", "--jsno"], "unknown flag --jsno: goodput has --json, --svg and --png"),
        (["a", "--svg"], "--svg lacks its file: write --svg FILE"),
        (
            ["RUN", "--svg", "/nowhere/a.svg"],
            "--svg /nowhere/a.svg: No such file or directory; name a file in a folder",
        ),
    ],
)
def test_refusals(words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goodput", *(str(run) if word == "RUN" else word for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"switchyard: {said}")
    assert err.count("\n") == 1
