"""Every way to type a job wrong that we could think of, and the one line that answers it."""

import re
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.keys import Keys
from conf.schema import JobConfig, validate
from models.config import ConfigError
from train.data.config import READERS, Boundaries, DataConfig, DataSource, DocumentUnit, MixturePart, TokenDtype

KEYS = Keys.of(JobConfig)
FLOATS = [key for key in KEYS.types if float in KEYS.kinds(key)]
COUNTS = [key for key in KEYS.types if int in KEYS.kinds(key)]
TEXTS = [key for key in KEYS.types if str in KEYS.kinds(key)]
ENUMS = [key for key in KEYS.types if isinstance(KEYS.types[key], type) and issubclass(KEYS.types[key], Enum)]
BOOLS = [key for key in KEYS.types if KEYS.types[key] is bool]

# Words that are no job whatever the world, a word a line, and what the refusal says.
FORM = {
    "": "'' is not of the form key=value: write, say, train.steps=20",
    "=": "'=' is not of the form",
    "=3": "'=3' is not of the form",
    "tiny": "'tiny' is not of the form",
    "%%%": "'%%%' is not of the form",
    "{}[]": "is not of the form",
    "train.steps": "train.steps has no value: write train.steps=VALUE",
    "train.steps = 3": "leave no space around the =, as in train.steps=3",
    "model": "model has no value: write model=VALUE",
    "train.steps=3\n4": r"'train.steps=3\n4' holds a character that cannot be printed",
    "run.name=a\x00b": "cannot be printed",
    "train.steps=5\u00a0": r"'train.steps=5\xa0' holds a character that cannot be printed",
}
OPTIONS = {
    "model=tinny": "model=tinny: no such model; did you mean tiny? choose from ",
    "model=huge": "model=huge: no such model; choose from",
    "model=tiny.yaml": "did you mean tiny?",
    "model=../model/tiny": "model=../model/tiny: no such model",
    "model=": "model=: no such model; choose from",
    "model=null": "model=null: no such model",
    "model=3": "model=3: no such model",
    "model=[tiny]": "model=[tiny]: choose one of ",
    "model={dim: 3}": "small, tiny, tiny_mla; a key below it is set by model.KEY",
    "model=${foo}": "model=${foo}: no such model",
    "strategy=zero9": "strategy=zero9: no such strategy; did you mean zero1? choose from accelerate_ddp, ",
    "precision=fp16": "precision=fp16: no such precision; did you mean fp64?",
    "model=tiny,small": "model=tiny,small: one job takes one value",
    "model=glob(*)": "one job takes one value",
    "model@foo=tiny": "an option has one place: write model=tiny",
    "modle=tiny": "unknown key 'modle'; did you mean model?",
}
UNKNOWN = {
    "train.stepz=3": "unknown key 'train.stepz'; did you mean train.steps?",
    "steps=3": "unknown key 'steps'; did you mean train.steps?",
    "train.lr=3": "unknown key 'train.lr'; did you mean optim.lr?",
    "modle.dim=3": "unknown key 'modle.dim'; did you mean model.dim?",
    "model.dim.x=3": "unknown key 'model.dim.x'; did you mean model.dim?",
    "model.atention.n_heads=3": "did you mean model.attention.n_heads?",
    "tràin.steps=3": "unknown key 'tràin.steps'; did you mean train.steps?",
    "train/steps=3": "did you mean train.steps?",
    "train.foo=3": "unknown key 'train.foo'; train has steps, global_batch_size, ",
    "foo=3": "unknown key 'foo'; --cfg job prints them all",
    "+foo=3": "unknown key 'foo'",
    "+train.foo=3": "unknown key 'train.foo'",
    "++train.foo=3": "unknown key 'train.foo'",
    "++model.attention.foo=1": "unknown key 'model.attention.foo'",
    "+train.steps=3": "+train.steps=3: train.steps is there already; leave out the +",
    "++train.steps=3": "leave out the +",
    "+model=tiny": "+model=tiny: model is there already; leave out the +",
    "~train.steps": "~train.steps: a key cannot be taken away; set its value instead",
    "~train.steps=3": "a key cannot be taken away",
    "~model": "~model: a key cannot be taken away",
    "hydra.run.dir=x": "hydra.run.dir=x: Hydra composes and does no more: leave its keys out",
    "hydra/launcher=basic": "Hydra composes and does no more",
    "+hydra.verbose=true": "Hydra composes and does no more",
    "hydra.searchpath=[file:///x]": "Hydra composes and does no more",
    "defaults=[]": "unknown key 'defaults'",
    "nproc=2": "nproc=2: the number of ranks is the launcher's: switchyard train nproc=N",
}
VALUES = {
    "train.steps=abc": "train.steps=abc: set it to a whole number",
    "train.steps=": "train.steps=: set it to a whole number",
    "train.steps=1.5": "train.steps=1.5: set it to a whole number",
    "train.steps=1e3": "train.steps=1e3: set it to a whole number",
    "train.steps=0x10": "train.steps=0x10: set it to a whole number",
    "train.steps=true": "train.steps=true: set it to a whole number",
    "train.steps=null": "train.steps=null: set it to a whole number",
    "train.steps=???": "train.steps=???: set it to a whole number",
    "train.steps=[1]": "train.steps=[1]: set it to a whole number",
    "train.steps={a:1}": "train.steps={a:1}: set it to a whole number",
    "train.steps={a": "train.steps={a: set it to a whole number",
    "train.steps=３": "train.steps=３: set it to a whole number",
    "train.steps=" + "9" * 5000: "set it to a whole number",
    "train.steps=" + "[" * 5000: "set it to a whole number",
    "train.steps=5,6": "train.steps=5,6: one job takes one value; start a job for each",
    "train.steps=range(1,3)": "one job takes one value",
    "train.micro_batch_size=2.0": "train.micro_batch_size=2.0: set it to a whole number or null",
    "optim.lr=abc": "optim.lr=abc: set it to a number",
    "optim.lr=null": "optim.lr=null: set it to a number",
    "optim.lr=true": "optim.lr=true: set it to a number",
    "optim.clip_norm=off": "optim.clip_norm=off: set it to a number or null",
    "overlap.grad_reduce=maybe": "overlap.grad_reduce=maybe: set it to true or false",
    "overlap.grad_reduce=2": "overlap.grad_reduce=2: set it to true or false",
    "overlap.grad_reduce=null": "overlap.grad_reduce=null: set it to true or false",
    "train.device=gpu": "train.device=gpu: set it to auto, cpu or cuda",
    "train.device=null": "train.device=null: set it to auto, cpu or cuda",
    "optim.schedule=linear": "optim.schedule=linear: set it to cosine, wsd or constant",
    "measure.trace_every=-1": "measure.trace_every=-1: set it to 0 or more",
    "measure.trace_every=1": "measure.trace_every=1: the step before a traced one warms up; set it to 2 or more, or 0",
    "measure.trace_limit=-1": "measure.trace_limit=-1: set it to 0 or more",
    "measure.trace_ranks=[7]": "measure.trace_ranks=[7]: there is no rank 7 among ",
    "measure.trace_ranks=[-1]": "measure.trace_ranks=[-1]: there is no rank -1 among ",
    "measure.gpu_hour_usd=0": "measure.gpu_hour_usd=0.0: set it above 0, or null",
    "logging.wandb=on": "logging.wandb=on: set it to online, offline or disabled",
    "model.name=null": "model.name=null: set it to a text",
    "model.name=[1]": "model.name=[1]: set it to a text",
    "model.attention=3": "model.attention is a group of keys; set one of them: model.attention.kind, ",
    "model.attention=null": "model.attention is a group of keys",
    "train=5": "train=5: train is a group of keys; set one of them: train.steps, train.global_batch_size, ",
    "train={steps: 3}": "train is a group of keys",
    "run=x": "run is a group of keys; set one of them: run.name, run.root, run.dir",
    "data.sequence_length=${foo.bar}": "there is no key foo.bar; set it to a whole number",
    "data.sequence_length=${model.name}": "what it refers to cannot be one; set it to a whole number",
    "data.sequence_length=${model.attention}": "what it refers to cannot be one; set it to a whole number",
    "train.steps=${train.steps}": "what it refers to cannot be one; set it to a whole number",
    "train.steps=${oc.env:NO_SUCH_VARIABLE}": "what it refers to cannot be one",
    "train.steps=${nothing:3}": "what it refers to cannot be one",
    "run.name=${": "run.name=${: set it to a text or null",
}


