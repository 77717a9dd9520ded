"""Every command of the README runs, in the order a reader types them; and its table of options is complete."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.slurm import stand_ins

ROOT = Path(__file__).resolve().parents[1]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def start(command: str, folder: Path, **variables: str) -> subprocess.Popen:
    """`command` as a user of an activated environment types it."""
    # Without what a `make` that started this test would tell a `make` that this test starts: its own ARGS, above all.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    environment |= {"PATH": PATH, "COLUMNS": "120"}
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.mark.parametrize("command", commands())
def test_command(command: str, folder: Path) -> None:
    if command.startswith("make"):  # the target itself, on less work; `make test` would run this test again
        arguments = {
            "make train": f"model=tiny train.steps=3 run.dir={folder / 'make-train'}",
            "make test": "--collect-only -q tests/models",
        }
        output = finish(start(command, ROOT, ARGS=arguments[command]))
        assert ("switchyard show" if command == "make train" else "test_flops.py") in output
    elif "$NODE_RANK" in command:
        shared = {"NNODES": "2", "HEAD": "127.0.0.1", "SHARED": str(folder)}
        nodes = [start(command, folder, NODE_RANK=str(rank), **shared) for rank in range(2)]
        outputs = [finish(node) for node in nodes]
        assert "4 × cpu" in outputs[0]
        assert (folder / "run" / "summary.json").exists()
    elif command.startswith("switchyard submit"):
        finish(start(command, folder, PATH=f"{stand_ins(folder / 'slurm')}:{PATH}"))
        assert (folder / "runs" / "slurm-7" / "summary.json").exists()
    else:
        output = finish(start(command, folder))
        if "train.steps=40" in command:
            assert "resuming after step 20" in output
        if "strategy=accelerate_ddp" in command:  # where DeepSpeed stopped
            assert "resuming after step 3" in output
        if "strategy=deepspeed" in command:
            assert "DeepSpeed" not in output
            assert "Warning" not in output
        if "overlap grad_reduce" in command:
            assert "there the order is the proof" in output
            (knob,) = json.loads((folder / "proven" / "overlap.json").read_text())["knobs"]
            reduced = knob["hidden"][0]
            assert (reduced["bucket"], knob["losses"]["most"]) == ("exposed_comm/dp", 0)
            assert reduced["order_off"]["covered"] == 0
            assert 0 < reduced["order_on"]["covered"] < reduced["order_on"]["n"] == reduced["order_off"]["n"]
        if "show" in command:
            assert "loss" in output


def test_every_option_is_in_the_table() -> None:
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name[0] not in "._"):
        row = re.search(rf"^\| `{group.name}` \| (.*?) \|", README, flags=re.MULTILINE)
        assert row, group.name
        assert sorted(re.findall(r"`(\w+)`", row[1])) == sorted(path.stem for path in group.glob("*.yaml"))


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
