"""Trained runs of every architecture into transformers and back: `switchyard export`, then `model.init_from`."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from harness.run_record import RunRecord
from harness.train_alone import train_alone
from harness.worker_pool import WorkerPool
from transformers import AutoModelForCausalLM, PreTrainedModel

from conf.compose import read_job
from launch.cli import main
from models.transformer import Transformer
from parallel.comm import Communicator
from parallel.logical_state import model_state
from tests.launch.test_export import JOB
from train.checkpoint.tensors import load_tensors
from train.init_from import find_checkpoint, find_weights

WORDS = {
    "glm4_moe": ("model.attention.qk_norm=true", "model.attention.bias=true", "model.moe.bias_update_rate=0.02"),
    "qwen3_moe": (
        "model.attention.qk_norm=true",
        "model.moe.score=softmax",
        "model.moe.balance=none",
        "model.moe.n_shared=0",
    ),
    "deepseek_v2": ("model=tiny_mla", "model.moe.balance=none"),
    "deepseek_v3": (
        "model=tiny_mla",
        "model.moe.bias_update_rate=0.02",
        "model.moe.score=sigmoid",
        "model.moe.normalise_weights=true",
        "model.moe.route_scale=2",
    ),
}
"""A run of each architecture."""

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # a checkpoint read by one process


@dataclass(frozen=True)
class Exported:
    """A run, and its export."""

    words: tuple[str, ...]
    run: Path

    @property
    def ours(self) -> Transformer:
        """The run's model, from its checkpoint."""
        config = read_job(self.run / "config.yaml").model
        model = Transformer(config, torch.float32).eval()
        checkpoint = find_checkpoint(self.run)
        assert checkpoint
        load_tensors(model_state([model]), checkpoint, alone=True)
        return model

    @property
    def theirs(self) -> PreTrainedModel:
        """transformers' model, from the exported folder alone: no tensor missing, none left over."""
        model, report = AutoModelForCausalLM.from_pretrained(
            self.run / "hf", local_files_only=True, output_loading_info=True
        )
        assert not any(report.values()), report
        return model.eval()


@pytest.fixture(scope="module", params=WORDS)
def exported(request: pytest.FixtureRequest, pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    run = tmp_path_factory.mktemp(request.param)
    words = (*JOB, *WORDS[request.param])
    pool.run(1, train_alone, *words, "train.steps=6", f"run.dir={run}")
    assert main(["export", str(run), "--format", "hf"]) == 0
    assert json.loads((run / "hf" / "config.json").read_text())["model_type"] == request.param
    return Exported(words, run)


def test_transformers_computes_the_same(exported: Exported) -> None:
    tokens_BS = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(0))
    theirs = exported.theirs
    assert theirs.dtype is torch.float32
    with torch.no_grad():
        ours, logits = exported.ours.logits(tokens_BS), theirs(tokens_BS).logits
    assert (ours - logits).abs().max() < 1e-5
    biases = [value for name, value in exported.ours.state_dict().items() if name.endswith("expert_bias_E")]
    moved = not any(without in exported.run.name for without in ("deepseek_v2", "qwen3_moe"))
    assert all(bias.any() == moved for bias in biases)


def test_generation_is_greedy_over_our_logits(exported: Exported) -> None:
    tokens_BS = torch.tensor([list(b"def main(")])
    with torch.no_grad():
        generated = exported.theirs.generate(tokens_BS, max_new_tokens=8, eos_token_id=None)
        model = exported.ours
        for _ in range(8):
            tokens_BS = torch.cat((tokens_BS, model.logits(tokens_BS)[:, -1:].argmax(-1)), dim=1)
    assert generated.tolist() == tokens_BS.tolist()


def test_a_run_from_the_export_starts_where_the_run_ended(exported: Exported, pool: WorkerPool, tmp_path: Path) -> None:
    still = ("optim.lr=0", "model.moe.bias_update_rate=0", "train.steps=1")
    pool.run(1, train_alone, *exported.words, *still, f"model.init_from={exported.run / 'hf'}", f"run.dir={tmp_path}")
    before, after = (RunRecord(run).column("eval/loss")[-1] for run in (exported.run, tmp_path))
    assert before == after


def test_import_undoes_export(exported: Exported, tmp_path: Path) -> None:
    """Bit for bit, with files of any size, in every tensor."""
    assert main(["export", str(exported.run), "--format=hf", "--to", str(tmp_path / "hf"), "--shard-size=100KB"]) == 0
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    config = read_job(exported.run / "config.yaml").model
    there = Transformer(config, torch.float32)
    find_weights(str(tmp_path / "hf"), config).load(model_state([there]), Communicator())
    for (name, ours), theirs in zip(exported.ours.state_dict().items(), there.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