@pytest.mark.parametrize(("word", "said"), [*FORM.items(), *OPTIONS.items(), *UNKNOWN.items(), *VALUES.items()])
def test_a_word(word: str, said: str) -> None:
    assert said in refusal(word)


# Jobs that cannot run: words, ranks, refusal.
EARLY = "overlap.optimizer=true optim.clip_norm=null recovery.non_finite=fail"
HALVES = "precision=bf16 optim.one_pass=true optim.halves=true"
COMBINATIONS = [
    # the network
    ("model.dim=0", 1, "model.dim=0: set it to at least 1"),
    ("model.norm_eps=0", 1, "model.norm_eps=0.0: set it to at least 1e-30, as 1e-6"),
    ("model.n_dense_layers=5", 1, "model.n_dense_layers=5: set it between 0 and model.n_layers=4"),
    ("model.attention.n_heads=3", 1, "model.attention.n_heads=3 is not divisible by model.attention.n_kv_heads=2: set"),
    ("model.attention.head_dim=31", 1, "model.attention.head_dim=31 is odd and RoPE turns pairs: set it even"),
    ("model=tiny_mla model.attention.qk_rope_dim=7", 1, "model.attention.qk_rope_dim=7 is odd"),
    ("model.attention.q_lora_rank=-1", 1, "model.attention.q_lora_rank=-1: set it to 0 (no compression) or more"),
    ("model.attention.rope_theta=0", 1, "model.attention.rope_theta=0.0: set it above 0"),
    ("model.moe.top_k=9", 1, "model.moe.top_k=9 exceeds model.moe.n_routed=8: set model.moe.top_k to at most 8"),
    ("model.moe.top_k=0", 1, "model.moe.top_k=0: set it to at least 1"),
    ("model.moe.route_scale=0", 1, "model.moe.route_scale=0.0: set it above 0"),
    ("model.expert_backend=grouped_mm precision=fp64", 1, "grouped_mm has no float64: set it to auto or loop"),
    (
        "model.expert_backend=fused precision=fp64",
        1,
        "model.expert_backend=fused has no float64: set it to auto or loop",
    ),
    (
        "model.expert_backend=grouped_mm model.dim=66",
        1,
        "model.dim=66: grouped_mm takes multiples of 4 in float32; set it to 68, or",
    ),
    (
        "model.expert_backend=grouped_mm model.moe.expert_dim=12 precision=bf16",
        1,
        "grouped_mm takes multiples of 8 in bfloat16; set it to 16",
    ),
    (
        "strategy=tp strategy.etp=2 model.expert_backend=grouped_mm model.moe.expert_dim=24 precision=bf16",
        2,
        "model.moe.expert_dim=24: grouped_mm takes multiples of 8 in bfloat16 on each of 2 ranks; set it to 32",
    ),
    ("model.expert_backend=fused precision=fp32", 1, "fused computes in bfloat16, not in float32: set it to auto"),
    ("model.expert_backend=triton precision=fp32", 1, "triton computes in bfloat16, not in float32: set it to auto"),
    (
        "model.expert_backend=triton model.moe.expert_dim=12 precision=bf16",
        1,
        "triton takes multiples of 8 in bfloat16; set it to 16",
    ),
    (
        "strategy=ep strategy.dispatcher=all_gather strategy.rows=static model.expert_backend=loop",
        2,
        "strategy.rows=static: model.expert_backend=loop asks the device how many rows each expert has",
    ),
    # what attention and routing cannot be, or would not read
    (
        "model.attention.rope_fraction=0.1",
        1,
        "rope_fraction=0.1 turns 3 of model.attention.head_dim=32, and RoPE turns",
    ),
    ("model.attention.rope_fraction=1.5", 1, "model.attention.rope_fraction=1.5: set it above 0 and to at most 1"),
    ("model=tiny_mla model.attention.qk_norm=true", 1, "model.attention.qk_norm is for kind=gqa: set it to false"),
    ("model=tiny_mla model.attention.rope_fraction=0.5", 1, "model.attention.rope_fraction is for kind=gqa: set it to"),
    (
        "model.attention.yarn.mscale=2",
        1,
        "model.attention.yarn.mscale=2.0: it acts with model.attention.yarn.factor ab",
    ),
    ("model.attention.yarn.factor=0.5", 1, "model.attention.yarn.factor=0.5: set it to 1 (no stretching) or more"),
    (
        "model.attention.yarn.factor=4 model.attention.yarn.beta_slow=40",
        1,
        "yarn.beta_slow=40.0: set it below model.att",
    ),
    (
        "model.attention.yarn.factor=4 model.attention.rope_theta=1",
        1,
        "rope_theta=1.0: YaRN needs more than 1, as 10000",
    ),
    (
        "model.moe.n_groups=3",
        1,
        "model.moe.n_groups=3 does not divide model.moe.n_routed=8: set model.moe.n_groups to a",
    ),
    (
        "model.moe.groups_per_token=2",
        1,
        "model.moe.groups_per_token=2 exceeds model.moe.n_groups=1: set model.moe.grou",
    ),
    (
        "model.moe.n_groups=4 model.moe.top_k=3",
        1,
        "top_k=3 exceeds the 2 experts of model.moe.groups_per_token=1 groups",
    ),
    (
        "model.moe.n_groups=8 model.moe.groups_per_token=2",
        1,
        "leaves one expert a group, which has no two best: set mo",
    ),
    (
        "model.moe.balance=none model.moe.bias_update_rate=0.5",
        1,
        "with model.moe.balance=none no bias moves; set model",
    ),
    (
        "model.n_dense_layers=4 model.moe.z_loss_weight=0.1",
        1,
        "model.n_dense_layers=4 leaves no layer with experts, and",
    ),
    (
        "model.moe.routing=balanced",
        1,
        "model.moe.balance=bias: with model.moe.routing=balanced no bias moves a choice; set model.moe.balance=none",
    ),
    (
        "model.moe.routing=balanced model.moe.balance=none data.sequence_length=30",
        1,
        "data.sequence_length=30: with model.moe.routing=balanced every expert is to have as many of its tokens, and "
        "8 experts, 2 a token, make that a multiple of 4; set it to one",
    ),
    (
        "model.moe.routing=balanced model.moe.balance=none model.n_dense_layers=4",
        1,
        "model.moe.routing=balanced: model.n_dense_layers=4 leaves no layer with experts; leave it out",
    ),
    ("model.n_dense_layers=4 model.moe.capacity_factor=1", 1, "model.n_dense_layers=4 leaves no layer with experts"),
    # the data
    ("data.sequence_length=512", 1, "longer than model.max_sequence_length=256: set data.sequence_length to at most"),
    ("data.sequence_length=0", 1, "data.sequence_length=0: set it to at least 1"),
    ("model.vocab_size=255", 1, "data=stdlib is bytes; set it to 256 or more, or choose data=synthetic"),
    ("data=text data.path=a.txt model.vocab_size=255", 1, "data=text is bytes; set it to 256 or more, or set data.tok"),
    ("data.heldout_fraction=1", 1, "data.heldout_fraction=1.0: set it above 0 and below 1"),
    ("data=text", 1, "data=text: set data.path to a .txt, .jsonl or .parquet file, a folder or a glob"),
    ("data=tokens", 1, "data=tokens: set data.path to a .bin or .npy file, or a folder of switchyard tokenize"),
    ("data=hf", 1, "data=hf: set data.name to a dataset, a name on the hub or a local folder"),
    ("data.source=hf", 1, "data=hf: set data.name to a dataset"),
    ("data=mixture", 1, "data=mixture: set data.mixture to its parts, as [{source: text, path: a.txt}, …]"),
    (
        "data=hf data.name=a/b data.heldout_split=test data.heldout_fraction=0.1",
        1,
        "data.heldout_fraction=0.1: data.heldout_split=test is what is held out; leave one of them out",
    ),
    # what the source does not read
    (
        "data.path=x",
        1,
        "data.path=x: data.source=stdlib reads no path; leave it out, or choose data=text or data=tokens",
    ),
    (
        "data=tokens data.path=x data.document=line",
        1,
        "data.document=line: data.source=tokens reads no document; leave",
    ),
    ("data.mixture=[{}]", 1, "data.mixture=[…]: data.source=stdlib reads no mixture; leave it out, or choose data=mix"),
    ("data=mixture data.mixture=[{}] data.path=x", 1, "data.path=x: data.source=mixture reads no path; leave it out"),
    (
        "data=mixture data.mixture=[{}] data.tokenizer=x",
        1,
        "data.tokenizer=x: data.source=mixture (of stdlib) reads no tokenizer; leave it out, or choose data=text or",
    ),
    ("data=synthetic data.cache_dir=x", 1, "data.cache_dir=x: data.source=synthetic reads no cache_dir"),
    ("data.name=a/b", 1, "data.name=a/b: it names a folder and is no path"),
    # what is done about faults
    ("recovery.non_finite_in_a_row=0", 1, "recovery.non_finite_in_a_row=0: set it to 1 or more"),
    ("recovery.rollbacks=-1", 1, "recovery.rollbacks=-1: set it to 0 or more"),
    (
        "strategy=deepspeed_zero2 recovery.check_replicas_every=5",
        2,
        "recovery.check_replicas_every=5: DeepSpeed shows one copy of each weight and nothing to compare it with; set",
    ),
    # what is measured
    (
        "measure=off measure.trace_every=5",
        1,
        "measure.trace_every=5 shows what the clock times: set measure.clock=true, or it to 0",
    ),
    ("measure.clock=false measure.trace_slow=true", 1, "measure.trace_slow=true shows what the clock times: set me"),
    ("measure=off measure.nvtx=true", 1, "measure.nvtx=true shows what the clock times"),
    ("measure.trace_ranks=[0,2]", 2, "measure.trace_ranks=[0, 2]: there is no rank 2 among 2; name ranks from 0"),
    # the batch
    ("train.global_batch_size=10", 4, "10 is not divisible by 4 data-parallel ranks: set it to a multiple of 4, as 12"),
    ("train.global_batch_size=1", 2, "set it to a multiple of 2, as 2"),
    ("train.micro_batch_size=3", 2, "does not divide the 8 sequences of a rank (train.global_batch_size=16 ÷ 2 "),
    ("train.micro_batch_size=32", 2, "train.micro_batch_size=32 does not divide the 8 sequences of a rank"),
    ("train.micro_batch_size=0", 1, "train.micro_batch_size=0: set it to at least 1, or null"),
    ("train.eval_sequences=3", 2, "train.eval_sequences=3 is not divisible by 2 data-parallel ranks: set it"),
    ("train.log_every=0", 1, "train.log_every=0: set it to at least 1"),
    ("train.steps=0", 1, "train.steps=0: set it to at least 1"),
    # the world
    ("strategy=single", 2, "strategy=single is 1 rank, and 2 were started: choose strategy=ddp or strategy=fsdp, or"),
    ("strategy=fsdp strategy.dp_shard=3", 2, "strategy.dp_shard=3 makes the degrees span 3 ranks, and 2 were started"),
    ("strategy=fsdp strategy.dp_shard=1", 2, "strategy.dp_shard=1 makes the degrees span 1 rank, and 2 were started"),
    ("strategy=fsdp strategy.dp_shard=2", 1, "and 1 was started: set it to -1 (the rest of the world), or start 2"),
    ("strategy.dp_replicate=1", 2, "strategy.dp_replicate=1 makes the degrees span 1 rank"),
    ("strategy=fsdp strategy.dp_shard=0", 2, "strategy.dp_shard=0: set it to at least 1, or -1"),
    ("strategy=fsdp strategy.dp_shard=-2", 2, "strategy.dp_shard=-2: set it to at least 1, or -1"),
    ("strategy=fsdp strategy.dp_replicate=-1", 2, "strategy.dp_replicate and strategy.dp_shard are both -1"),
    ("strategy=fsdp strategy.dp_replicate=2", 3, "strategy.dp_replicate=2 takes a multiple of 2 ranks, and 3 were"),
    ("strategy=ddp strategy.dp_shard=2", 2, "strategy.dp_shard=2: strategy.reduction=all_reduce has no such ranks"),
    ("strategy=single strategy.dp_replicate=2", 2, "strategy.reduction=none has no such ranks; set it to 1"),
    ("strategy.reduction=none", 2, "strategy.dp_replicate=-1: strategy.reduction=none has no such ranks"),
    (
        "strategy=fsdp strategy.ep=3",
        2,
        "strategy.ep=3 does not divide the 2 ranks that it may take (strategy.dp_shard ×",
    ),
    (
        "strategy=tp strategy.etp=3",
        2,
        "strategy.etp=3: experts are split over all tensor-parallel ranks or none; set it",
    ),
    ("strategy=ddp strategy.etp=0", 2, "strategy.etp=0: set it to 1, or to strategy.tp"),
    ("strategy=tp model.vocab_size=257", 2, "model.vocab_size=257 does not divide over strategy.tp=2 ranks: set it to"),
    (
        "strategy=tp model.attention.n_heads=6 model.attention.n_kv_heads=3",
        2,
        "strategy.tp=2: one must divide the other",
    ),
    (
        "strategy=tp strategy.etp=2 model.moe.expert_dim=63 model.moe.n_shared=0",
        2,
        "strategy.etp=2 does not divide model",
    ),
    ("strategy=ep", 3, "train.global_batch_size=16 is not divisible by 3 data-parallel ranks"),
    (
        "strategy=ep train.global_batch_size=12 train.eval_sequences=12",
        3,
        "strategy.ep=3 does not divide model.moe.n_ro",
    ),
    (
        "strategy=ep model.n_dense_layers=4",
        2,
        "strategy.etp=1: model.n_dense_layers=4 leaves no layer with experts; set",
    ),
    ("strategy=ddp strategy.dispatcher=all_gather", 2, "with strategy.ep=1 no row travels; leave it out"),
    (
        "strategy=ddp strategy.dispatcher=symmetric_memory",
        2,
        "strategy.dispatcher=symmetric_memory: with strategy.ep=1 no row travels; leave it out",
    ),
    (
        "strategy=tp_ep strategy.etp=2 strategy.ep=2 strategy.dispatcher=symmetric_memory",
        4,
        "strategy.dispatcher=symmetric_memory: with strategy.etp=2 all pairs go to all ranks of a part; set that to 1,",
    ),
    ("strategy=accelerate_ddp strategy.rows=static", 2, "strategy.engine=accelerate does not read it; leave it out"),
    ("strategy=ddp strategy.rows=static", 2, "every pair has a row and nobody waits; leave it out"),
    (
        "strategy=ep strategy.rows=static",
        2,
        "strategy.rows=static: strategy.dispatcher=all_to_all waits for how many rows come; set that to all_gather,",
    ),
    ("strategy=ddp strategy.placement=round_robin", 2, "with strategy.ep=1 a rank has all experts; leave it out"),
    (
        "strategy=ddp strategy.schedule=gpipe",
        2,
        "strategy.schedule=gpipe: with strategy.pp=1 there is no pipeline; leave",
    ),
    ("strategy=pp model.n_layers=3", 4, "model.n_layers=3 are fewer than the pipeline's 4 stages: set strategy.pp or"),
    (
        "strategy=pp train.global_batch_size=2",
        2,
        "and a pipeline of 2 ranks wants 4 micro-batches or more: set it to a",
    ),
    (
        "strategy=pp strategy.schedule=dualpipe train.global_batch_size=18",
        3,
        "it pairs ranks; set strategy.pp to an even number",
    ),
    ("strategy=pp strategy.schedule=zbv strategy.stages_per_rank=3", 2, "strategy.schedule=zbv has 2; set it to null"),
    (
        "strategy=pp strategy.schedule=zbv strategy.recompute=full",
        2,
        "strategy.schedule=zbv splits backward, and each half would compute again; set it to none",
    ),
    (
        "strategy=pp strategy.schedule=zbv precision=bf16 model.expert_backend=triton",
        2,
        "model.expert_backend=triton: strategy.schedule=zbv splits backward, and each half would do most of both",
    ),
    (
        "strategy=pp strategy.schedule=zbv model.expert_backend=fused",
        2,
        "strategy.schedule=zbv splits backward, and each half would do most of both; set it to auto or grouped_mm",
    ),
    (
        "strategy=pp_fsdp strategy.schedule=zbv",
        4,
        "parameters must stay gathered: set overlap.reshard_after_forward=false",
    ),
    ("strategy=ddp overlap.param_prefetch=3", 2, "overlap.param_prefetch=3: with strategy.reduction=all_reduce no"),
    ("strategy=zero1 overlap.reshard_after_forward=false", 2, "with strategy.reduction=shard_optimizer no parameter"),
    ("strategy=fsdp overlap.bucket_mib=3", 2, "overlap.bucket_mib=3.0: with strategy.reduction=shard gradients are"),
    ("strategy=single overlap.grad_reduce=false", 1, "overlap.grad_reduce=false: on one rank no gradient is reduced;"),
    (
        "overlap.shared_experts=true",
        2,
        "overlap.shared_experts=true: with strategy.ep=1 no row travels that they could",
    ),
    (
        "strategy=ep overlap.shared_experts=true model.moe.n_shared=0",
        2,
        "overlap.shared_experts=true: model.moe.n_shared=0, there are none to hide behind; leave it out",
    ),
    ("overlap.dispatch_chunks=0", 2, "overlap.dispatch_chunks=0: set it to at least 1 (all at once)"),
    ("strategy=fsdp overlap.dispatch_chunks=2", 2, "overlap.dispatch_chunks=2: with strategy.ep=1 no row travels;"),
    (
        "strategy=ep strategy.dispatcher=all_gather overlap.dispatch_chunks=2",
        2,
        "overlap.dispatch_chunks=2: only strategy.dispatcher=all_to_all with strategy.etp=1 sends rows in parts;",
    ),
    (
        "strategy=ep strategy.dispatcher=symmetric_memory overlap.dispatch_chunks=2",
        2,
        "overlap.dispatch_chunks=2: only strategy.dispatcher=all_to_all with strategy.etp=1 sends rows in parts;",
    ),
    (
        "strategy=ep overlap.dispatch_chunks=1000",
        2,
        "overlap.dispatch_chunks=1000: a rank has ",
    ),
    (
        "strategy=ddp overlap.forward_backward=true",
        2,
        "true: with strategy.ep=1 no row travels that it could hide; set",
    ),
    (
        "strategy=accelerate_ddp overlap.forward_backward=true",
        2,
        "overlap.forward_backward=true: strategy=accelerate_ddp does not read it; set it to false",
    ),
    (
        "strategy=ep strategy.dispatcher=all_gather overlap.forward_backward=true",
        2,
        "overlap.forward_backward=true hides strategy.dispatcher=all_to_all with strategy.etp=1; set these, or it to",
    ),
    (
        "strategy=ep strategy.dispatcher=symmetric_memory overlap.forward_backward=true",
        2,
        "overlap.forward_backward=true hides strategy.dispatcher=all_to_all with strategy.etp=1; set these, or it to",
    ),
    (
        "strategy=tp_ep strategy.etp=2 strategy.ep=2 overlap.forward_backward=true",
        4,
        "overlap.forward_backward=true hides strategy.dispatcher=all_to_all with strategy.etp=1; set these, or it to",
    ),
    (
        "strategy=pp_ep strategy.schedule=zbv model.n_layers=6 overlap.forward_backward=true",
        4,
        "strategy.schedule=zbv has no forward beside a backward; set it to one of 1f1b, interleaved_1f1b, dualpipev,",
    ),
    (
        "strategy=ep overlap.forward_backward=true",
        2,
        "overlap.forward_backward=true takes 2 micro-batches a step or more, not 1: set train.micro_batch_size lower",
    ),
    (
        "strategy=ep overlap.forward_backward=true overlap.dispatch_chunks=2 train.micro_batch_size=1",
        2,
        "overlap.dispatch_chunks=2: overlap.forward_backward=true hides rows behind another micro-batch, all at once;",
    ),
    (
        "strategy=fsdp_ep overlap.forward_backward=true train.micro_batch_size=1",
        2,
        "FSDP2's parameters must stay gathered: set overlap.reshard_after_forward=false",
    ),
    (
        "strategy=ddp strategy.reduction=shard_gradients",
        2,
        "engine=native has no such thing; natively that is strategy=fsdp",
    ),
    (
        "strategy=accelerate_ddp strategy.reduction=shard_optimizer",
        2,
        "accelerate has no such thing; set it to all_reduce or shard",
    ),
    (
        "strategy=deepspeed_zero1 strategy.reduction=all_reduce",
        2,
        "set it to shard_optimizer or shard_gradients or shard",
    ),
    (
        "strategy=deepspeed_zero2 strategy.tp=2",
        2,
        "strategy.tp=2: strategy.engine=deepspeed is data parallelism alone;",
    ),
    (
        "strategy=deepspeed_zero3 strategy.ep=2",
        2,
        "strategy.ep=2: strategy.engine=deepspeed is data parallelism alone;",
    ),
    ("strategy=deepspeed_zero1 strategy.pp=2", 2, "set it to 1, or strategy.engine=native"),
    ("strategy=accelerate_ddp strategy.tp=2 strategy.etp=2", 2, "strategy.tp=2: strategy.engine=accelerate is data"),
    ("strategy=deepspeed_zero3 strategy.dp_replicate=2", 4, "shards over all ranks; set it to 1, or use strategy=hsdp"),
    ("strategy=accelerate_ddp", 1, "strategy.engine=accelerate takes 2 ranks or more, and 1 was started"),
    ("strategy=accelerate_ddp overlap=none", 2, "overlap.grad_reduce=false: strategy=accelerate_ddp does not read it;"),
    ("strategy=accelerate_ddp overlap.param_prefetch=2", 2, "does not read it; set it to 1"),
    ("strategy=accelerate_ddp overlap.reshard_after_forward=false", 2, "does not read it; set it to true"),
    (
        "strategy=accelerate_fsdp overlap=none",
        2,
        "overlap.grad_reduce=false: strategy=accelerate_fsdp does not read it",
    ),
    ("strategy=accelerate_fsdp overlap.bucket_mib=5", 2, "overlap.bucket_mib=5.0: strategy=accelerate_fsdp does not"),
    ("strategy=accelerate_fsdp overlap=max", 2, "overlap.param_prefetch=2: strategy=accelerate_fsdp does not read it;"),
    ("strategy=deepspeed_zero3 overlap=max", 2, "overlap.param_prefetch=2: strategy=deepspeed_zero3 does not read it;"),
    ("strategy=deepspeed_zero3 overlap.reshard_after_forward=false", 2, "does not read it; set it to true"),
    ("strategy=deepspeed_zero1 precision=bf16 overlap.bucket_mib=5", 2, "read it with precision.compute=bfloat16; set"),
    (
        "strategy=deepspeed_zero1 precision=bf16 overlap=none",
        2,
        "zero1 does not read it with precision.compute=bfloat16",
    ),
    ("strategy=deepspeed_zero1 precision=fp64", 2, "precision.parameters=float64: DeepSpeed has no float64; use"),
    (
        "strategy=deepspeed_zero2 precision.reduce=bfloat16",
        2,
        "DeepSpeed reduces float32 gradients as they are; set it to",
    ),
    (
        "strategy=accelerate_ddp precision=bf16 precision.reduce=bfloat16",
        2,
        "only sharding (fsdp, zero1) reduces in a",
    ),
    ("overlap.param_prefetch=0", 2, "overlap.param_prefetch=0: set it to at least 1"),
    ("overlap.async_tp=0", 2, "overlap.async_tp=0: set it to 1 (whole sequences) or more"),
    ("overlap.async_tp=2", 2, "overlap.async_tp=2: with strategy.tp=1 no sequence is cut; leave it out"),
    ("overlap=max overlap.async_tp=2", 2, "overlap.async_tp=2: with strategy.tp=1 no sequence is cut; leave it out"),
    (
        "strategy=tp overlap.async_tp=3 data.sequence_length=64",
        2,
        "32 tokens, is not so many equal chunks; set",
    ),
    ("strategy=deepspeed_zero1 overlap.async_tp=2", 2, "overlap.async_tp=2: strategy=deepspeed_zero1 does not read it"),
    (
        "overlap.optimizer=true",
        2,
        "optim.clip_norm=1.0 scales gradients by a norm that is known only",
    ),
    (
        "overlap.optimizer=true optim.clip_norm=null",
        2,
        "recovery.non_finite=skip leaves out a step that is not",
    ),
    (
        f"strategy=pp_fsdp strategy.schedule=zbv overlap.reshard_after_forward=false {EARLY}",
        4,
        "strategy.schedule=zbv computes weight gradients apart, which FSDP2 reduces when all are there; set it to",
    ),
    (
        f"strategy=tp {EARLY}",
        2,
        "no gradient is reduced over data-parallel ranks; set it to false",
    ),
    (f"{EARLY} overlap.grad_reduce=false", 2, "no gradient is reduced before backward is over; set that to true"),
    (f"strategy=deepspeed_zero1 {EARLY}", 2, "strategy=deepspeed_zero1 does not read it; set it to false"),
    (
        "overlap.pipeline_p2p=false",
        2,
        "overlap.pipeline_p2p=false: with strategy.pp=1 there is no pipeline; leave it out",
    ),
    ("overlap.bucket_mib=0", 2, "overlap.bucket_mib=0.0: set it above 0"),
    # dtypes
    ("precision.parameters=bfloat16", 1, "AdamW's small steps round away; set it to float32"),
    ("precision.compute=float64", 1, "precision.compute=float64 is wider than precision.parameters=float32: set it to"),
    (
        "strategy=fsdp precision.reduce=float64",
        2,
        "precision.reduce=float64 is wider than precision.parameters=float32",
    ),
    ("strategy=ddp precision.reduce=bfloat16", 2, "only sharding (fsdp, zero1) reduces in a dtype of its own; set"),
    (
        "precision.matmul=fp8",
        1,
        "precision.matmul=fp8: float8 goes with bfloat16, not precision.compute=float32; set",
    ),
    (
        "precision=fp8 strategy=tp",
        2,
        "precision.matmul=fp8: with strategy.tp=2 a rank has a part of each row, and",
    ),
    ("precision=fp8 strategy=accelerate_ddp", 2, "precision.matmul=fp8: strategy.engine=accelerate multiplies in"),
    (
        "precision=fp8 strategy=pp strategy.schedule=dualpipev model.n_layers=8",
        2,
        "precision.matmul=fp8: strategy.schedule=dualpipev splits backward, and each half would compute both gradients",
    ),
    (
        "precision=fp8 model=tiny_mla",
        1,
        "sizes that are multiples of 16, and layers.0.attention.mixer.kv_down.weight is 40 × 64: change these, or set",
    ),
    # graphs of a GPU
    ("strategy.cuda_graph=true", 1, "with precision.compute=float32 experts are a loop on a GPU, and the host waits"),
    (
        "precision=bf16 strategy.cuda_graph=true strategy=accelerate_ddp",
        2,
        "strategy.cuda_graph=true: strategy.engine=accelerate has hooks within backward, which no graph runs; set",
    ),
    (
        "precision=bf16 strategy.cuda_graph=true strategy=pp",
        2,
        "with strategy.pp=2 ranks wait for each other within forward and backward; set it to false, or strategy.pp=1",
    ),
    ("precision=bf16 strategy.cuda_graph=true strategy=tp", 2, "with strategy.tp=2 ranks wait for each other within"),
    ("precision=bf16 strategy.cuda_graph=true strategy=ep", 2, "with strategy.ep=2 ranks wait for each other within"),
    (
        "precision=bf16 strategy.cuda_graph=true strategy=fsdp",
        1,
        "strategy.reduction=shard gathers weights within forward and backward; set it to false, or use strategy=zero1",
    ),
    (
        "precision=bf16 strategy.cuda_graph=true strategy=zero1",
        2,
        "strategy.cuda_graph=true: overlap.grad_reduce=true starts collectives from hooks within backward",
    ),
    (
        "precision=bf16 strategy.cuda_graph=true model.moe.batch_loss_weight=0.1 model.moe.balance=none",
        1,
        "with model.moe.batch_loss_weight=0.1 loads are summed over ranks within forward; set it to false, or",
    ),
    (
        "precision=bf16 strategy.cuda_graph=true model.moe.capacity_factor=1.5",
        1,
        "with model.moe.capacity_factor=1.5 the host waits for how many rows there are; set strategy.rows=static",
    ),
    (
        "precision=bf16 strategy.cuda_graph=true model.expert_backend=loop",
        1,
        "with model.expert_backend=loop experts are a loop on a GPU, and the host waits for how many rows each has; s",
    ),
    (
        "precision=bf16 strategy.cuda_graph=true model.moe.expert_dim=36",
        1,
        "model.moe.expert_dim=36 experts are a loop on a GPU, and the host waits for how many rows",
    ),
    # the optimizer
    ("optim.beta1=1", 1, "optim.beta1=1.0: set it in [0, 1)"),
    ("optim.min_lr_ratio=1.1", 1, "optim.min_lr_ratio=1.1: set it in [0, 1]"),
    ("optim.eps=0", 1, "optim.eps=0.0: set it to at least 1e-30, as 1e-8"),
    ("optim.clip_norm=0", 1, "optim.clip_norm=0.0: set it above 0, or null for no clipping"),
    (f"{HALVES} precision=fp32", 1, "optim.halves=true: precision.compute=float32, and halves are a bfloat16 and what"),
    (f"{HALVES} precision=fp64", 1, "optim.halves=true: precision.parameters=float64, and halves are a bfloat16 and"),
    (
        f"{HALVES} strategy=ddp",
        2,
        "optim.halves=true: strategy.reduction=all_reduce keeps no weight in bfloat16 beside",
    ),
    (
        f"{HALVES} strategy=zero1",
        2,
        "optim.halves=true: each weight is on 2 ranks or more, which share out its masters;",
    ),
    (f"{HALVES} strategy=zero1 strategy.ep=2", 4, "optim.halves=true: each weight is on 2 ranks or more, which share"),
    (
        f"{HALVES} strategy=zero1 strategy.pp=2 strategy.schedule=dualpipe",
        2,
        "optim.halves=true: with strategy.schedule=dualpipe each weight is on two ranks, which share out its masters;",
    ),
    ("optim.lr=1e300", 1, "optim.lr=1e+300: set it to a finite number"),
    # the run folder
    ("run.name=a/b", 1, "run.name=a/b: it names a folder and is no path; set it to a name without /; run.dir takes a"),
    ("run.name=..", 1, "run.name=..: it names a folder and is no path"),
    ("run.name=.", 1, "run.name=.: it names a folder and is no path"),
    ("run.name=" + "é" * 60, 1, "it names a folder; set it to 100 bytes at most"),
    ("run.name=a run.dir=b", 1, "run.name=a and run.dir=b both name the run folder: set one of them to null"),
    ("model.name=../x", 1, "model.name=../x: it names a folder and is no path"),
    ("strategy.name=a/b", 1, "strategy.name=a/b: it names a folder"),
]


