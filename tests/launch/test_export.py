"""`switchyard export`: the folder's files, and what is refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from harness.train_alone import train_alone
from harness.worker_pool import WorkerPool
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import launch.published_folder
from launch.cli import main
from launch.export import ExportOrder
from models.config import ConfigError

JOB = (
    *("model=tiny", "train.device=cpu", "train.global_batch_size=4", "data.sequence_length=32", "logging=off"),
    *("train.eval_sequences=4", "train.log_every=1", "checkpoint=default", "optim.warmup_steps=0", "optim.lr=3e-3"),
)
"""A second of training."""

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # a checkpoint read by one process


@pytest.fixture(scope="module")
def run(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step more than its first checkpoint."""
    run = tmp_path_factory.mktemp("run")
    pool.run(1, train_alone, *JOB, "train.steps=2", "checkpoint.every=1", f"run.dir={run}")
    return run


def exported_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()  # transformers draws progress bars there
    assert main(["export", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("switchyard: ")
    assert said.count("\n") == 1
    return said.removeprefix("switchyard: ").rstrip()


def test_files_hold_no_more_than_asked(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--format", "hf", "--to", str(tmp_path / "b/c"), "--shard-size", "60KB"]) == 0
    index = json.loads((tmp_path / "b/c/model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "b/c").glob("*.safetensors"))
    assert [f.name for f in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    total = 0
    for file in files:
        tensors = load_file(file)
        sizes = [tensor.nbytes for tensor in tensors.values()]
        total += sum(sizes)
        assert sum(sizes) <= 60_000 or len(sizes) == 1
        assert all(index["weight_map"][name] == file.name for name in tensors)
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert index["metadata"]["total_size"] == total
    assert (tmp_path / "b/c").stat().st_mode & 0o777 == 0o777 & ~umask()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["c"]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_one_file_in_memory_at_a_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    load = launch.published_folder._load

    def watched(checkpoint: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes.append(sum(tensor.nbytes for tensor in state.values()))
        return load(checkpoint, state)

    monkeypatch.setattr(launch.published_folder, "_load", watched)
    assert main(["export", str(run), "--format", "hf", "--to", str(tmp_path / "hf"), "--shard-size", "60KB"]) == 0
    assert max(sizes) <= 64 * 256 * 4  # the embedding, larger than a file
    assert sum(size <= 60_000 for size in sizes) >= len(sizes) - 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves(dtype: str, run: Path, tmp_path: Path) -> None:
    for name, words in (("half", ["--dtype", dtype]), ("whole", [])):
        assert main(["export", str(run), "--format", "hf", "--to", str(tmp_path / name), *words]) == 0
    half, whole = exported_tensors(tmp_path / "half"), exported_tensors(tmp_path / "whole")
    for name, tensor in whole.items():
        kept = name.endswith("e_score_correction_bias")
        assert half[name].dtype is (torch.float32 if kept else getattr(torch, dtype))
        assert torch.equal(half[name], tensor.to(half[name].dtype))
    config = json.loads((tmp_path / "half/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "half", local_files_only=True)
    assert loaded.dtype is getattr(torch, dtype)


def test_a_checkpoint_may_be_named_and_the_newest_is_taken(run: Path, tmp_path: Path) -> None:
    for name, source in (("1", "checkpoints/step-00000001"), ("2", "checkpoints/step-00000002"), ("run", "")):
        assert main(["export", str(run / source), "--format", "hf", "--to", str(tmp_path / name)]) == 0
    heads = [exported_tensors(tmp_path / name)["lm_head.weight"] for name in ("1", "2", "run")]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1], heads[2])


def test_a_folder_that_is_there_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for name in ("full", "full/mine"):
        assert refused(capsys, run, "--format", "hf", "--to", tmp_path / name) == (
            f"{tmp_path / name} is there and not empty: name another with --to, or move it away"
        )
    assert (tmp_path / "full" / "mine").read_text() == "mine"
    assert "cannot be written" in refused(capsys, run, "--format", "hf", "--to", tmp_path / "full/mine/hf")
    (tmp_path / "empty").mkdir()
    assert main(["export", str(run), "--format", "hf", "--to", str(tmp_path / "empty")]) == 0


def test_an_export_that_fails_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(launch.published_folder, "_write_table", full)
    assert "cannot be written (no space left)" in refused(capsys, run, "--format", "hf", "--to", tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_tokenizer_takes_it_along(
    pool: WorkerPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["the", "cat", "sat", "on", "mat", "[UNK]", "<|endoftext|>"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "mine.json"))
    (tmp_path / "text.txt").write_text("\n\n".join("the cat sat on the mat " * n for n in range(5, 45)))
    words_of_run = (
        *(word for word in JOB if not word.startswith("data.")),
        *("data=text", f"data.path={tmp_path / 'text.txt'}", f"data.tokenizer={tmp_path / 'mine.json'}"),
        *("data.sequence_length=8", f"data.cache_dir={tmp_path / 'cache'}", "data.document=paragraph"),
        *("train.steps=1", "data.heldout_fraction=0.2", f"run.dir={tmp_path / 'run'}"),
    )
    pool.run(1, train_alone, *words_of_run)
    assert main(["export", str(tmp_path / "run"), "--format", "hf"]) == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "run/hf", local_files_only=True)
    assert loaded("the cat sat")["input_ids"] == [0, 1, 2]
    assert (loaded.eos_token, loaded.eos_token_id) == ("<|endoftext|>", 6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/hf", local_files_only=True)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 6
    (tmp_path / "mine.json").unlink()
    said = refused(capsys, tmp_path / "run", "--format", "hf", "--to", tmp_path / "again")
    assert said.startswith(f"data.tokenizer={tmp_path / 'mine.json'} cannot be read")


def test_what_no_architecture_says_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pool: WorkerPool
) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    config = (run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("score: sigmoid", "score: softmax"))
    said = refused(capsys, tmp_path, "--format", "hf")
    assert said.startswith("model.attention.qk_norm=false: grouped-query attention with scores by softmax")
    (tmp_path / "config.yaml").write_text(config.replace("  dim: 64", "  dim: 32"))
    assert "model.embedding.weight is [256, 64] there and [256, 32] in this model" in refused(
        capsys, tmp_path, "--format", "hf"
    )
    pool.run(1, train_alone, *JOB, "model=tiny_mla", "train.steps=1", f"run.dir={tmp_path / 'biased'}")
    said = refused(capsys, tmp_path / "biased", "--format", "hf")
    assert said.startswith(
        "model.moe.balance=bias left biases on the choice of experts (model.layers.1.attention.router"
    )
    assert said.endswith("which deepseek_v2 has not: train with model.moe.balance=none, or model.moe.score=sigmoid")


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, tmp_path, "--format", "hf") == (
        f"{tmp_path} has no config.yaml: name the folder of a run, or a step-… folder inside one"
    )
    shutil.copytree(run / "checkpoints" / "step-00000001", tmp_path / "alone" / "step-00000001")
    assert "has no config.yaml" in refused(capsys, tmp_path / "alone" / "step-00000001", "--format", "hf")
    shutil.copy(run / "config.yaml", tmp_path)
    assert refused(capsys, tmp_path, "--format", "hf").startswith(f"{tmp_path} has no checkpoint: name a run that was")


def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(run / "config.yaml", tmp_path)
    (file,) = (tmp_path / "checkpoints" / "step-00000002").glob("*.distcp")
    whole = file.read_bytes()
    for n_bytes in (len(whole) // 10, 10, 0):
        file.write_bytes(whole[:n_bytes])
        said = refused(capsys, tmp_path, "--format", "hf")
        assert said.startswith(f"{tmp_path}/checkpoints/step-00000002 is damaged (")
        assert said.endswith("): move it away, or name another step-… folder")
    file.unlink()
    assert "No such file" in refused(capsys, tmp_path, "--format", "hf")
    assert not (tmp_path / "hf").exists()


def test_diverged_weights_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = launch.published_folder._load
    monkeypatch.setattr(
        launch.published_folder, "_load", lambda *a: {name: t.fill_(1e6) for name, t in load(*a).items()}
    )
    said = refused(capsys, run, "--format", "hf", "--to", tmp_path / "hf", "--dtype", "float16")
    assert said.startswith("model.embed_tokens.weight has values that are not finite in torch.float16: choose another")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "export takes one run or checkpoint folder: switchyard export runs/NAME --format hf"),
        (["a", "b", "--format", "hf"], "export takes one run or checkpoint folder"),
        (["a"], "--format : the format is hf (Hugging Face); write --format hf"),
        (["a", "--format", "gguf"], "--format gguf: the format is hf (Hugging Face); write --format hf"),
        (["a", "--format"], "--format lacks its value (switchyard --help)"),
        (["a", "--format=hf", "--dtype", "int8"], "--dtype int8: choose from float32, bfloat16, float16"),
        (
            ["a", "--format=hf", "--shard-size", "5"],
            "--shard-size 5: set it to a number with KB, MB, GB, KiB, MiB, GiB",
        ),
        (["a", "--format=hf", "--shard-size=0GB"], "--shard-size 0GB: set it to a number with"),
        (["a", "--format=hf", "--shard-size=-1GB"], "--shard-size -1GB: set it to a number with"),
        (["a", "--format=hf", "--push"], "unknown flag --push: export has --format, --to, --dtype, --shard-size"),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *words).startswith(said)


def test_sizes() -> None:
    for size, expected in (("5GB", 5 * 10**9), ("1.5MiB", 3 * 2**19), ("10 KB", 10**4)):
        assert ExportOrder.parse(["a", "--format=hf", "--shard-size", size]).shard_bytes == expected
    with pytest.raises(ConfigError):
        ExportOrder.parse(["a", "--format=hf", "--shard-size", "GB"])


def test_without_safetensors_it_says_what_to_install(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    said = refused(capsys, run, "--format", "hf", "--to", tmp_path / "hf")
    assert said == "--format hf takes the package safetensors: pip install 'switchyard[hf]'"


def test_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert "bfloat16 or float16 (half the size)" in capsys.readouterr().out
