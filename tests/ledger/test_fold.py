"""The books of ledgers made by hand, to the second: what each rank-second went to, and what stays of the steps."""

from pathlib import Path

import pytest
from harness.ledger_builder import WALL, Rank, S, books_of, rank_seconds

from train.ledger.books import Books
from train.ledger.fold import fold
from train.ledger.read import read_ledger


def begun(run: Path, attempt: int, at: float = 0, rank: int = 0, after: int = 0, **fields: object) -> Rank:
    """A rank that is ready to step 5 s after `at`: one each of init_process, init_dist, init_model, ckpt_load, more."""
    passed_over = fields.pop("passed_over", [])
    one = Rank(run, attempt, rank).start(at, at + 1, at + 2, **fields)
    one.tile(init_model=1).tile(ckpt_load=1).event("resumed", step=after, passed_over=passed_over)
    return one.tile(init_model=1)


START_UP = {"init_process": 1, "init_dist": 1, "init_model": 2, "ckpt_load": 1}


def times(n: int, **more: float) -> dict[str, float]:
    """The start-up of `n` rank-attempts, and more."""
    return {name: n * s for name, s in START_UP.items()} | more


def saved(rank: Rank, step: int, took: float = 1) -> Rank:
    """A save that held up training and was committed as it ended."""
    return rank.event("saving", step=step).tile(ckpt_save=took).committed(step)


def check(books: Books, expected: dict[str, float]) -> None:
    assert rank_seconds(books) == pytest.approx(expected)
    assert sum(books.buckets.values()) == books.total  # to the nanosecond


def test_a_job_that_ended_well(tmp_path: Path) -> None:
    for rank in range(2):
        one = begun(tmp_path, 1, rank=rank, ranks=2).steps(
            1, 1, 1, 1, 1, compute_fwd=1, compute_bwd=1.5, exposed_comm__dp=1, data_wait=0.5, log=0.25, wall=4.5
        )
        one.tile(eval=2)
        saved(one, 4).exit("finished").gone(one.now + 0.5)
    books = books_of(tmp_path)
    parts = {"compute_fwd": 2, "compute_bwd": 3, "exposed_comm/dp": 2, "data_wait": 1, "log": 0.5, "other": 0.5}
    check(books, times(2, **parts, eval=4, ckpt_save=2, shutdown=1))
    assert (books.total, books.wall_ns) == (26 * S, 13 * S)
    assert books.ettr == books.ettr_optimistic == books.ettr_without_queue == pytest.approx(8 / 26)
    assert books.compute_fraction == pytest.approx(5 / 26)
    assert books.tokens_per_sec == pytest.approx(400 / 13)
    # A step's FLOPs take 0.5 rank-seconds at peak.
    assert books.speed_of_light == pytest.approx(4 * 0.5 / 26)
    assert books.mfu_in_step == pytest.approx(4 * 0.5 / 8)
    assert (books.attempts[0].cause, books.durable_step, books.attempts[0].lost_steps) == ("finished", 4, 0)
    assert books.other_fraction == pytest.approx(0.5 / 26)
    assert "other is 1.9%" in books.alarms[0]


def test_a_crash_takes_back_what_was_not_saved(tmp_path: Path) -> None:
    """Killed at 14 in step 9, seen at 14.5 by its watcher; the other rank is left until 20. Down until 26."""
    for rank, gone in ((0, 20.0), (1, 14.5)):
        one = begun(tmp_path, 1, rank=rank, ranks=2).steps(1, 1, 1, 1)
        saved(one, 3).steps(4, 1, 1).gone(gone, "compute_bwd", 6, 12)
    for rank in range(2):
        one = begun(tmp_path, 2, 26, rank=rank, ranks=2, after=3).steps(4, 1, 1, 1)
        saved(one, 6).exit("finished")
    books = books_of(tmp_path)
    # 2 steps and the partial one until 14.5, on both; then one rank is there and neither gets on.
    check(
        books, times(4, **{"lost_work/crash": 2 * 2 + 2 * 3.5, "detect": 2 * 5.5, "down": 12}) | times_of_steps(12, 4)
    )
    first, second = books.attempts
    assert (first.cause, first.ended_by, first.lost_steps, first.first_step, first.last_step) == ("crash", 1, 2, 1, 5)
    assert (second.resumed_after, second.down_ns, second.begin_ns) == (3, 6 * S, 26 * S)
    assert books.causes == {"crash": 11 * S}
    assert books.counted_tokens == books.standing_tokens == 600
    assert books.wall_ns == 35 * S