@pytest.mark.parametrize(("words", "ranks", "said"), COMBINATIONS)
def test_a_combination(words: str, ranks: int, said: str) -> None:
    if "strategy" not in words and ranks == 1:
        words += " strategy=single"
    assert said in refusal(*words.split(), ranks=ranks)


# What data.mixture is set to, with data=mixture, and what the refusal says.
PARTS = {
    "[{}, {weigth: 1}]": "unknown key 'data.mixture[1].weigth'; did you mean data.mixture[1].weight?",
    "[{colour: 1}]": "unknown key 'data.mixture[0].colour'; data.mixture[0] has source, path, ",
    "[{}, {weight: x}]": "data.mixture[1].weight=x: set it to a number",
    "[{weight: null}]": "data.mixture[0].weight=null: set it to a number",
    "[{weight: true}]": "data.mixture[0].weight=true: set it to a number",
    "[{weight: ???}]": "data.mixture[0].weight=???: set it to a number",
    "[{shuffle_buffer: 1.5}]": "data.mixture[0].shuffle_buffer=1.5: set it to a whole number",
    "[{source: disk}]": "data.mixture[0].source=disk: set it to stdlib, synthetic, text, tokens, hf or mixture",
    "[{path: [a]}]": "data.mixture[0].path=['a']: set it to a text or null",
    "[{path: 1e3}]": "data.mixture[0].path=1000.0: set it to a text or null",
    "[{path: é}]": "a text goes in quotes if it is more than letters and digits",
    "[{weight: ${nope}}]": "data.mixture[0].weight: there is no key nope; set it to a number",
    "3": "data.mixture=3: set it to a list, [{KEY: VALUE, …}, …], with the keys source, path, ",
    "": "data.mixture=: set it to a list",
    "null": "data.mixture=null: set it to a list",
    "{weight: 1}": "data.mixture={weight: 1}: set it to a list",
    "'${model}'": "set it to a list",
    "[3]": "data.mixture[0]=3: set it to {KEY: VALUE, …}, with the keys source, path, ",
    "[{}, null]": "data.mixture[1]=null: set it to {KEY: VALUE, …}",
    "[{weight: 0}]": "data.mixture[0].weight=0.0: set it above 0, or leave the part out",
    "[{weight: nan}]": "data.mixture[0].weight=nan: set it to a finite number",
    "[{}, {name: ' '}]": "data.mixture[1].name is empty: set it to a text",
    "[{name: a/b}]": "data.mixture[0].name=a/b: it names a folder and is no path",
    "[{shuffle_buffer: -1}]": "data.mixture[0].shuffle_buffer=-1: set it to 0 or more",
    "[{source: text}]": "data.mixture[0].source=text: set data.mixture[0].path to a .txt",
    "[{source: hf}]": "data.mixture[0].source=hf: set data.mixture[0].name to a dataset",
    "[{source: mixture}]": "data.mixture[0].source=mixture: a mixture has no mixture in it",
    "[{path: x}]": "data.mixture[0].path=x: data.mixture[0].source=stdlib reads no path; leave it out, or choose "
    "data.mixture[0].source=text or data.mixture[0].source=tokens",
}


