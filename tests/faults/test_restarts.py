"""Which ends stay ends when torchrun starts its ranks again; jobs that do so are in test_life_and_death.py."""

import json
import os
from pathlib import Path

import pytest

from train.faults.restarts import agent, final_end
from train.ledger.events import attempt_folder, process_started_ns, take_attempt

OWN, OTHER = "boot 7 100", "boot 8 200"


def attempt(run: Path, of: str | None, *ends: str) -> None:
    """By `of`, which ended with the last word `ends`; None: nothing is written yet."""
    path = attempt_folder(run, take_attempt(run)) / "rank-00000.jsonl"
    events = [{"ev": "start", "t": 1, "agent": of}, *({"ev": "exit", "t": 2, "cause": end} for end in ends)]
    path.write_text("".join(json.dumps(event) + "\n" for event in events) if of else "")


@pytest.mark.parametrize(("word", "code"), [("stopped", 76), ("fenced", 77), ("diverged", 3)])
def test_an_end_in_order_is_final(word: str, code: int, tmp_path: Path) -> None:
    attempt(tmp_path, OWN, "failed")
    attempt(tmp_path, OWN, word)
    attempt(tmp_path, None)
    end = final_end(tmp_path, OWN)
    assert end is not None
    assert end[:2] == (word, code)
    assert end[2].startswith("attempt 2 ")


@pytest.mark.parametrize("words", [[], ["failed"], ["lost_peers"], ["preempted"], ["refused"]])
def test_after_any_other_it_goes_on(words: list[str], tmp_path: Path) -> None:
    attempt(tmp_path, OTHER, "fenced")
    attempt(tmp_path, OWN, *words)
    assert final_end(tmp_path, OWN) is None
    assert final_end(tmp_path, "boot 9 300") is None  # a new one goes on after whatever end


@pytest.mark.parametrize("words", [[], ["failed"], ["preempted"]])
def test_a_newer_start_fences_one_that_ended_before_it_was_told(words: list[str], tmp_path: Path) -> None:
    attempt(tmp_path, OWN, *words)
    attempt(tmp_path, OTHER)
    end = final_end(tmp_path, OWN)
    assert end is not None
    assert end[:2] == ("fenced", 77)


def test_an_agent_is_one_process_of_one_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert agent() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    own = agent()
    assert own is not None
    assert own.split()[1:] == [str(os.getppid()), str(process_started_ns(os.getppid()))]