def times_of_steps(steps: float, saves: float = 0) -> dict[str, float]:
    return {"compute_fwd": steps} | ({"ckpt_save": saves} if saves else {})


def test_steps_of_a_dead_job_that_were_not_saved_are_lost_before_it_goes_on(tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 1, 1)
    saved(one, 2).steps(3, 1).gone(10, "compute_fwd", 4, 9)
    books = books_of(tmp_path)
    check(books, times(1, **{"lost_work/crash": 2}) | times_of_steps(2, 1))
    assert (books.goes_on, books.durable_step, books.standing_steps) == (False, 2, 2)
    # The commit was made, and its line was not: the next start knows better.
    begun(tmp_path, 2, 20, after=3)
    assert rank_seconds(books_of(tmp_path))["lost_work/crash"] == 1


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("eval", {"lost_work/crash": 1, "eval": 2}),
        ("ckpt_save", {"lost_work/crash": 1, "ckpt_save": 2}),
        ("log", {"lost_work/crash": 1, "log": 2}),
        ("compute_opt", {"lost_work/crash": 3}),
        ("ckpt_load", {"lost_work/crash": 1, "ckpt_load": 3}),  # of a rollback
    ],
)
def test_a_death_is_in_the_phase_of_the_last_beat(phase: str, expected: dict[str, float], tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 1, 1)
    one.committed(2).gone(10, phase, 3, 8)
    expected = times(1) | expected | {"compute_fwd": 2}
    check(books_of(tmp_path), expected)


def test_a_death_at_the_start(tmp_path: Path) -> None:
    """Of three ranks one dies while it loads, one while it builds, and one left nothing at all."""
    Rank(tmp_path, 1, 0).start(0, 1, 2, ranks=3).tile(init_model=1).gone(9, "ckpt_load", 0, 3)
    Rank(tmp_path, 1, 1).start(0, 1, 2, ranks=3).gone(7, "init_model", 0, 2)
    check(
        books_of(tmp_path),
        {"init_process": 2 + 9, "init_dist": 2, "init_model": 1 + 5, "ckpt_load": 4, "detect": 4},
    )


def test_without_a_watcher_what_a_rank_had_done_tells_what_it_was_at(tmp_path: Path) -> None:
    Rank(tmp_path, 1).start(0, 1, 2).tile(init_model=1).exit("failed", 6)
    Rank(tmp_path, 2).start(6, 7, 8).exit("failed", 10)
    begun(tmp_path, 3, 10).exit("failed", 17)
    parts = {"init_process": 3, "init_dist": 3, "init_model": 1 + 2 + 2, "ckpt_load": 3 + 1, "lost_work/crash": 2}
    check(books_of(tmp_path), parts)


def test_a_hang_is_over_when_the_last_rank_stopped(tmp_path: Path) -> None:
    """Rank 1 stands still from 8, rank 0 waits for it from 9; both are killed at 70."""
    for rank, beat in ((0, 9.0), (1, 8.0)):
        one = begun(tmp_path, 1, rank=rank, ranks=2).steps(1, 1, 1)
        one.hang(69 + rank, "compute_fwd", 3, beat).gone(71, "compute_fwd", 3, beat)
    begun(tmp_path, 2, 80, ranks=2)
    begun(tmp_path, 2, 80, rank=1, ranks=2).exit("failed")
    books = books_of(tmp_path)
    check(books, times(4, **{"lost_work/hang": 2 * 4, "detect": 2 * 62, "down": 18}))
    assert books.attempts[0].cause == "hang"