# What faults.inject is set to on 2 ranks, and what the refusal says.
FAULTS = {
    "[{what: sigkil}]": "faults.inject[0].what=sigkil: set it to crash, sigkill, sigterm, sigstop, slow, non_finite, ",
    "[{what: nan}]": "faults.inject[0].what=nan: set it to crash, ",
    "[{wat: crash}]": "unknown key 'faults.inject[0].wat'; did you mean faults.inject[0].what?",
    "[{step: 1}, {colour: 1}]": "unknown key 'faults.inject[1].colour'; faults.inject[1] has what, rank, step, place, ",
    "[{step: x}]": "faults.inject[0].step=x: set it to a whole number",
    "[{step: 1, place: lunch}]": "faults.inject[0].place=lunch: set it to start, load, data, forward, ",
    "crash": "faults.inject=crash: set it to a list, [{KEY: VALUE, …}, …], with the keys what, rank, step, ",
    "null": "faults.inject=null: set it to a list",
    "[{step: 1, rank: 2}]": "faults.inject[0].rank=2: there is no such rank among 2 ranks",
    "[{step: 1, rank: -1}]": "faults.inject[0].rank=-1: there is no such rank",
    "[{step: 1}, {}]": "faults.inject[1].step=0: set it in 1 to 300 (train.steps)",
    "[{step: 301}]": "faults.inject[0].step=301: set it in 1 to 300 (train.steps)",
    "[{place: start, step: 2}]": "faults.inject[0].step=2: nothing has a step at start; leave it out",
    "[{place: load, step: 2}]": "faults.inject[0].step=2: nothing has a step at load; leave it out",
    "[{step: 1, attempt: -1}]": "faults.inject[0].attempt=-1: set it to 1 or more, or 0 for every attempt",
    "[{step: 1, what: slow}]": "faults.inject[0].seconds=0.0: faults.inject[0].what=slow sleeps so long; set it",
    "[{step: 1, seconds: 1}]": "faults.inject[0].seconds=1.0: faults.inject[0].what=crash reads no seconds; leave it",
    "[{step: 1, what: slow, seconds: inf}]": "faults.inject[0].seconds=inf: set it to a finite number",
    "[{step: 1, what: non_finite, place: data}]": "faults.inject[0].place=data: faults.inject[0].what=non_finite takes "
    "no place; leave it out",
    "[{step: 1, what: corrupt, place: write}]": "what=corrupt takes no place; leave it out",
    "[{step: 1, what: fail, place: data}]": "faults.inject[0].place=data: faults.inject[0].what=fail fails a save; set "
    "it to write or rename",
    "[{step: 1, rank: 1, place: rename}]": "faults.inject[0].rank=1: rank 0 renames; set it to 0, or "
    "faults.inject[0].place to another",
}


