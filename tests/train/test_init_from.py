"""`model.init_from=FOLDER`: another run's weights or a published model's, in any layout, and nothing else of it."""

import json
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.job_in_pool import job_in_pool
from harness.layout_run import DDP, FP32, FSDP, HSDP, MODEL, SINGLE, Layout, lay_out
from harness.run_record import RunRecord
from harness.worker_pool import WorkerPool
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from launch.verify.pieces import Piece, merge, pieces
from models.config import AttentionKind, ConfigError, ModelConfig
from models.hf import PublishedNames
from models.hf_config import write_config
from parallel.comm import Communicator
from parallel.config import StrategyConfig
from parallel.native_engine import NativeEngine
from parallel.world import World
from tests.models.test_hf_oracle import GLM, V2, V3, attention, published_tensors
from tests.train.test_checkpoint import FSDP_EP_DEALT, arrays, build, save
from train.checkpoint.manifest import digest
from train.config import OptimConfig
from train.init_from import find_weights, wanted_tensors
from train.optimizer import build_optimizer

INDEX = "model.safetensors.index.json"


def test_a_run_starts_where_another_ended(
    trained: Callable[[str], RunRecord], words_of: Callable[[str], tuple[str, ...]], pool: WorkerPool, tmp_path: Path
) -> None:
    """Two FSDP ranks' checkpoint into one process, which takes a step of no length: the held-out loss stays."""
    donor = trained("fsdp fp64")
    still = ("optim.lr=0", "model.moe.bias_update_rate=0", "train.steps=1")
    words = (*words_of("single fp64"), *still, f"model.init_from={donor.folder}")
    done = job_in_pool(pool, 1, *words, f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    row, _ = RunRecord(tmp_path / "run").rows  # the last one has the books
    assert row["eval/loss"] == pytest.approx(donor.column("eval/loss")[-1], rel=0, abs=1e-12)
    assert row["train/step"] == 1
    assert row["train/tokens"] == donor.column("train/tokens")[0]
    assert row["train/loss"] < donor.column("train/loss")[0] - 1  # the same first batch, read by a trained model
    assert "was trained with" not in done.stderr
    other = ("model.attention.rope_theta=500", "model.moe.route_scale=2")
    done = job_in_pool(pool, 1, *words, *other, f"run.dir={tmp_path / 'other'}")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "was trained with" in line)
    assert line.endswith("was trained with model.moe.route_scale=1.0 model.attention.rope_theta=10000.0")


def load(folder: Path, model: ModelConfig, engine: NativeEngine) -> None:
    weights = engine.weights()
    find_weights(str(folder), model).load(weights, Communicator())
    engine.take_state(weights, updates_done=0)


def state_after_run(folder: Path) -> dict[str, Piece]:
    engine, _, _ = build(FSDP, seed=5)
    load(folder, MODEL, engine)
    return arrays(engine)


def test_a_runs_weights_and_nothing_else(pool: WorkerPool, tmp_path: Path) -> None:
    saved = merge(pool.run(1, save, SINGLE, tmp_path / "checkpoints"))
    for folder in (tmp_path, tmp_path / "checkpoints" / "step-00000007"):
        loaded = merge(pool.run(2, state_after_run, folder))
        for name, array in loaded.items():
            np.testing.assert_array_equal(array, saved[name] if name.startswith("model.") else 0.0, err_msg=name)


@pytest.mark.parametrize("typed", ["~nobodyx/run", "a" * 300])
def test_a_folder_that_cannot_be_is_one_line(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"^model.init_from=.*; name another folder$"):
        find_weights(typed, MODEL)


def test_a_run_that_does_not_fit_is_refused(pool: WorkerPool, tmp_path: Path) -> None:
    pool.run(1, save, SINGLE, tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match=r"no checkpoint there; name a run folder, a step-… folder or a Hugging Face"):
        find_weights(str(tmp_path / "nowhere"), MODEL)
    with pytest.raises(ConfigError, match=r"model.embedding.weight is \[64, 32\] there and \[64, 40\] in this model"):
        find_weights(str(tmp_path), ModelConfig(**{**vars(MODEL), "dim": 40}))
    manifest = tmp_path / "checkpoints" / "step-00000007" / "manifest.json"
    metadata = manifest.with_name(".metadata").rename(tmp_path / "metadata")
    with pytest.raises(ConfigError, match=r"is damaged \(.*\.metadata.*\): move it away, or name another"):
        find_weights(str(tmp_path), MODEL)
    metadata.rename(manifest.with_name(".metadata"))
    record = json.loads(manifest.read_text())
    newer = {key: value for key, value in record.items() if key != "sha256"} | {"format": 99}
    manifest.write_text(json.dumps(newer | {"sha256": digest(newer)}))
    with pytest.raises(ConfigError, match="newer format"):
        find_weights(str(tmp_path), MODEL)
    other = record | {"progress": {"step": 7, "tokens": 701}}
    for text in ("{", '{"format": 2}', "[]", json.dumps(other)):
        manifest.write_text(text)
        with pytest.raises(ConfigError, match=r"step-00000007 is damaged \(manifest.json: .*\): move it away"):
            find_weights(str(tmp_path), MODEL)
    manifest.rename(manifest.with_name("progress.json"))
    for folder in (tmp_path, manifest.parent):
        with pytest.raises(ConfigError, match="step-00000007 is of format 1, without hashes"):
            find_weights(str(folder), MODEL)


