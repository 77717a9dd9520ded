"""`switchyard submit` and the script that it queues; with stand-ins for SLURM, see harness/slurm.py."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from harness.slurm import stand_ins

from launch.cli import main
from launch.submit import SCRIPT

WORDS = ["submit", "nodes=2", "gpus_per_node=8", "model=tiny", "strategy=fsdp"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-ins are."""
    folder = stand_ins(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


def flags(slurm: Path) -> list[str]:
    return (slurm / "flags").read_text().split() if (slurm / "flags").exists() else []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model=tiny", "how many ranks a node? write gpus_per_node=G, or ranks_per_node=R for nodes without GPUs"),
        ("nodes=2 gpus_per_node=2 ranks_per_node=2", "how many ranks a node? write gpus_per_node=G, or ranks"),
        ("gpus_per_node=2", "how many nodes? write nodes=N"),
        ("nodes=0 gpus_per_node=2", "nodes=0: set it to the number of nodes, at least 1"),
        ("nodes=2 gpus_per_node=x", "gpus_per_node=x: set it to the number of GPUs of each node, at least 1"),
        ("nodes=2 gpus_per_node=8 model=tinny", "model=tinny: no such model; did you mean tiny?"),
        (
            "nodes=3 gpus_per_node=1 strategy=ddp",
            "train.global_batch_size=16 is not divisible by 3 data-parallel ranks",
        ),
        ("nodes=2 gpus_per_node=8 strategy=single", "strategy=single is 1 rank, and 16 were started"),
        ("nodes=2 ranks_per_node=1 strategy=tp", "strategy.tp=2 does not fit into a node, which has 1 rank"),
        (
            "nodes=2 ranks_per_node=2 strategy=ep strategy.ep=2 strategy.dispatcher=symmetric_memory",
            "strategy.dispatcher=symmetric_memory: GPUs read each other's memory, a cpu does not; set it to all_gather",
        ),
        (
            "nodes=2 ranks_per_node=1 precision=bf16 model.expert_backend=fused",
            "model.expert_backend=fused: its kernels run on a GPU, not on cpu; set it to auto",
        ),
        (
            "nodes=2 ranks_per_node=1 precision=bf16 strategy.cuda_graph=true overlap.grad_reduce=false",
            "strategy.cuda_graph=true: there are graphs on a GPU, and none on cpu; leave it out",
        ),
        ("nodes=2 gpus_per_node=8 --nodes=3", "--nodes=3: write nodes=N"),
        ("nodes=2 gpus_per_node=8 --export=NONE", "--export=NONE: write nothing: the job gets this shell's variables"),
        ("nodes=2 gpus_per_node=8 --partition gpu", "--partition gpu: write --partition=gpu"),
        ("nodes=2 gpus_per_node=8 -p gpu", "-p: sbatch's flags are taken in their long form, as --partition=P"),
        ("nodes=2 gpus_per_node=8 --config-dir nowhere", "--config-dir nowhere: name a folder that holds"),
    ],
)
def test_wrong_words_are_refused_before_they_queue(
    words: str, said: str, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"switchyard: {said}")
    assert err.count("\n") == 1
    assert (out, flags(slurm)) == ("", [])