@pytest.mark.parametrize(("value", "said"), FAULTS.items())
def test_a_fault(value: str, said: str) -> None:
    assert said in refusal(f"faults.inject={value}", ranks=2)


@pytest.mark.parametrize("value", ["[]", "[{step: 300, rank: 1}]", "[{place: load}]", "[{what: fail, step: 3}]"])
def test_a_fault_that_can_happen(value: str) -> None:
    validate(compose([f"faults.inject={value}"]).config, 2)


@pytest.mark.parametrize(("value", "said"), PARTS.items())
def test_a_part_of_a_mixture(value: str, said: str) -> None:
    assert said in refusal("data=mixture", f"data.mixture={value}")


@pytest.mark.parametrize("key", ["data.mixture[0].weight", "data.mixture.0.weight"])
def test_a_mixture_is_set_as_a_whole(key: str) -> None:
    assert f"{key}=3: data.mixture is set as a whole: data.mixture=[" in refusal(f"{key}=3")


# The same in a file of --config-dir, where OmegaConf does not say which part it was.
PARTS_IN_FILES = {
    "mixture: [{weigth: 1}]": "unknown key 'data.mixture[].weigth' in data/mine.yaml; did you mean data.mixture[].wei",
    "mixture: [{weight: x}]": "data.mixture[].weight=x in data/mine.yaml: set it to a number",
    "mixture: [{source: disk}]": "data.mixture[].source=disk in data/mine.yaml: set it to stdlib, ",
    "mixture: [3]": "data.mixture[0]=3 in data/mine.yaml: set it to {KEY: VALUE, …}",
    "mixture: 3": "data.mixture=3 in data/mine.yaml: set it to a list",
    "mixture: {weight: 1}": "data/mine.yaml: a group of keys stands where a list belongs (data.mixture)",
    "mixture: ${model}": "data.mixture: set it to a list",
}