def publish(model: ModelConfig, folder: Path, dtype: torch.dtype, shard_size: str = "50MB", **config: Any) -> None:
    """A folder as transformers itself writes it, with random weights; no norm is 1 and no bias 0."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**write_config(model, "float32") | config))
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if "norm" in name or name.endswith("bias"):
                tensor += 0.2 * torch.randn(tensor.shape)
    theirs.to(dtype).save_pretrained(folder, max_shard_size=shard_size)


def state_after_published(folder: Path, model: ModelConfig, strategy: StrategyConfig) -> dict[str, Piece]:
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"))
    layout, comm = Layout(strategy, precision=FP32, model=model, global_batch_size=24), Communicator()
    parallel, _ = lay_out(layout, world, comm, seed=5)
    engine = NativeEngine(parallel, partial(build_optimizer, optim=OptimConfig()), comm, torch.float32)
    for name, shard in engine.weights().items():
        if name.endswith("expert_bias_E"):
            shard.local.add_(1.0)
    load(folder, model, engine)
    return pieces(engine.weights())


def expected_state(folder: Path, model: ModelConfig, interleaved: bool) -> dict[str, np.ndarray]:
    """Theirs by our names, from their own reader's tensors, with the rows taken one by one."""
    stored: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    a, expected = model.attention, {}
    names = PublishedNames(model, interleaved=False)
    with torch.device("meta"):
        theirs = published_tensors(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)), lambda t: t)
    assert stored.keys() == theirs.keys()
    for name in wanted_tensors(model):
        there = names.find(name.removeprefix("model."))
        tensor = stored[there.name].float() if there else torch.zeros(model.moe.n_routed)
        part = name.rpartition(".")[0].rpartition(".")[2]
        if interleaved and a.kind is AttentionKind.mla and part in ("query", "query_up", "kv_down"):
            width = a.qk_dim if part != "kv_down" else a.kv_lora_rank + a.qk_rope_dim
            heads = tensor.unflatten(0, (-1, width))
            plain, rotary = heads[:, : -a.qk_rope_dim], heads[:, -a.qk_rope_dim :]
            tensor = torch.cat((plain, rotary[:, 0::2], rotary[:, 1::2]), dim=1).flatten(0, 1)
        expected[name] = tensor.numpy()
    return expected


