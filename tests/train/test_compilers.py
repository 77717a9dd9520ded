"""Who compiles while a job runs needs a compiler, which is said before the job starts."""

from typing import Any

import pytest
import torch

from conf.compose import compose
from models.config import ConfigError
from train.start.compilers import check_compilers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("words", "device", "variable"),
    [
        (["strategy.compile=true"], CPU, "CXX"),
        (["strategy.compile=true"], CUDA, "CC"),
        (["optim.one_pass=true"], CUDA, "CC"),
        (["model.row_backend=auto"], CUDA, "CC"),
        (["model.loss_backend=auto"], CUDA, "CC"),
    ],
)
def test_without_a_compiler_it_is_refused(
    words: list[str], device: torch.device, variable: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv(variable, "no-such-compiler")
    config = compose(["model=tiny", *words]).config
    with pytest.raises(ConfigError) as caught:
        check_compilers(config, device)
    assert str(caught.value) == f"{words[0]}: there is no compiler (no-such-compiler); install one, or leave that out"


def test_nobody_who_compiles_nothing_is_asked(monkeypatch: Any) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "no-such-compiler")
    check_compilers(compose(["model=tiny"]).config, CUDA)
    backends = ["model.row_backend=auto", "model.loss_backend=auto"]
    check_compilers(compose(["model=tiny", "optim.one_pass=true", *backends]).config, CPU)
