"""Every command of the README runs, those here by themselves (test_readme_story.py has those that build on another);
and its table of options is complete."""

import json
import re
from pathlib import Path

import pytest
from harness.readme import PATH, README, ROOT, commands, finish, start
from harness.slurm import stand_ins


@pytest.mark.parametrize("command", commands(of_a_story=False))
def test_command(command: str, tmp_path: Path) -> None:
    if command.startswith("make"):  # the target itself, on less work; `make test` would run this test again
        arguments = {
            "make train": f"model=tiny train.steps=3 run.dir={tmp_path / 'make-train'}",
            "make test": "--collect-only -q tests/models/test_flops.py",
        }
        output = finish(start(command, ROOT, ARGS=arguments[command]))
        assert ("switchyard show" if command == "make train" else "test_flops.py") in output
    elif "$NODE_RANK" in command:
        shared = {"NNODES": "2", "GPUS": "1", "HEAD": "127.0.0.1", "SHARED": str(tmp_path)}
        nodes = [start(command, tmp_path, NODE_RANK=str(rank), **shared) for rank in range(2)]
        outputs = [finish(node) for node in nodes]
        assert "2 × cpu" in outputs[0]
        assert (tmp_path / "run" / "summary.json").exists()
    elif command.startswith("switchyard submit"):
        finish(start(command, tmp_path, PATH=f"{stand_ins(tmp_path / 'slurm')}:{PATH}"))
        assert (tmp_path / "runs" / "slurm-7" / "summary.json").exists()
    else:
        output = finish(start(command, tmp_path))
        if command.startswith("switchyard bench"):
            measured = json.loads((tmp_path / "compared" / "bench.json").read_text())["machine"]
            assert measured["ceilings"]
            assert measured["bus_bandwidth"].keys() == {"all_reduce_gbs", "all_gather_gbs", "all_to_all_gbs"}
        if "overlap grad_reduce" in command:
            assert "there the order is the proof" in output
            (knob,) = json.loads((tmp_path / "proven" / "overlap.json").read_text())["knobs"]
            reduced = knob["hidden"][0]
            assert (reduced["bucket"], knob["losses"]["most"]) == ("exposed_comm/dp", 0)
            assert reduced["order_off"]["covered"] == 0
            assert 0 < reduced["order_on"]["covered"] < reduced["order_on"]["n"] == reduced["order_off"]["n"]


def test_every_option_is_in_the_table() -> None:
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name[0] not in "._"):
        row = re.search(rf"^\| `{group.name}` \| (.*?) \|", README, flags=re.MULTILINE)
        assert row, group.name
        assert sorted(re.findall(r"`(\w+)`", row[1])) == sorted(path.stem for path in group.glob("*.yaml"))


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