@pytest.mark.parametrize(("text", "said"), PARTS_IN_FILES.items())
def test_a_part_of_a_mixture_in_a_file(text: str, said: str, tmp_path: Path) -> None:
    write_option(tmp_path, "data", "mine", text)
    assert said in refusal("data=mine", extra_dir=tmp_path)


def test_a_dataset_may_have_a_path_for_a_name() -> None:
    config = JobConfig(data=DataConfig(source=DataSource.hf, name="owner/dataset" + "x" * 100))
    validate(config, 1)


def test_every_field_of_the_data_has_its_readers() -> None:
    assert READERS.keys() == {entry.name for schema in (DataConfig, MixturePart) for entry in fields(schema)}


@pytest.mark.parametrize("source", DataSource)
@pytest.mark.parametrize("name", [entry.name for entry in fields(DataConfig)])
def test_what_a_source_does_not_read_is_refused(source: DataSource, name: str) -> None:
    other: dict[str, Any] = {
        "document": DocumentUnit.line,
        "dtype": TokenDtype.uint8,
        "boundaries": Boundaries.none,
        "source": source,
        "shuffle_buffer": 3,
        "sequence_length": 3,
        "heldout_fraction": 0.5,
        "mixture": [MixturePart()],
    }
    config = DataConfig(**{"name": "x", "source": source, name: other.get(name, "x")})
    if source not in READERS[name]:
        message = rf"^data\.{name}=\S+: data\.source={source.value} reads no {name}; leave"
        with pytest.raises(ConfigError, match=message):
            config.check()
    elif source in (DataSource.stdlib, DataSource.synthetic, DataSource.hf):  # nothing else is needed
        config.check()


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_every_number_has_a_range(key: str, value: float) -> None:
    assert refusal_of(with_value(key, value)).startswith(f"{key}={value}: set it ")