@pytest.mark.parametrize(
    ("model", "dtype", "shard_size", "changes", "layouts"),
    [
        (V3, torch.bfloat16, "20KB", {}, ((SINGLE, 1), (DDP, 2), (FSDP, 2), (FSDP, 4))),
        (V3, torch.float32, "50MB", {"rope_interleave": False}, ((FSDP, 2), (FSDP_EP_DEALT, 4))),
        (attention(V2, q_lora_rank=0, bias=True), torch.float16, "50MB", {}, ((SINGLE, 1), (FSDP, 3), (HSDP, 4))),
        (attention(GLM, qk_norm=True, bias=True), torch.float32, "20KB", {}, ((DDP, 2), (FSDP, 2))),
    ],
    ids=["v3 bf16 in files", "v3 fp32 halves", "v2 fp16", "glm fp32 in files"],
)
def test_every_rank_fills_what_it_holds(
    model: ModelConfig,
    dtype: torch.dtype,
    shard_size: str,
    changes: dict[str, Any],
    layouts: tuple[tuple[StrategyConfig, int], ...],
    pool: WorkerPool,
    tmp_path: Path,
) -> None:
    """Four ranks cut MLA's key projection inside its rotary rows, which are permuted."""
    publish(model, tmp_path, dtype, shard_size, **changes)
    assert (tmp_path / INDEX).exists() == (shard_size == "20KB")
    expected = expected_state(tmp_path, model, interleaved=not changes)
    for strategy, ranks in layouts:
        loaded = merge(pool.run(ranks, state_after_published, tmp_path, model, strategy))
        assert loaded.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(loaded[name], array, err_msg=f"{strategy.name} {name}")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of several files; tests copy it."""
    folder = tmp_path_factory.mktemp("published")
    publish(V3, folder, torch.float32, "100KB")
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    for file in published.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal(folder: Path, model: ModelConfig = V3) -> str:
    with pytest.raises(ConfigError) as refused:
        find_weights(str(folder), model)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_another_model_is_refused_by_key(folder: Path) -> None:
    assert refusal(folder, attention(V3, rope_theta=5e5)) == (
        f"model.attention.rope_theta=500000.0, and {folder}/config.json says 10000.0: "
        "set model.attention.rope_theta=10000.0"
    )
    assert refusal(folder, replace(V3, dim=40)).startswith("model.dim=40, and ")


def test_layers_of_multi_token_prediction_are_skipped(folder: Path) -> None:
    file = folder / "extra.safetensors"
    save_file(
        {f"model.layers.{V3.n_layers}.eh_proj.weight": torch.ones(2), "x.rotary_emb.inv_freq": torch.ones(1)}, file
    )
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {f"model.layers.{V3.n_layers}.eh_proj.weight": file.name, "x.rotary_emb.inv_freq": file.name}
    (folder / INDEX).write_text(json.dumps(index))
    find_weights(str(folder), V3)
    rewrite(file, lambda tensors: tensors.update({"model.layers.0.self_attn.sink": torch.ones(2)}))
    assert "model.layers.0.self_attn.sink is there, and this model has no place for it" in refusal(folder)


def test_a_damaged_folder_is_refused(folder: Path) -> None:
    config, index = (folder / "config.json").read_text(), (folder / INDEX).read_text()
    for text, said in (("{", "is damaged"), ("[]", "holds no table of values"), ("\udcff", "is damaged")):
        (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        assert f"{folder}/config.json {said}" in refusal(folder)
    (folder / "config.json").write_text(config)
    weight_map = json.loads(index)["weight_map"]
    head = weight_map["lm_head.weight"]
    for table, said in (
        ("{", f"{INDEX} is damaged"),
        ("{}", "has no weight_map"),
        (
            json.dumps({"weight_map": weight_map | {"lm_head.weight": "absent.safetensors"}}),
            "absent.safetensors, which",
        ),
        (
            json.dumps({"weight_map": weight_map | {"lm_head.weight": "../a.safetensors"}}),
            "names ../a.safetensors, which",
        ),
        (json.dumps({"weight_map": weight_map | {"other.weight": head}}), f"says that {head} holds other.weight"),
    ):
        (folder / INDEX).write_text(table)
        assert said in refusal(folder)
    (folder / INDEX).write_text(index)
    whole = (folder / head).read_bytes()
    for n_bytes in (0, 4, 100, len(whole) - 1):
        (folder / head).write_bytes(whole[:n_bytes])
        assert f"{folder / head} is damaged" in refusal(folder)
    (folder / head).write_bytes(struct.pack("<Q", 10**12) + whole[8:])
    assert f"{folder / head} is damaged" in refusal(folder)
    (folder / head).write_bytes(whole)
    find_weights(str(folder), V3)
    (folder / INDEX).unlink()
    assert f"no model.safetensors and no {INDEX} there" in refusal(folder)


def test_wrong_tensors_are_refused(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    norm = "model.norm.weight"
    file = folder / index["weight_map"][norm]
    for tensor, said in (
        (torch.ones(33), f"{norm} is [33] there and [32] in this model"),
        (torch.ones(32, dtype=torch.int32), f"{norm} is I32 there; convert it to one of F64, F32, F16, BF16"),
        (torch.ones(32).to(torch.float8_e4m3fn), f"{norm} is F8_E4M3 there"),
    ):
        rewrite(file, lambda tensors, tensor=tensor: tensors.update({norm: tensor}))
        assert said in refusal(folder)
    rewrite(file, lambda tensors: tensors.pop(norm))
    assert f"says that {file.name} holds {norm}, and it does not" in refusal(folder)
    del index["weight_map"][norm]
    (folder / INDEX).write_text(json.dumps(index))
    assert f"{norm} is not there, and this model has it" in refusal(folder)


def test_without_safetensors_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert refusal(folder).endswith("reading it takes the package safetensors: pip install 'switchyard[hf]'")
