"""A step's and an evaluation's numbers against the model asked directly, in one process."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from harness.layout_run import DOCUMENTS, MODEL_ALL_OPTIONS, Layout, lay_out
from harness.worker_pool import WorkerPool
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.config import ModelConfig
from models.transformer import Transformer
from models.whole_vocabulary import IGNORED
from parallel.comm import Communicator
from parallel.native_engine import NativeEngine
from parallel.parallelize import ParallelModel
from parallel.world import World
from train.config import OptimConfig
from train.data.stream import InOrder
from train.data.windows import TokenWindows
from train.evaluate import evaluate
from train.optimizer import build_optimizer
from train.step import OptimizerStep

END = DOCUMENTS.separator
S = MODEL_ALL_OPTIONS.max_sequence_length


def build(model: ModelConfig, micro_batch_size: int | None = None) -> ParallelModel:
    world = World(0, 1, torch.device("cpu"))
    parallel, _ = lay_out(Layout(model=model, micro_batch_size=micro_batch_size), world, Communicator())
    return parallel


def whole_model(parallel: ParallelModel) -> Transformer:
    (stage,) = parallel.stages.values()
    return stage


def build_step(parallel: ParallelModel, n_sequences: int, clip_norm: float | None) -> OptimizerStep:
    engine = NativeEngine(parallel, partial(build_optimizer, optim=OptimConfig()), Communicator(), torch.float64)
    return OptimizerStep(engine, Communicator(), DOCUMENTS, n_sequences, clip_norm)


def evaluate_all(parallel: ParallelModel, heldout: InOrder, n_sequences: int) -> float:
    engine = build_step(parallel, n_sequences, None).engine
    comm, cpu = Communicator(), torch.device("cpu")
    return evaluate(engine, heldout, DOCUMENTS, n_sequences, 4, comm, cpu)


def samples(*shape: int) -> Tensor:
    return torch.randint(0, MODEL_ALL_OPTIONS.vocab_size, (*shape, S + 1), generator=torch.Generator().manual_seed(0))


def objective(parallel: ParallelModel, tokens_MBS: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all targets, and the routers' part as a mean over all tokens."""
    batches = [DOCUMENTS(tokens_BS) for tokens_BS in tokens_MBS]
    terms = [whole_model(parallel)(*batch) for batch in batches]
    n_targets = sum((batch.targets_BS != IGNORED).sum() for batch in batches)
    n_tokens = tokens_MBS[..., 1:].numel()
    assert n_targets < n_tokens
    return sum(t.cross_entropy_sum for t in terms) / n_targets, sum(t.router_loss_sum for t in terms) / n_tokens


def check_step() -> None:
    parallel, tokens_MBS = build(MODEL_ALL_OPTIONS, micro_batch_size=4), samples(2, 4)
    loss, router_loss = objective(parallel, tokens_MBS)
    names, parameters = zip(*whole_model(parallel).named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss + router_loss, parameters)
    whole_model(parallel).take_routing()
    result = build_step(parallel, 8, None)(tokens_MBS, rate=0.0)
    torch.testing.assert_close(result.loss, loss, rtol=0, atol=1e-13)
    torch.testing.assert_close(result.router_loss, router_loss, rtol=0, atol=1e-13)
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-13, msg=name)
    # The bias follows what was chosen, not what capacity left of it.
    assert result.routing.dropped_LE.sum() > 0
    routers = [block.attention.router for block in whole_model(parallel).layers.values() if block.attention.router]
    for router, chosen_E in zip(routers, result.routing.chosen_LE, strict=True):
        expected_E = MODEL_ALL_OPTIONS.moe.bias_update_rate * torch.sign(chosen_E.mean() - chosen_E)
        torch.testing.assert_close(router.expert_bias_E, expected_E, rtol=0, atol=1e-15)


def check_router_losses_of_all_layers() -> None:
    tokens_BS = samples(4)
    whole = whole_model(build(MODEL_ALL_OPTIONS))
    by_layer = []
    for name, block in whole.layers.items():
        block.register_forward_hook(lambda module, args, output, name=name: by_layer.append((name, output[1])))
    total = whole(*DOCUMENTS(tokens_BS)).router_loss_sum
    parts = {name: loss for name, loss in by_layer if loss is not None}
    assert list(parts) == ["1", "2"]  # layer 0 is dense
    torch.testing.assert_close(total, sum(parts.values()), rtol=1e-15, atol=0)


def check_evaluation() -> None:
    parallel, tokens_BS = build(MODEL_ALL_OPTIONS), samples(8)
    heldout = InOrder(TokenWindows([row.numpy() for row in tokens_BS], S, MODEL_ALL_OPTIONS.vocab_size, "these"))
    got = evaluate_all(parallel, heldout, 8)
    loss, _ = objective(parallel, tokens_BS.unsqueeze(0))
    assert got == pytest.approx(loss.item(), abs=1e-13)


def check_nothing_to_learn() -> None:
    parallel = build(replace(MODEL_ALL_OPTIONS, moe=replace(MODEL_ALL_OPTIONS.moe, z_loss_weight=0.0)))
    tokens_MBS = torch.full((1, 4, S + 1), END)
    result = build_step(parallel, 4, 1.0)(tokens_MBS, rate=0.0)
    assert result.loss.item() == 0.0
    assert result.grad_norm.isfinite()
    heldout = InOrder(TokenWindows([tokens_MBS[0, 0].numpy()], S, MODEL_ALL_OPTIONS.vocab_size, "these"))
    assert evaluate_all(parallel, heldout, 4) == 0.0


class Constants(TorchDispatchMode):
    """Counts numbers of the host that are made tensors: `x[0] = 1` too. On a GPU each is a copy from pageable memory,
    and a wait for all that the device has to do."""

    n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += function.overloadpacket is torch.ops.aten.lift_fresh
        return function(*args, **(kwargs or {}))


def check_no_number_is_copied_from_the_host() -> None:
    step, tokens_MBS = build_step(build(MODEL_ALL_OPTIONS, micro_batch_size=4), 8, 1.0), samples(2, 4)
    step(tokens_MBS, rate=0.1)
    with Constants() as constants:
        step(tokens_MBS, rate=0.1)
    assert constants.n == 0


@pytest.mark.parametrize(
    "check",
    [
        check_no_number_is_copied_from_the_host,
        check_step,
        check_router_losses_of_all_layers,
        check_evaluation,
        check_nothing_to_learn,
    ],
)
def test_in_one_process(check, pool: WorkerPool) -> None:
    pool.run(1, check)