def test_a_crash_stays_a_crash_if_its_peers_hang_on_it(tmp_path: Path) -> None:
    begun(tmp_path, 1, ranks=2).steps(1, 1).hang(70, "compute_fwd", 2, 6)
    begun(tmp_path, 1, rank=1, ranks=2).steps(1, 1).gone(8, "compute_fwd", 2, 6)
    books = books_of(tmp_path)
    check(books, times(2, **{"lost_work/crash": 2 + 2 * 2, "detect": 2 * 62}))
    assert (books.attempts[0].cause, books.attempts[0].ended_by) == ("crash", 1)


def test_a_preempted_job_whose_time_to_end_ran_out(tmp_path: Path) -> None:
    """No stop was agreed: what it was at is lost, as in a crash; but it is no failure."""
    one = begun(tmp_path, 1).steps(1, 1, 1)
    one.committed(2).event("exit", 10, cause="preempted", code=143).gone(10.5, "compute_fwd", 3, 9)
    books = books_of(tmp_path)
    check(books, times(1, **{"lost_work/preempt": 3, "detect": 0.5, "compute_fwd": 2}))
    assert (books.advice.failures, books.advice.preemptions) == (0, 1)


def test_a_stop_whose_save_did_not_end_in_time(tmp_path: Path) -> None:
    """All had agreed; the last words came when the time ran out."""
    one = begun(tmp_path, 1).steps(1, 1, 1)
    one.committed(2).steps(3, 1).event("stop", cause="preempted").event("saving", step=3)
    one.event("exit", 30, cause="preempted", code=143).gone(30.5, "ckpt_save", 3, 8)
    books = books_of(tmp_path)
    check(books, times(1, **{"lost_work/preempt": 1, "ckpt_save": 22, "detect": 0.5, "compute_fwd": 2}))
    assert books.attempts[0].ended_by == 0


def test_a_rank_without_a_file_is_noted(tmp_path: Path) -> None:
    begun(tmp_path, 1, ranks=4).exit("finished")
    begun(tmp_path, 1, rank=2, ranks=4).exit("finished")
    books = books_of(tmp_path)
    assert books.notes == ("attempt 1 has no start of rank 1, 3: all of its time there counts as init_process",)
    assert rank_seconds(books)["init_process"] == 2 + 2 * 5


def test_a_failure_at_the_start_whose_end_was_orderly(tmp_path: Path) -> None:
    """The last beat is its shutdown; it was building before, and that is no lost step."""
    Rank(tmp_path, 1).start(0, 1, 2).exit("failed", 6).gone(7, "shutdown", 0, 5)
    check(books_of(tmp_path), {"init_process": 1, "init_dist": 1, "init_model": 3, "shutdown": 1, "detect": 1})


def test_that_peers_went_away_is_no_cause(tmp_path: Path) -> None:
    begun(tmp_path, 1, ranks=2).exit("lost_peers", 6)
    begun(tmp_path, 1, rank=1, ranks=2).gone(7, "compute_fwd", 1, 5)
    assert books_of(tmp_path).attempts[0].ended_by == 1


def test_a_lost_host_is_waited_for_and_no_work_is_lost_meanwhile(tmp_path: Path) -> None:
    """Rank 1's host goes away at 8; rank 0's collective gives up at 609, and torchrun kills rank 2 at 640."""
    begun(tmp_path, 1, ranks=3).steps(1, 1).exit("lost_peers", 609).gone(610, "compute_bwd", 2, 8)
    begun(tmp_path, 1, rank=1, ranks=3).steps(1, 1)
    begun(tmp_path, 1, rank=2, ranks=3).steps(1, 1).gone(640, "compute_bwd", 2, 7.5)
    books = books_of(tmp_path)
    check(books, times(3, **{"lost_work/crash": 3 * (1 + 2), "detect": 3 * 632}))
    assert books.attempts[0].cause == "crash"


