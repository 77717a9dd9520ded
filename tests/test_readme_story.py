"""Commands of the README that build on each other, in their order: runs, a text and its tokens, options of one's own.

The others are in test_readme.py.
"""

from pathlib import Path

import pytest
from harness.readme import commands, finish, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.mark.parametrize("command", commands(of_a_story=True))
def test_command(command: str, folder: Path) -> None:
    output = finish(start(command, folder))
    if "strategy=ddp train.steps=20" in command:
        assert "resuming after step 10" in output
    if "strategy=accelerate_ddp" in command:  # where DeepSpeed stopped
        assert "resuming after step 3" in output
    if "strategy=deepspeed" in command:
        assert "DeepSpeed" not in output
        assert "Warning" not in output
    if "strategy=in_pairs" in command:
        assert "1 layout equal to one process" in output
    if "show" in command:
        assert "loss" in output
