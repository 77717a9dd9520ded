"""Pipeline schedules: what each rank computes, how long that takes by the papers' formulas, and what ranks send."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import pytest

from conf.compose import compose
from models.config import ConfigError, ModelConfig
from parallel.pipeline.action import Action, Cell, Op, Pair, Schedule, Transfer, actions_of
from parallel.pipeline.schedules import ScheduleName, build_schedule, check_schedule, forward_schedule
from parallel.pipeline.simulator import Costs, simulate
from parallel.pipeline.split import divide, split_layers, stage_shares
from parallel.pipeline.transfers import with_transfers

INTERLEAVED = (ScheduleName.interleaved_1f1b, ScheduleName.interleaved_zero_bubble)
ALL_COSTS = (Costs(), Costs(1.0, 1.25, 0.75), Costs(2.0, 3.0, 1.0))
"""F, I, W: equal, and two with the sorts of differences that real layers have."""


def every_schedule() -> list[Schedule]:
    """Of every name, over a grid of ranks and micro-batches: all that the rules let through."""
    found = []
    for name, ranks, micro_batches in product(ScheduleName, (1, 2, 3, 4, 6), (1, 2, 3, 4, 6, 8, 9, 12, 13)):
        for stages_per_rank in (None, 1, 2, 3) if name in INTERLEAVED else (None,):
            try:
                found.append(build_schedule(name, ranks, micro_batches, stages_per_rank))
            except ConfigError:
                continue
    return found


@pytest.fixture(scope="module")
def schedules() -> list[Schedule]:
    return every_schedule()


def test_the_grid_has_all_schedules(schedules: list[Schedule]) -> None:
    assert {schedule.name for schedule in schedules} == {name.value for name in ScheduleName}
    assert len(schedules) == 450, "counted by hand: the rules refuse no more than they must"


def test_a_rank_runs_every_micro_batch_once_in_each_of_its_stages(schedules: list[Schedule]) -> None:
    for schedule in schedules:
        assert sorted(rank for ranks in schedule.rank_of_stage for rank in ranks) == sorted(
            rank for rank in range(schedule.n_ranks) for _ in schedule.stages_of_rank(rank)
        )
        share = schedule.n_micro_batches // schedule.n_chains
        for rank, row in enumerate(schedule.rows):
            expected = [
                (*key, micro_batch)
                for key in schedule.stages_of_rank(rank)
                for micro_batch in range(key.chain * share, (key.chain + 1) * share)
            ]
            for ops in ((Op.forward,), (Op.backward, Op.input_backward), (Op.backward, Op.weight_backward)):
                did = [action[1:] for cell in row for action in actions_of(cell) if action.op in ops]
                assert sorted(did) == expected, (schedule.name, rank, ops)


def test_all_that_the_rules_let_through_can_be_run(schedules: list[Schedule]) -> None:
    for schedule in schedules:
        simulate(schedule, Costs(send=0.3))


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 3), (2, 5), (4, 4), (4, 11), (8, 8), (8, 32)])
@pytest.mark.parametrize("costs", ALL_COSTS)
def test_one_stage_a_rank_takes_as_long_as_the_papers_say(ranks: int, micro_batches: int, costs: Costs) -> None:
    forward, backward = costs.forward, costs.input + costs.weight
    work = micro_batches * (forward + backward)
    for name, in_flight in ((ScheduleName.one_f_one_b, ranks), (ScheduleName.gpipe, micro_batches)):
        simulation = simulate(build_schedule(name, ranks, micro_batches), costs)
        assert simulation.makespan == pytest.approx(work + (ranks - 1) * (forward + backward))
        if ranks > 1:  # gpipe on one rank has nobody to wait for, and is plain accumulation
            assert simulation.peak_in_flight[0] == min(in_flight, micro_batches)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (4, 16), (8, 32)])
def test_one_zero_bubble_stage_a_rank_is_zb_h1(ranks: int, micro_batches: int) -> None:
    simulation = simulate(build_schedule(ScheduleName.interleaved_zero_bubble, ranks, micro_batches, 1), Costs())
    assert simulation.makespan == micro_batches * 3 + (ranks - 1) * (1 + 2 - 2)  # F + B - 2W
    assert set(simulation.peak_in_flight) == {ranks}


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (4, 16), (8, 32)])
@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("costs", ALL_COSTS)
def test_interleaving_divides_the_bubble(ranks: int, micro_batches: int, stages: int, costs: Costs) -> None:
    simulation = simulate(build_schedule(ScheduleName.interleaved_1f1b, ranks, micro_batches, stages), costs)
    cell = costs.forward + costs.input + costs.weight  # of a stage, which is 1 / stages of the rank's part
    assert simulation.makespan == pytest.approx(micro_batches * stages * cell + (ranks - 1) * cell)
    # In whole ranks' parts it is ranks · (1 + (ranks - 1) / (ranks · stages)), as Megatron-LM says.
    assert simulation.peak_in_flight[0] == min(ranks * stages + ranks - 1, micro_batches * stages)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (3, 6), (4, 8), (4, 13), (8, 32)])
@pytest.mark.parametrize("costs", [*ALL_COSTS[:2], Costs(1.0, 2.0, 1.0), Costs(1.0, 1.0, 0.5)])
def test_zbv_waits_for_nothing_but_the_first_gradients(ranks: int, micro_batches: int, costs: Costs) -> None:
    simulation = simulate(build_schedule(ScheduleName.zbv, ranks, micro_batches), costs)
    # Of each rank's distance; seen with these costs, and no longer where W is much shorter than F.
    work = 2 * micro_batches * (costs.forward + costs.input + costs.weight)
    assert simulation.makespan == pytest.approx(work + (ranks - 1) * costs.input)
    assert set(simulation.peak_in_flight) == {2 * ranks}


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (4, 14), (6, 12), (8, 16), (8, 32)])
@pytest.mark.parametrize("costs", ALL_COSTS)
def test_dualpipe_takes_as_long_as_its_paper_says(ranks: int, micro_batches: int, costs: Costs) -> None:
    backward, pair = costs.input + costs.weight, costs.forward + costs.input + costs.weight
    bubble = pair + backward - 3 * costs.weight
    simulation = simulate(build_schedule(ScheduleName.dualpipe, ranks, micro_batches), costs)
    assert set(simulation.peak_in_flight) == {ranks + 1}
    in_v = simulate(build_schedule(ScheduleName.dualpipev, ranks, micro_batches), costs)
    assert set(in_v.peak_in_flight) == {2 * ranks + 1}
    over = simulation.makespan - micro_batches * pair
    over_in_v = in_v.makespan - 2 * micro_batches * pair
    if costs == Costs():
        assert over == pytest.approx((ranks // 2 - 1) * bubble)
        assert over_in_v == pytest.approx((ranks - 1) * bubble)
    else:  # exact where all costs are equal, a bound elsewhere
        assert 0 <= over <= (ranks // 2 - 1) * bubble + 1e-9
        assert 0 <= over_in_v <= (ranks - 1) * bubble + 1e-9


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (6, 14), (8, 20)])
def test_dualpipe_is_its_own_mirror_image(ranks: int, micro_batches: int) -> None:
    schedule = build_schedule(ScheduleName.dualpipe, ranks, micro_batches)
    half = micro_batches // 2

    def mirrored(cell: Cell) -> Cell:
        if isinstance(cell, Pair):
            return Pair(
                *(a._replace(chain=1 - a.chain, micro_batch=(a.micro_batch + half) % micro_batches) for a in cell)
            )
        return cell._replace(chain=1 - cell.chain, micro_batch=(cell.micro_batch + half) % micro_batches)

    assert schedule.rank_of_stage == (tuple(range(ranks)), tuple(reversed(range(ranks))))
    for rank, row in enumerate(schedule.rows):
        assert tuple(map(mirrored, row)) == schedule.rows[ranks - 1 - rank]
        pairs = [cell for cell in row if isinstance(cell, Pair)]
        assert pairs, "a schedule without pairs hides nothing"
        assert all(pair.forward.chain != pair.backward.chain for pair in pairs)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (3, 6), (4, 8), (4, 13), (6, 20)])
def test_dualpipev_is_the_upper_half_of_dualpipe(ranks: int, micro_batches: int) -> None:
    """Ours, written from DeepSeek's steps, against torch's: the second chain goes up instead of coming back down."""
    in_v = build_schedule(ScheduleName.dualpipev, ranks, micro_batches)
    both_ways = build_schedule(ScheduleName.dualpipe, 2 * ranks, 2 * micro_batches)

    def folded(action: Action) -> Action:
        stage = action.stage  # of chain 1 on rank r: 2·ranks - 1 - r, where the V comes back to r
        return Action(action.op, 0, stage, action.micro_batch % micro_batches)

    for rank in range(ranks):
        expected = [[folded(action) for action in actions_of(cell)] for cell in both_ways.rows[rank]]
        assert [list(actions_of(cell)) for cell in in_v.rows[rank]] == expected


def test_one_rank_accumulates_and_a_forward_schedule_goes_through_the_first_chain() -> None:
    for name in ScheduleName:
        (row,) = build_schedule(name, 1, 3).rows
        assert [(action.op.value, action.micro_batch) for action in row if isinstance(action, Action)] == [
            ("F", 0), ("B", 0), ("F", 1), ("B", 1), ("F", 2), ("B", 2)
        ]  # fmt: skip
    for name in (ScheduleName.dualpipe, ScheduleName.zbv, ScheduleName.interleaved_1f1b):
        trained = build_schedule(name, 4, 8)
        forward = forward_schedule(trained.rank_of_stage[0], 3)
        assert forward.n_stages == trained.n_stages
        assert not forward.splits_backward
        simulation = simulate(forward, Costs())
        assert sum(len(row) for row in simulation.spans) == 3 * forward.n_stages
        check_transfers(forward)


def test_only_schedules_with_weight_backwards_split_backward(schedules: list[Schedule]) -> None:
    whole = {"gpipe", "1f1b", "interleaved_1f1b"}
    for schedule in schedules:
        assert schedule.splits_backward == (schedule.name not in whole), schedule.name


def check_transfers(schedule: Schedule) -> None:
    """Every hand-over between ranks is sent once and received once, between what makes and what takes it; each pair of
    ranks names its messages in one order; and no rank hangs even if sends and receives both wait for each other."""
    rows = with_transfers(schedule)
    assert [tuple(item for item in row if not isinstance(item, Transfer)) for row in rows] == list(schedule.rows)
    n_messages = 0
    between: dict[tuple[int, int], list[tuple[object, ...]]] = {}
    for rank, row in enumerate(rows):
        place = {
            action: i for i, cell in enumerate(row) if not isinstance(cell, Transfer) for action in actions_of(cell)
        }
        for i, item in enumerate(row):
            if not isinstance(item, Transfer):
                continue
            send, gradient, chain, stage, micro_batch, peer = item
            between.setdefault((rank, peer), []).append((rank if send else peer, gradient, chain, stage, micro_batch))
            holders = schedule.rank_of_stage[chain]
            assert holders[stage] == (peer if send else rank)
            made_in = (stage + 1 if gradient else stage - 1) if send else stage
            assert holders[made_in] == rank
            ops = (Op.backward, Op.input_backward) if gradient else (Op.forward,)
            (at,) = [place[a] for op in ops if (a := Action(op, chain, made_in, micro_batch)) in place]
            assert at < i if send else i < at
            n_messages += send
    hand_overs = sum(a != b for ranks in schedule.rank_of_stage for a, b in pairwise(ranks))
    share = schedule.n_micro_batches // schedule.n_chains
    assert n_messages == hand_overs * share * (1 if schedule.name == "forward" else 2)
    for (rank, peer), order in between.items():
        assert rank != peer
        assert order == between[peer, rank]
        assert max(Counter(order).values()) == 1
    walk_with_blocking_messages(rows)


def walk_with_blocking_messages(rows: tuple[tuple[Cell | Transfer, ...], ...]) -> None:
    """Every message a rendezvous: a rank goes on only when its peer stands at the other end of the same one."""
    at = [0] * len(rows)
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row):
                item = row[at[rank]]
                if isinstance(item, Transfer):
                    peer_row = rows[item.peer]
                    other = peer_row[at[item.peer]] if at[item.peer] < len(peer_row) else None
                    if other != item._replace(send=not item.send, peer=rank):
                        break
                    at[item.peer] += 1
                at[rank] += 1
                moved = True
    assert at == [len(row) for row in rows], "ranks hang"


def test_messages_match_and_cannot_hang(schedules: list[Schedule]) -> None:
    for schedule in schedules:
        check_transfers(schedule)


@pytest.mark.parametrize(
    ("name", "ranks", "micro_batches", "stages_per_rank", "said"),
    [
        ("1f1b", 0, 4, None, "strategy.pp=0: set it to at least 1"),
        ("1f1b", 2, 0, None, "0 micro-batches: a step has at least 1; set train.micro_batch_size lower"),
        ("gpipe", 4, 4, 2, "strategy.stages_per_rank=2: strategy.schedule=gpipe has 1; set it to null"),
        ("zbv", 4, 4, 1, "strategy.stages_per_rank=1: strategy.schedule=zbv has 2; set it to null"),
        ("interleaved_1f1b", 4, 4, 1, "strategy.stages_per_rank=1: strategy.schedule=interleaved_1f1b takes 2 or more"),
        ("interleaved_zero_bubble", 4, 4, 0, "strategy.stages_per_rank=0: strategy.schedule=interleaved_zero_bubble "),
        (
            "interleaved_1f1b",
            4,
            9,
            None,
            "strategy.pp=4 ranks takes multiples of 4 micro-batches, and not 9: set ",
        ),
        ("dualpipe", 3, 8, None, "strategy.pp=3 ranks: it pairs ranks; set strategy.pp to an even number"),
        (
            "dualpipe",
            4,
            9,
            None,
            "takes an even number of micro-batches, at least 8, and not 9: set train.",
        ),
        (
            "dualpipe",
            4,
            6,
            None,
            "takes an even number of micro-batches, at least 8, and not 6: set train.",
        ),
        ("dualpipev", 4, 7, None, "takes at least 8 micro-batches, and not 7: set train.micro_batch_size"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    name: str, ranks: int, micro_batches: int, stages_per_rank: int | None, said: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_schedule(ScheduleName(name), ranks, micro_batches, stages_per_rank)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def largest(costs: list[float], parts: tuple[range, ...]) -> float:
    return max(sum(costs[i] for i in part) for part in parts)


def test_the_slowest_stage_is_as_fast_as_can_be() -> None:
    for costs in ([1.0] * 7, [5.0, 1, 1, 1, 1, 1, 6], [1.0, 9, 1, 1, 2, 4, 3, 1]):
        for n_parts in range(1, len(costs) + 1):
            cuts = [c for c in product(range(1, len(costs)), repeat=n_parts - 1) if list(c) == sorted(set(c))]
            options = [tuple(map(range, (0, *cut), (*cut, len(costs)))) for cut in cuts]
            parts = divide(costs, n_parts)
            assert parts in options
            assert largest(costs, parts) == min(largest(costs, option) for option in options)


def test_stages_are_as_large_as_their_flops() -> None:
    """Of moe_5b cut to 5 layers: a dense layer and one of experts, two of experts alone, one with the head."""
    model = compose(["model=moe_5b", "model.n_layers=5"]).config.model
    assert stage_shares(model, 4, 4096) == pytest.approx((1.389, 0.702, 0.702, 1.206), abs=1e-3)
    assert sum(stage_shares(model, 2, 4096)) == pytest.approx(2)


def test_layers_are_weighed_by_their_flops() -> None:
    # A dense layer in front that costs as much as three of the six with experts, and a head as much as two.
    model = ModelConfig(n_layers=7, n_dense_layers=1, dense_dim=1024, vocab_size=2000)
    assert split_layers(model, 3, 128) == (range(1), range(1, 5), range(5, 7))
    # One that costs more than all others together: these are shared out evenly, with the head.
    heavy = replace(model, dense_dim=8192, n_layers=9)
    assert split_layers(heavy, 3, 128) == (range(1), range(1, 6), range(6, 9))
    assert split_layers(ModelConfig(n_layers=4), 4, 64) == (range(1), range(1, 2), range(2, 3), range(3, 4))
    with pytest.raises(ConfigError, match=r"^model\.n_layers=4 .* 5 stages: set strategy\.pp or strategy\.sta"):
        split_layers(ModelConfig(n_layers=4), 5, 64)