def test_cards_of_other_machines_are_not_asked(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither what they can do, nor whether they are peers."""
    words = ["precision=bf16", "strategy=ep", "strategy.ep=2", "strategy.dispatcher=symmetric_memory"]
    words += ["strategy.rows=static", "model.expert_backend=triton", "strategy.compile=true"]
    for asked in ("get_device_capability", "can_device_access_peer"):
        monkeypatch.delattr(f"torch.cuda.{asked}")
    assert main(["submit", "nodes=2", "gpus_per_node=2", *words, "--dry-run"]) == 0
    assert capsys.readouterr().err == ""


def test_a_dry_run_prints_the_command_and_queues_nothing(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--partition=gpu", "--exclusive", "run.name=a b", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    program, *words = shlex.split(out)
    variables, command = words[: words.index("sbatch")], words[words.index("sbatch") :]
    assert program == "env"
    assert variables[:2] == ["RANKS_PER_NODE=8", f"SWITCHYARD_PYTHON={sys.executable}"]
    assert command == [
        *("sbatch", "--nodes=2", "--gpus-per-node=8", "--export=ALL", "--partition=gpu", "--exclusive"),
        *(str(SCRIPT), "model=tiny", "strategy=fsdp", "run.name=a b"),
    ]
    assert (err, flags(slurm)) == ("", [])


def test_without_gpus_none_are_asked_for(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "nodes=2", "ranks_per_node=2", "strategy=ep", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "RANKS_PER_NODE=2" in out
    assert "gpus" not in out
    assert err.startswith("switchyard: strategy.ep=4 does not fit into a node, which has 2 ranks: ")


def test_cfg_job_prints_and_queues_nothing(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--cfg", "job", "train.seed=7"]) == 0
    assert "\n  seed: 7\n" in capsys.readouterr().out
    assert flags(slurm) == []


def test_help_says_what_submit_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["submit", "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("switchyard submit nodes=N gpus_per_node=G ")
    assert "or ranks_per_node=R, without GPUs" in out
    assert "strategy=" in out


def test_where_there_is_no_slurm_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(WORDS) == 2
    assert capsys.readouterr().err.startswith("switchyard: no sbatch here: submit where SLURM is")


def test_sbatch_has_the_last_word(slurm: Path) -> None:
    (slurm / "sbatch").write_text("#!/bin/sh\nexit 3\n")
    assert main(WORDS) == 3


def script(slurm: Path, *words: str, **variables: str) -> str:
    """What the script asks srun for, and says; as sbatch starts it on the first node."""
    (slurm / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "threads $OMP_NUM_THREADS" "$@"\n')
    given = {"SLURM_JOB_ID": "30012", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = ["bash", str(SCRIPT), *words]
    done = subprocess.run(command, env=environment | given | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_asks_for_a_launcher_a_node(slurm: Path) -> None:
    out = script(slurm, "model=tiny", SLURM_GPUS_ON_NODE="8", SLURM_CPUS_ON_NODE="96").splitlines()
    assert out[0] == "job 30012, start 1: 2 nodes of 8 ranks, run.name=slurm-30012 model=tiny"
    assert out[1] == "threads 12"
    # A task would have one CPU else, and so would its eight ranks.
    assert {"--ntasks-per-node=1", "--ntasks=2", "--cpus-per-task=96", "--kill-on-bad-exit=1"} < set(out)
    assert out[out.index("--master-addr") + 1] == "localhost"
    assert out[out.index("--master-port") + 1] == "15012"
    assert out[-5:] == ["-m", "train", "recovery.stop_grace_s=105", "run.name=slurm-30012", "model=tiny"]


def test_a_job_started_again_has_its_number_and_a_named_run_its_name(slurm: Path) -> None:
    assert "start 3: " in script(slurm, SLURM_RESTART_COUNT="2").splitlines()[0]
    for word in ("run.name=mine", "run.dir=mine"):
        out = script(slurm, "model=tiny", word).splitlines()
        assert out[-4:] == ["train", "recovery.stop_grace_s=105", "model=tiny", word]
    given = {"OMP_NUM_THREADS": "3", "RANKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "8"}
    out = script(slurm, **given).splitlines()
    assert out[1] == "threads 3"
    assert out[out.index("--nproc-per-node") + 1] == "4"


def test_a_requeued_job_goes_on(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that it was submitted from, in which a train.py of the user's lies."""
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    job = ["model=tiny", "strategy=single", "train.device=cpu", "logging=off", "train.eval_sequences=0"]
    assert main(["submit", "nodes=1", "ranks_per_node=1", "--time=5", *job, "train.steps=2"]) == 0
    run = tmp_path / "runs" / "slurm-7"
    assert (run / "checkpoints" / "step-00000002").is_dir()
    assert flags(slurm)[:3] == ["--nodes=1", "--export=ALL", "--time=5"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(["submit", "nodes=1", "ranks_per_node=1", *job, "train.steps=4"]) == 0
    assert (run / "checkpoints" / "step-00000004").is_dir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]  # first and last of each
