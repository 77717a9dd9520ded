"""What ran between a collective's start and its wait, on traces made by hand and of a step on two gloo ranks."""

import gzip
import json
from pathlib import Path

import pytest

from train.trace.chrome import ONE_PASS, Range, Trace, read_trace
from train.trace.issue_order import Begun, issue_order, updates_behind_backward

HOST, AUTOGRAD = (1, 1), (1, 2)


def trace(work: list[tuple[int, int]], *ranges: tuple[str, int, int]) -> Trace:
    return Trace(
        ranges=[Range("phase/compute_bwd", HOST, 0, 100), *(Range(name, HOST, b, e) for name, b, e in ranges)],
        work=[Range("aten::mm", AUTOGRAD, begin, end) for begin, end in work],
    )


def test_what_ran_between_start_and_wait_counts() -> None:
    began = trace(
        [(2, 8), (15, 20), (30, 40), (50, 55)],
        ("comm/dp/all_reduce#1", 10, 14),
        ("comm/dp/all_reduce#2", 22, 24),
        ("wait/dp/all_reduce#1", 42, 45),
        ("over/dp/all_reduce#2", 60, 61),
        ("comm/control/all_reduce#3", 70, 71),
        ("wait/control/all_reduce#3", 71, 75),
    )
    assert issue_order(began) == [
        Begun("dp", "all_reduce", after=1, between=2),
        Begun("dp", "all_reduce", after=2, between=2),
        Begun("control", "all_reduce", after=4, between=0),
    ]


def test_waits_in_another_order_are_those_of_their_own_starts() -> None:
    crossed = trace(
        [(20, 30)],
        ("comm/ep/all_to_all#1", 0, 10),
        ("comm/ep/all_to_all#2", 40, 50),
        ("wait/ep/all_to_all#2", 50, 60),
        ("wait/ep/all_to_all#1", 60, 70),
    )
    assert [begun.between for begun in issue_order(crossed)] == [1, 0]


def test_what_runs_while_it_is_issued_or_waited_for_is_not_between() -> None:
    """On another thread, that is: on its own nothing can."""
    beside = trace([(5, 12), (15, 25), (8, 30)], ("comm/tp/all_gather#1", 0, 10), ("wait/tp/all_gather#1", 20, 40))
    assert [begun.between for begun in issue_order(beside)] == [0]


def test_a_collective_that_returns_when_it_is_done_tells_when_it_was_issued() -> None:
    fsdp = trace(
        [(10, 20), (40, 50)],
        ("comm/fsdp/all_gather", 0, 5),
        ("wait/fsdp/all_gather", 1, 4),
        ("comm/fsdp/all_gather", 30, 35),
        ("wait/fsdp/all_gather", 31, 34),
    )
    assert issue_order(fsdp) == [Begun("fsdp", "all_gather", 0, None), Begun("fsdp", "all_gather", 1, None)]


def test_what_is_in_no_step_is_left_out() -> None:
    late = trace([(10, 20)], ("comm/control/all_reduce#9", 100, 101), ("comm/dp/all_reduce#8", 90, 91))
    assert issue_order(late) == [Begun("dp", "all_reduce", 1, None)]
    assert issue_order(Trace()) == []


def test_an_update_hides_only_where_a_product_is_still_to_come() -> None:
    """The last of four is in backward's phase and has none after it."""
    names = [
        "aten::mm",
        "aten::addcdiv_",
        "aten::_fused_adamw_",
        "aten::_foreach_addcdiv_",
        "aten::mm",
        "aten::addcdiv_",
    ]
    work = [Range(name, HOST, 10 * i, 10 * i + 5) for i, name in enumerate(names)]
    step = Trace(ranges=[Range("phase/compute_bwd", HOST, 0, 100)], work=work)
    assert updates_behind_backward(step) == (3, 4)
    assert updates_behind_backward(Trace()) == (0, 0)


@pytest.mark.parametrize(
    ("operator", "counts"),
    [
        ("aten::mm", True),
        ("aten::_grouped_mm", True),
        ("switchyard::grouped_product", True),
        ("switchyard::grouped_weight_gradient", True),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", True),
        ("aten::addcdiv_", True),
        ("aten::_fused_adamw_", True),
        (ONE_PASS, True),
        ("aten::matmul", False),  # holds an mm or bmm
        ("aten::mul", False),
        ("aten::copy_", False),
        ("aten::index_select", False),
    ],
)
def test_work_is_what_is_worth_hiding_behind(operator: str, counts: bool, tmp_path: Path) -> None:
    # What one_pass names is no operator, but a range that is entered.
    category = "user_annotation" if operator == ONE_PASS else "cpu_op"
    event = {"ph": "X", "cat": category, "name": operator, "pid": 1, "tid": 1, "ts": 1, "dur": 2}
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [event]}).encode()))
    assert [each.name for each in read_trace(path).work] == [operator] * counts