def test_a_hang_that_a_collective_gave_up_on_stays_a_hang(tmp_path: Path) -> None:
    begun(tmp_path, 1, ranks=2).steps(1, 1).exit("lost_peers", 609).gone(610, "compute_bwd", 2, 8)
    begun(tmp_path, 1, rank=1, ranks=2).steps(1, 1).hang(640, "compute_fwd", 2, 7).gone(641, "compute_fwd", 2, 7)
    books = books_of(tmp_path)
    check(books, times(2, **{"lost_work/hang": 2 * (1 + 1), "detect": 2 * 634}))
    assert books.attempts[0].cause == "hang"


def test_an_end_that_nothing_saw(tmp_path: Path) -> None:
    """Its host went away: its time ends with its last line, and what follows is down. The newest may go on."""
    begun(tmp_path, 1).steps(1, 1, 1)
    assert books_of(tmp_path).goes_on
    begun(tmp_path, 2, 30)
    books = books_of(tmp_path)
    check(books, times(2, **{"lost_work/crash": 2, "down": 23}))
    assert [one.cause for one in books.attempts] == ["vanished", None]


def test_the_launchers_stamp_counts_once(tmp_path: Path) -> None:
    """torchrun starts the ranks again after a crash, and they inherit the stamp of the first time."""
    begun(tmp_path, 1, launched=-3).steps(1, 1).gone(6, "log", 1, 6)
    begun(tmp_path, 2, 8, launched=-3).exit("finished")
    begun(tmp_path, 3, 20, launched=17).exit("finished")
    books = books_of(tmp_path)
    check(books, times(3, **{"lost_work/crash": 1}) | {"init_process": 3 + 3 + 3, "down": 2 + 4})
    assert [one.begin_ns // S for one in books.attempts] == [0, 11, 20]


def test_the_launchers_stamp_counts_once_though_rank_0_moved(tmp_path: Path) -> None:
    """Both hosts' launchers began at -3; after the restart rank 0 is where rank 1 was, whose clock shows 500 s more."""
    begun(tmp_path, 1, ranks=2, launched=-3).exit("preempted", 6)
    begun(tmp_path, 1, 500, rank=1, ranks=2, boot="boot-b", launched=497).exit("preempted", 506)
    begun(tmp_path, 2, 508, boot="boot-b", launched=497, ranks=1).exit("finished")
    books = books_of(tmp_path)
    check(books, times(3, shutdown=2, down=2) | {"init_process": 3 + 6})
    assert not books.notes


def test_gaps_across_boots_are_by_the_wall_clock(tmp_path: Path) -> None:
    begun(tmp_path, 1).exit("preempted", 6)
    begun(tmp_path, 2, 0, boot="boot-b", wall=100).exit("preempted", 6)  # its clock began 100 s later
    begun(tmp_path, 3, 0, boot="boot-c", wall=50).exit("finished", 6)  # and this one's wall clock was set back
    books = books_of(tmp_path)
    check(books, times(3, shutdown=3, down=94))
    assert "attempt 3 began 56.0 s before attempt 2 ended" in books.notes[0]


def test_setting_the_wall_clock_changes_nothing_on_one_boot(tmp_path: Path) -> None:
    begun(tmp_path, 1).exit("preempted", 6)
    begun(tmp_path, 2, 10, wall=-5000).exit("finished", 16)
    books = books_of(tmp_path)
    check(books, times(2, shutdown=2, down=4))
    assert not books.notes


def test_hosts_are_put_beside_each_other_where_all_had_joined(tmp_path: Path) -> None:
    """Rank 1's host booted 1000 s earlier, and its wall clock is 7 s wrong."""
    begun(tmp_path, 1, ranks=2).exit("preempted", 6)
    begun(tmp_path, 1, 1000, rank=1, ranks=2, boot="boot-b", wall=-1007).exit("preempted", 1008).gone(1009)
    # The next start has ranks 0 on the host that was rank 1's: the gap is by that host's own clock.
    begun(tmp_path, 2, 1019, boot="boot-b", wall=-1007, ranks=1).exit("finished")
    books = books_of(tmp_path)
    check(books, times(3, shutdown=4 + 4, down=10))


def test_what_was_queued(tmp_path: Path) -> None:
    """Waited 40 s for its first start; cut off at 6; queued again at 10; started at 30."""
    begun(tmp_path, 1, submitted=WALL - 40 * S).exit("preempted", 6)
    begun(tmp_path, 2, 30, submitted=WALL + 10 * S).steps(1, 1, 1).exit("preempted")
    begun(tmp_path, 3, 40, submitted=WALL + 10 * S, after=2).exit("finished")  # started again within one allocation
    books = books_of(tmp_path)
    check(books, times(3, queue=40 + 20, down=4 + 3, shutdown=1, compute_fwd=2))
    assert books.wall_ns == (40 + 45) * S
    assert books.ettr == pytest.approx(2 / 85)
    assert books.ettr_without_queue == pytest.approx(2 / 25)


def test_two_attempts_alive_at_once_are_both_counted(tmp_path: Path) -> None:
    """The newer one began at 10 and fenced the older one, which had gone on until 14: no time is between them."""
    one = begun(tmp_path, 1).steps(1, 1, 1)
    one.committed(2).steps(3, 2, 2, 2).exit("fenced", 14)
    begun(tmp_path, 2, 10, after=2).steps(3, 1, 1).exit("finished")
    books = books_of(tmp_path)
    check(books, times(2, **{"lost_work/fenced": 7}) | {"compute_fwd": 4})
    assert (books.total, books.wall_ns) == (21 * S, 17 * S)
    assert "attempt 2 began 4.0 s before the end of an earlier one" in books.notes[0]


def test_a_damaged_checkpoint_is_the_cause_of_what_it_would_have_kept(tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 1, 1)
    saved(one, 2).steps(3, 1, 1)
    saved(one, 4).steps(5, 1, 1).gone(14, "log", 6, 13)
    begun(tmp_path, 2, 14, after=2, passed_over=[4])
    books = books_of(tmp_path)
    check(books, times(2, **{"lost_work/ckpt_corrupt": 2, "lost_work/crash": 2, "log": 1}) | times_of_steps(2, 2))
    assert (books.durable_step, books.attempts[0].lost_steps) == (2, 4)


def test_a_rollback_takes_back_its_own_steps_and_what_it_passes_of_earlier_ones(tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 1, 1)
    saved(one, 2).steps(3, 1, 1)
    saved(one, 4).exit("preempted")
    one = begun(tmp_path, 2, one.now, after=4).steps(5, 1, 1)
    saved(one, 6).steps(7, 1, 1).event("rollback", step=2, cause="nan").tile(ckpt_load=1).steps(3, 1, 1)
    books = books_of(tmp_path)
    check(books, times(2, **{"lost_work/nan": 6}) | times_of_steps(4, 3) | {"ckpt_load": 3})
    assert (books.durable_step, books.standing_steps) == (2, 4)
    assert [attempt.lost_steps for attempt in books.attempts] == [2, 4]


def test_a_rollback_that_passes_over_a_damaged_checkpoint(tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 1, 1)
    saved(one, 2).steps(3, 1, 1)
    saved(one, 4).steps(5, 1, 1).event("rollback", step=2, cause="non_finite", passed_over=[4]).steps(3, 1, 1)
    books = books_of(tmp_path)
    check(books, times(1, **{"lost_work/ckpt_corrupt": 2, "lost_work/nan": 2}) | times_of_steps(4, 2))


def test_steps_that_a_finished_job_took_back_are_none_of_its_last(tmp_path: Path) -> None:
    """Rolled back from 8 to 2, and finished at 6 with its newest save at 4."""
    one = saved(begun(tmp_path, 1).steps(1, 1, 1), 2).steps(3, 1, 1, 1, 1, 1, 1)
    one.event("rollback", step=2, cause="nan").steps(3, 1, 1)
    saved(one, 4).steps(5, 1, 1).exit("finished")
    books = books_of(tmp_path)
    assert (books.counted_step, books.durable_step, books.counted_tokens) == (6, 4, 600)
    assert (books.ettr, books.ettr_durable) == (pytest.approx(6 / 19), pytest.approx(4 / 19))


@pytest.mark.parametrize("last_word", ["finished", "stopped", "diverged"])
def test_books_about_to_end_are_those_of_the_end(last_word: str, tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 1, 1).committed(2).steps(3, 1, 1)
    if last_word == "stopped":
        one.event("stop", cause="stopped")
    before = fold(read_ledger(tmp_path), round(10 * S), last_word)
    one.event("exit", 10, cause=last_word, code=0)
    assert before.ettr == pytest.approx((4 if last_word == "finished" else 2) / 10)
    after = books_of(tmp_path)
    assert (before.buckets, before.ettr, before.counted_step) == (after.buckets, after.ettr, after.counted_step)


def test_a_rollback_that_rank_0_alone_wrote_counts_on_every_rank(tmp_path: Path) -> None:
    for rank in range(2):
        one = begun(tmp_path, 1, rank=rank, ranks=2).steps(1, 1, 1)
        if rank == 0:
            one.event("rollback", 7, step=1, cause="non_finite")
        one.steps(2, 1)
    assert rank_seconds(books_of(tmp_path)) == times(2, **{"lost_work/nan": 2, "compute_fwd": 4})


def test_skipped_updates_are_no_tokens(tmp_path: Path) -> None:
    """They are written while their steps run; a step that was done twice was skipped once."""
    one = begun(tmp_path, 1)
    begin = one.now
    one.event("skipped", begin + 1.5, step=2).now = begin
    one.steps(1, 1, 1, 2)
    one.event("rollback", step=1, cause="nan")
    one.steps(2, 1, 1)
    one.event("skipped", step=3).exit("finished")
    books = books_of(tmp_path)
    check(books, times(1, **{"lost_work/nan": 3, "skipped_update": 1, "compute_fwd": 2}))
    assert books.counted_tokens == 200


def test_warm_up_is_the_excess_over_the_median_while_it_lasts(tmp_path: Path) -> None:
    """The first step always, then those above twice the usual 1 s: 30, 5 and 3, not the 9 after a usual one."""
    one = begun(tmp_path, 1).steps(1, 30, 5, compute_fwd=28, compute_bwd=7)
    one.steps(3, 3, 1, 9, 1, 1, 1, 1, 1, 1, 1).exit("finished")
    begun(tmp_path, 2, one.now, after=12).steps(13, 1.5, 1).exit("finished")
    books = books_of(tmp_path)
    # Of the first tile's 35 s 2 stay, four parts forward to one backward.
    usual = {"compute_fwd": 2 * 0.8 + 1 + 9 + 8 + 2, "compute_bwd": 2 * 0.2}
    check(books, times(2, warmup_compile=29 + 4 + 2 + 0.5) | usual)


def test_warm_up_is_compilation_and_not_a_wait_for_data(tmp_path: Path) -> None:
    """Step 2 waited 4 s for its batch; step 1, in the same tile, took 3 s of compute more than the usual."""
    one = begun(tmp_path, 1).steps(1, 4, 5, compute_fwd=5, data_wait=4)
    one.steps(3, *[1.0] * 6).exit("finished")
    check(books_of(tmp_path), times(1, warmup_compile=3, compute_fwd=8, data_wait=4))


def test_a_loader_that_begins_slowly_is_no_warm_up(tmp_path: Path) -> None:
    one = begun(tmp_path, 1)
    for step in range(1, 11):
        one.steps(step, 9, compute_fwd=1, data_wait=8)
    one.steps(11, *[1.0] * 15).exit("finished")
    check(books_of(tmp_path), times(1, compute_fwd=25, data_wait=80))


def test_a_late_batch_among_first_steps_of_one_row_is_no_warm_up(tmp_path: Path) -> None:
    """Step 2 waited 1.5 s; which of the nine steps did is not in the tile, but that none of them computed longer is."""
    one = begun(tmp_path, 1).steps(1, 1).steps(2, 2.5, *[1.0] * 8, compute_fwd=9, data_wait=1.5)
    one.steps(11, *[1.0] * 20).exit("finished")
    check(books_of(tmp_path), times(1, compute_fwd=30, data_wait=1.5))


def test_warm_up_is_of_one_layout(tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 1, 1, 1).exit("finished")
    one = begun(tmp_path, 2, one.now, after=3, layout="tp").steps(4, 7, 6, 6).exit("finished")
    books = books_of(tmp_path)
    check(books, times(2, warmup_compile=1, compute_fwd=21))


def test_lost_warm_up_stays_warm_up(tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 5, 1, 1).gone(12, "log", 3, 12)
    check(books_of(tmp_path), times(1, **{"warmup_compile": 4, "lost_work/crash": 3}))
    assert one.now == 12


def test_traced_steps_shrink_to_the_usual(tmp_path: Path) -> None:
    """Their step_ns hold what tracing took, their buckets do not: `profile` does."""
    one = begun(tmp_path, 1).steps(1, 1, 1, 1)
    one.steps(4, 4, compute_fwd=0.5, compute_bwd=0.5, profile=3).exit("finished")
    check(books_of(tmp_path), times(1, compute_fwd=3.5, compute_bwd=0.5, profile=3))


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    """Live, on its own clock: rank 0 has just written its tile, rank 1 not yet. Nothing is lost, much is at risk."""
    for rank in range(2):
        one = begun(tmp_path, 1, rank=rank, ranks=2).steps(1, 1, 1)
        saved(one, 2)
        if rank == 0:
            one.steps(3, 1, 1)
    parts = times(2, in_progress=2, compute_fwd=6, ckpt_save=2)
    check(books_of(tmp_path), parts)
    check(books_of(tmp_path, now=15), parts | {"in_progress": 5 + 7})
    books = books_of(tmp_path)
    assert (books.durable_step, books.standing_steps) == (2, 4)
    assert (books.ettr, books.ettr_optimistic) == (pytest.approx(4 / 20), pytest.approx(6 / 20))
    assert books.as_json()["state"] == "open"


def test_steps_that_no_clock_divided(tmp_path: Path) -> None:
    begun(tmp_path, 1).steps(1, 1, 1, step=2).exit("finished")
    books = books_of(tmp_path)
    check(books, times(1, step=2))
    assert (books.ettr, books.compute_fraction) == (pytest.approx(2 / 7), None)


def test_without_a_peak_there_is_no_speed_of_light(tmp_path: Path) -> None:
    begun(tmp_path, 1, peak_flops=None).steps(1, 1).exit("finished")
    books = books_of(tmp_path)
    assert (books.speed_of_light, books.mfu_in_step) == (None, None)
    assert not {"speed_of_light", "mfu_in_step"} & books.as_json().keys()


def test_speed_of_light_is_ettr_times_mfu_over_layouts_and_losses(tmp_path: Path) -> None:
    one = begun(tmp_path, 1).steps(1, 4, 1.1, 1.3)
    saved(one, 3).steps(4, 1, 1).gone(one.now + 3, "compute_fwd", 6, one.now)
    for rank in range(2):
        begun(tmp_path, 2, one.now + 9, rank=rank, ranks=2, after=3, peak_flops=700.0).steps(4, 0.7, 0.6)
    books = books_of(tmp_path)
    books_json = books.as_json()
    assert books_json["speed_of_light"] == pytest.approx(books_json["ettr"] * books_json["mfu_in_step"], rel=1e-12)
    assert books.total == sum(attempt.total for attempt in books.attempts)


def test_a_clock_that_rounds_below_zero_is_the_residuals(tmp_path: Path) -> None:
    begun(tmp_path, 1).steps(1, 1, 1, compute_fwd=2.25, compute_opt=-0.25, wall=2.1).exit("finished")
    check(books_of(tmp_path), times(1, compute_fwd=2.25, other=-0.15))


def test_a_file_of_a_rank_that_there_is_not(tmp_path: Path) -> None:
    begun(tmp_path, 1).exit("finished")
    begun(tmp_path, 1, rank=3, ranks=4).steps(1, 1).exit("finished")
    check(books_of(tmp_path), times(1))


def test_a_host_that_comes_back_is_placed_by_its_own_clock(tmp_path: Path) -> None:
    """On host a, on b whose wall clock is 3 s fast, and on a again, whose wall clock was set 100 s forward since."""
    begun(tmp_path, 1).exit("preempted", 6)
    begun(tmp_path, 2, 10, boot="boot-b", wall=3).exit("preempted", 16)
    begun(tmp_path, 3, 30, wall=100).exit("finished")
    books = books_of(tmp_path)
    assert [one.begin_ns // S for one in books.attempts] == [0, 13, 30]
    check(books, times(3, shutdown=2, down=7 + 11))


def test_queued_again_before_it_had_ended(tmp_path: Path) -> None:
    begun(tmp_path, 1).exit("preempted", 6)
    begun(tmp_path, 2, 30, submitted=WALL + 3 * S).exit("finished")
    check(books_of(tmp_path), times(2, shutdown=1, queue=24))


def test_down_is_when_no_attempt_is_alive(tmp_path: Path) -> None:
    """The first one lives on until 40; the second comes and goes; the third begins at 30, the fourth at 45. The fifth's
    processes began before the fourth's, and joined later."""
    begun(tmp_path, 1).exit("fenced", 40)
    begun(tmp_path, 2, 10).exit("fenced", 20)
    begun(tmp_path, 3, 30).exit("fenced", 40)
    begun(tmp_path, 4, 45).exit("fenced", 50)
    begun(tmp_path, 5, 44).exit("finished", 52)
    books = books_of(tmp_path)
    assert rank_seconds(books)["down"] == 5
    assert books.wall_ns == 52 * S
    assert books.total == (40 + 10 + 10 + 5 + 8 + 5) * S


def test_the_first_of_all_may_be_a_later_attempt(tmp_path: Path) -> None:
    begun(tmp_path, 1, 3).exit("fenced", 10)
    begun(tmp_path, 2, 0).exit("finished", 12)
    assert books_of(tmp_path).wall_ns == 12 * S


def test_a_host_that_stayed_tells_the_gap_though_rank_0_moved(tmp_path: Path) -> None:
    """Rank 0's new host has a clock that shows 500 s more, and a wrong wall clock."""
    begun(tmp_path, 1).exit("preempted", 6)
    begun(tmp_path, 2, 510, ranks=2, boot="boot-b", wall=77).exit("finished")
    begun(tmp_path, 2, 10, rank=1, ranks=2).exit("finished")
    books = books_of(tmp_path)
    check(books, times(3, shutdown=1, down=2 * 4))


def test_the_usual_is_without_first_steps_if_there_are_others(tmp_path: Path) -> None:
    now = 0.0
    for attempt, seconds in enumerate(([9.0], [9.0], [9.0, 1.0]), start=1):
        one = begun(tmp_path, attempt, now, after=attempt - 1).steps(attempt, *seconds).exit("finished")
        now = one.now
    check(books_of(tmp_path), times(3, warmup_compile=24, compute_fwd=4))


def test_warm_up_has_an_end(tmp_path: Path) -> None:
    begun(tmp_path, 1).steps(1, *[3.0] * 12, *[1.0] * 20).exit("finished")
    check(books_of(tmp_path), times(1, warmup_compile=20, compute_fwd=36))


@pytest.mark.parametrize("step_ns", [[], [7], [0, 0, 0, 0]])
def test_steps_whose_own_times_are_not_known_took_equally_long(step_ns: list[int], tmp_path: Path) -> None:
    one = begun(tmp_path, 1)
    tile = {"begin": 5 * S, "buckets": {"compute_fwd": 8 * S}, "first": 1, "last": 4, "step_ns": step_ns}
    one.event("tile", 13, **tile).event("skipped", step=2).exit("finished")
    check(books_of(tmp_path), times(1, compute_fwd=6, skipped_update=2))


def test_an_attempt_without_steps_needs_no_peak(tmp_path: Path) -> None:
    begun(tmp_path, 1, peak_flops=None).exit("failed", 6)
    begun(tmp_path, 2, 6).steps(1, 1).exit("finished")
    assert books_of(tmp_path).mfu_in_step == pytest.approx(0.5)
