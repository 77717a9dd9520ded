"""The README's commands, and how a test runs one: as a user of an activated environment types it."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
README = (ROOT / "README.md").read_text()


def commands(of_a_story: bool) -> list[str]:
    """All of the code blocks in the order a reader types them: those that make or read what another one names (a run, a
    text, folders of tokens and of options), or the others, each of which stands by itself."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    named = re.compile(r"runs/|run\.name=|text\.txt|tokens|mine")
    return [line for line in lines if bool(named.search(line)) == of_a_story]


def start(command: str, folder: Path, **variables: str) -> subprocess.Popen:
    """In `folder`, and beside other tests: a thread a rank."""
    # Without what a `make` that started this test would tell a `make` that this test starts: its own ARGS, above all.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    environment |= {"PATH": PATH, "COLUMNS": "120", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What it said; an AssertionError unless it ended well."""
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output[-4000:]
    return output
