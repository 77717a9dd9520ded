"""Shell scripts: shellcheck finds nothing, and what is not Python comes with an installed package."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [ROOT / ".ci" / "run", *(ROOT / "launch").glob("*.sbatch"), *(ROOT / "benchmarks").glob("*.sh")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_installed_package_has_its_scripts_and_options() -> None:
    taken = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("conf", "models", "parallel", "train", "launch"):
        folder = ROOT / package
        there = {p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        assert there == {p for pattern in taken.get(package, []) for p in folder.glob(pattern)}, package