@pytest.mark.parametrize("key", COUNTS)
def test_every_count_has_a_range(key: str) -> None:
    assert refusal_of(with_value(key, -2)).startswith(f"{key}=-2: set it ")


@pytest.mark.parametrize("key", TEXTS)
def test_no_text_is_empty(key: str) -> None:
    assert refusal_of(with_value(key, " ")).startswith(f"{key} is empty: set it to a text")


@pytest.mark.parametrize("key", [*ENUMS, *BOOLS])
def test_a_choice_names_its_members(key: str) -> None:
    assert re.search(rf"^{key}=sideways: set it to \w+(, \w+)* or \w+$", refusal(f"{key}=sideways"))


# Files in --config-dir: text, and what the refusal says.
FILES = {
    "dim: abc": "model.dim=abc in model/mine.yaml: set it to a whole number",
    "dim:": "model.dim in model/mine.yaml: set it to a whole number",
    'dim: "a\\nb"': "model.dim=a b in model/mine.yaml: set it to a whole number",
    'name: "a\\nb"': r"model.name='a\nb' holds a character that cannot be printed",
    "dim: {a: 1}": "model.dim={'a': 1} in model/mine.yaml: set it to a whole number",
    "dim: ${nope.x}": "model.dim: there is no key nope.x; set it to a whole number",
    "dimm: 3": "unknown key 'model.dimm' in model/mine.yaml; did you mean model.dim?",
    "# @package _global_\nfoo: 3": "unknown key 'foo' in model/mine.yaml",
    "# @package _global_\nmodel: {dimm: 3}": "unknown key 'model.dimm' in model/mine.yaml; did you mean model.dim?",
    "attention: 3": "model/mine.yaml: a single value stands where a group of keys belongs",
    "- 1": "model/mine.yaml: a single value stands where a group of keys belongs",
    "defaults: [nothere]": "model/mine.yaml: Could not load 'model/nothere'",
    "name: [1": "model/mine.yaml, line 1: expected ',' or ']'",
    "name: x\n\tdim: 3": "model/mine.yaml, line 2: found character '\\t'",
    "dim: 3\ndim: 4": "model/mine.yaml, line 2: found duplicate key dim",
    "x: !!python/object/apply:os.getcwd []": "model/mine.yaml, line 1: could not determine a constructor",
    "a: &a [*a]": "holds itself: break the loop",
    "name: \udcff": "is not UTF-8",
}


