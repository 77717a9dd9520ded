"""Hugging Face transformers on our words: the same model, tokens and optimizer, FSDP2 and compiled layers.

    torchrun --nproc-per-node 2 benchmarks/peer_transformers.py model=moe_5b precision=bf16 optim=adamw_large \\
        data=synthetic train.steps=40 train.global_batch_size=8 run.dir=FOLDER

Words are a job's (`model`, `data=synthetic`, `optim`, `precision`, `train`, `overlap.data`,
`overlap.reshard_after_forward`, `measure.clock`), and compile=false. The layout is its own: every decoder layer sharded
over all ranks, masters as `precision.parameters` says, compute and reduction in the dtypes of `precision`. Weights are
those of model.init_from (which every rank reads into the host's memory), or drawn as transformers does. Attention takes
the kernels that ours takes, experts transformers' own grouped products. Rows, summary.json, the FLOPs in its MFU and
the clock that divides its steps are ours (FSDP2's waits are outside what is compiled, and seen).
"""

import importlib.metadata
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.attention import sdpa_kernel
from torch.optim import Optimizer

from conf.command_line import CommandLine
from conf.compose import compose
from conf.schema import JobConfig, validate
from launch.bench.peer import check_peer
from models.attention import KERNELS_BY_SPEED
from models.balanced_routing import balanced, dealt_experts
from models.config import ConfigError, ModelConfig, ScoreFunction
from models.flops import count_parameters, flops_per_token
from models.hf_config import write_config as published_config
from parallel.clock.fsdp import fsdp_timed
from parallel.clock.phase_clock import Clock, Phase, PhaseClock
from parallel.clock.time_source import time_source
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.world import TIMEOUT, Launch, World, choose_device
from train.data.loader import BatchLoader
from train.data.synthetic import open_synthetic
from train.failure import INTERRUPTED, exit_at_once, fail, refuse
from train.init_from import typed_folder
from train.metrics.peak import peak_flops
from train.metrics.step_time import StepTime, time_row
from train.metrics.summary import Attempt
from train.metrics.throughput import ModelWork, Throughput, peak_memory_gib
from train.optimizer import build_optimizer, learning_rate
from train.report import Report
from train.run_folder import describe_environment, device_name, named_folder, write_config

UNSEEN = "the sum of the gradient norm is in compute_opt, not among waits"
"""What its clock cannot see: DTensor's own collective."""


@dataclass(frozen=True)
class PeerJob:
    """What the words say."""

    config: JobConfig
    plain: dict[str, Any]
    folder: Path
    compile: bool

    @classmethod
    def parse(cls, words: list[str], world_size: int) -> "PeerJob":
        """Read and judge `words`.

        Raises:
            ConfigError: one line that says what to change.
        """
        line = CommandLine.parse(words, "torchrun … benchmarks/peer_transformers.py [compile=false]")
        given = [word for word in line.overrides if word.startswith("compile=")]
        for word in given:
            if word not in ("compile=true", "compile=false"):
                raise ConfigError(f"{word}: set it to true or false")
        rest = [word for word in line.overrides if word not in given]
        composed = compose(["strategy=fsdp", *rest], line.config_dir)
        validate(composed.config, world_size)
        check_peer(composed.config)
        folder = named_folder(composed.config.run)
        if folder is None:
            raise ConfigError("where does the run go? write run.dir=FOLDER")
        return cls(composed.config, yaml.safe_load(composed.yaml), folder, "compile=false" not in given)


def main(words: list[str]) -> None:
    """Run this rank."""
    started, launch = time.monotonic(), Launch.from_environment()
    try:
        job = PeerJob.parse(words, launch.world_size)
        device = choose_device(job.config.train.device.value, launch)
        world = World.join(launch, device, launch.open_store(TIMEOUT))
        clock = PhaseClock(time_source(device)) if job.config.measure.clock else Clock()
        with fsdp_timed(clock, device):
            train(job, world, Communicator(clock), started)
        world.leave()
    except ConfigError as error:
        refuse(error, launch)
    except Exception as error:
        fail(error, launch)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def build(job: JobConfig, device: torch.device, compiled: bool) -> nn.Module:
    """The network in master weights, its layers compiled and sharded over all ranks; no device ever holds it whole."""
    from transformers import AutoConfig, AutoModelForCausalLM  # not before the words were judged: it may be missing

    model, precision = job.model, job.precision
    published = published_config(model, "float32")
    config = AutoConfig.for_model(published.pop("model_type"), **published)
    how = {"attn_implementation": "sdpa", "dtype": precision.parameters.torch}
    if model.init_from is not None:
        path = typed_folder(model.init_from, "model.init_from")
        network = AutoModelForCausalLM.from_pretrained(path, config=config, **how)
    else:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, **how)
    network.set_experts_implementation("grouped_mm")
    network.train()
    if balanced(model):
        deal_experts_out(network, model, job.data.sequence_length)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=precision.compute.torch, reduce_dtype=precision.reduce.torch)
    if compiled:  # a layer of experts and a dense one share their code, and every layer has a number of its own
        torch._dynamo.config.recompile_limit = 2 * model.n_layers
    for layer in network.model.layers:
        if compiled:  # the forward alone: FSDP2's hooks stay outside
            layer.forward = torch.compile(layer.forward)
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=job.overlap.reshard_after_forward)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    if model.init_from is None:
        network.to_empty(device=device)
        for module in network.modules():  # what was done without storage is to be done again
            module._is_hf_initialized = False
        network.initialize_weights()
    return network


def deal_experts_out(network: nn.Module, model: ModelConfig, sequence_length: int) -> None:
    """Make the routers of `network` deal experts out as ours do, weighed by score: model.moe.routing=balanced. Of
    whole sequences: some routers see tokens in a row, and no longer where one begins."""
    layers: Any = network.model.layers
    gates = [layer.mlp.gate for layer in layers if hasattr(layer.mlp, "gate")]
    assert len(gates) == model.n_layers - model.n_dense_layers, "transformers calls its routers otherwise here"

    def deal(gate: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        moe, (x,) = model.moe, inputs  # [B, S, D] or [T, D]
        logits_TE, their_weights_TK, _ = output
        logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
        scores_TE = logits_TE.softmax(-1) if moe.score is ScoreFunction.softmax else logits_TE.sigmoid()
        places_S = torch.arange(sequence_length, device=x.device)
        experts_TK = dealt_experts(moe, len(logits_TE) // sequence_length, places_S).flatten(0, 1)
        weights_TK = scores_TE.gather(1, experts_TK)
        if moe.normalise_weights:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return output[0], (weights_TK * moe.route_scale).to(their_weights_TK.dtype), experts_TK

    for gate in gates:
        gate.register_forward_hook(deal)


def step(
    network: nn.Module, optimizer: Optimizer, tokens_MBS: Tensor, clip_norm: float | None, clock: Clock
) -> tuple[Tensor, Tensor]:
    """This rank's mean loss, and the global gradient norm before clipping; nothing here waits for the device."""
    losses = []
    for tokens_BS in tokens_MBS:
        clock.enter(Phase.compute_fwd)
        inputs, targets = tokens_BS[:, :-1], tokens_BS[:, 1:].contiguous()
        with sdpa_kernel(KERNELS_BY_SPEED, set_priority=True):
            loss = network(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss
            clock.enter(Phase.compute_bwd)
            (loss / len(tokens_MBS)).backward()
        losses.append(loss.detach())
    clock.enter(Phase.compute_opt)
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm if clip_norm is not None else float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses).mean(), norm


def train(job: PeerJob, world: World, comm: Communicator, started: float) -> None:
    """All steps, their rows, and the summary."""
    config, device = job.config, world.device
    length, model = config.data.sequence_length, config.model
    parameters, peak = count_parameters(model), peak_flops(device, config.precision.compute.torch)
    source = comm.clock.source if comm.clock.source == Clock.source else f"{comm.clock.source}; {UNSEEN}"
    attempt = Attempt(0, world.size, device_name(device), peak, parameters.total, parameters.active, source)
    torch.manual_seed(config.train.seed + world.rank)  # a CPU fills each shard by its rank's own numbers
    network = build(config, device, job.compile)
    built = sum(parameter.numel() for parameter in network.parameters())
    assert built == parameters.total, f"transformers built {built:,} parameters, and our model has {parameters.total:,}"
    optimizer = build_optimizer(list(network.parameters()), config.optim)
    corpus = open_synthetic(length, model.vocab_size, config.train.seed)
    report = open_report(job, attempt, corpus.fingerprint, started) if world.rank == 0 else None
    flops, square = (flops_per_token(model, length, causal=causal) for causal in (True, False))
    throughput = Throughput(ModelWork(flops, square, peak.tflops, world.size))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    loader = BatchLoader(
        stream=corpus.train,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch(world.size),
        dp_rank=world.rank,
        dp_size=world.size,
        start_step=0,
        prefetch=config.overlap.data,
        device=device,
    )
    tokens_a_step = config.train.global_batch_size * length
    step_time = StepTime(comm, pipelined=False)
    with loader, report or nullcontext():
        throughput.end_window()  # the start is no step
        comm.clock.end_window()
        for number in range(1, config.train.steps + 1):
            rate = learning_rate(config.optim, number, config.train.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            comm.clock.enter(Phase.data_wait)
            loss, norm = step(network, optimizer, next(loader), config.optim.clip_norm, comm.clock)
            comm.clock.enter(Phase.log)
            throughput.count(tokens_a_step)
            if number in (1, config.train.steps) or number % config.train.log_every == 0:
                mean = comm.all_reduce(loss.double(), None, CommKind.control).item() / world.size
                row = {"train/step": number, "train/tokens": number * tokens_a_step, "train/loss": mean}
                row |= {"train/grad_norm": norm.full_tensor().item(), "train/lr": rate}
                row |= throughput.end_window() | {"mem/peak_gib": peak_memory_gib(device)}
                if window := comm.clock.end_window():
                    row |= time_row(comm.all_gather_numbers(step_time.own(window)), window.steps)
                if report:
                    report.log(row)
    if report:
        report.summarise()


def open_report(job: PeerJob, attempt: Attempt, fingerprint: str, started: float) -> Report:
    """Where rank 0 writes; config.yaml says whose run it is."""
    environment = describe_environment(attempt, fingerprint) | {
        "peer": f"transformers {importlib.metadata.version('transformers')}"
    }
    write_config(job.folder, job.plain, environment)
    described = job.plain | {"environment": environment}
    return Report(job.folder, job.config.logging, described, job.config.train.steps, attempt, started)


if __name__ == "__main__":
    main(sys.argv[1:])
    exit_at_once(0)