@pytest.mark.parametrize(("text", "said"), FILES.items())
def test_a_file_of_the_users(text: str, said: str, tmp_path: Path) -> None:
    write_option(tmp_path, "model", "mine", text)
    assert said in refusal("model=mine", extra_dir=tmp_path)


def test_a_file_of_the_users_cannot_hide_behind_one_of_ours(tmp_path: Path) -> None:
    write_option(tmp_path, "model", "tiny", "dim: 64")
    assert "model/tiny.yaml: model=tiny is there already; give your file another name" in refusal(extra_dir=tmp_path)


def test_a_folder_without_options(tmp_path: Path) -> None:
    write_option(tmp_path, "nogroup", "x", "a: 1")
    assert f"--config-dir {tmp_path}: name a folder that holds" in refusal(extra_dir=tmp_path)
    write_option(tmp_path, "model", "mine", "dim: 64")
    assert "unknown key 'nogroup'" in refusal("nogroup=x", extra_dir=tmp_path)


NODES = [
    ("strategy=tp", 2, 1, "strategy.tp=2 does not fit into a node, which has 1 rank: tensor-parallel ranks would talk"),
    ("strategy=tp", 4, 2, "set strategy.tp=2 and another degree, as strategy.dp_shard, to -1 for the rest"),
    ("strategy=fsdp_tp", 6, 3, "strategy.tp=2 does not fit into a node, which has 3 ranks"),
    ("strategy=tp strategy.nvlink_domain=2", 4, 4, "does not fit into an NVLink domain of 2 (strategy.nvlink_domain)"),
    ("strategy.nvlink_domain=0", 1, 1, "strategy.nvlink_domain=0: set it to at least 1, or null"),
    (
        "strategy=ep strategy.dispatcher=symmetric_memory strategy.nvlink_domain=4",
        4,
        2,
        "strategy.dispatcher=symmetric_memory: strategy.ep=4 does not fit into a node, which has 2 ranks, and ranks of",
    ),
]


@pytest.mark.parametrize(("words", "ranks", "per_node", "said"), NODES)
def test_across_nodes(words: str, ranks: int, per_node: int, said: str) -> None:
    assert said in refusal(*words.split(), ranks=ranks, per_node=per_node)


@pytest.mark.parametrize(
    ("words", "ranks", "per_node"),
    [
        ("strategy=tp", 4, 4),
        ("strategy=fsdp_tp", 8, 2),
        ("strategy=tp strategy.nvlink_domain=4", 4, 2),
        ("strategy=pp_tp", 4, 2),
        ("strategy=ep strategy.ep=2 strategy.dispatcher=symmetric_memory strategy.rows=static", 4, 2),
    ],
)
def test_inside_a_node(words: str, ranks: int, per_node: int) -> None:
    validate(compose(["model=tiny", *words.split()]).config, ranks, per_node)


def refusal(*words: str, ranks: int = 1, per_node: int | None = None, extra_dir: Path | None = None) -> str:
    """What a job of these words and ranks is refused with: one line, in the user's terms."""
    with pytest.raises(ConfigError) as refused:
        validate(compose(words, extra_dir).config, ranks, per_node)
    message = str(refused.value)
    assert "\n" not in message
    assert not re.search("full_key|object_type|override|merge|OmegaConf|[Vv]alidation|[Ss]tructured|Error", message), (
        message
    )
    return message


def refusal_of(config: JobConfig) -> str:
    """The same for a configuration of one rank."""
    with pytest.raises(ConfigError) as refused:
        validate(config, 1)
    return str(refused.value)


def with_value(key: str, value: Any) -> JobConfig:
    """The default job on one rank, but for one key."""
    config = JobConfig()
    *path, name = key.split(".")
    node: Any = config
    for part in path:
        node = getattr(node, part)
    assert is_dataclass(node)
    assert name in [field.name for field in fields(node)]
    setattr(node, name, value)
    return config


def write_option(folder: Path, group: str, option: str, text: str) -> None:
    """`text` as `group=option` of a user's."""
    (folder / group).mkdir(exist_ok=True)
    (folder / group / f"{option}.yaml").write_bytes(text.encode(errors="surrogateescape"))
