"""Who compiles while a job runs needs a compiler, which is said before the job starts."""

from contextlib import nullcontext
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
        (["model.expert_backend=fused"], CUDA, "CC"),
        (["optim.one_pass=true", "model.expert_backend=fused"], CUDA, "CC"),
    ],
)
def test_without_a_compiler_it_is_refused(
    words: list[str], device: torch.device, variable: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv(variable, "no-such-compiler")
    config = compose(["model=tiny", *words]).config
    with pytest.raises(ConfigError) as caught:
        check_compilers(config, device)
    instead = {
        "model.expert_backend=fused": "set model.expert_backend=grouped_mm",
        "optim.one_pass=true model.expert_backend=fused": "set model.expert_backend=grouped_mm and leave the rest out",
    }.get(" ".join(words), "leave that out")
    said = f"{' '.join(words)}: there is no compiler (no-such-compiler); install one, or {instead}"
    assert str(caught.value) == said


@pytest.mark.parametrize("triton", [False, True])
def test_auto_asks_where_it_fuses_experts(triton: bool, monkeypatch: Any) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr("train.start.compilers.has_triton", lambda: triton)
    for words, fuses in (
        (["precision=bf16"], triton),
        (["precision=fp32"], False),
        (["precision=bf16", "model.moe.expert_dim=36"], False),  # the loop
        (["precision=bf16", "model.expert_backend=grouped_mm"], False),
    ):
        config = compose(["model=tiny", *words]).config
        with pytest.raises(ConfigError, match="expert_backend=auto: there is no compiler") if fuses else nullcontext():
            check_compilers(config, CUDA)


def test_fused_experts_need_a_gpu() -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.expert_backend=fused: its kernels run on a GPU, not on cpu; set it"
    ):
        check_compilers(compose(["model=tiny", "model.expert_backend=fused"]).config, CPU)


def test_nobody_who_compiles_nothing_is_asked(monkeypatch: Any) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "no-such-compiler")
    check_compilers(compose(["model=tiny"]).config, CUDA)
    check_compilers(compose(["model=tiny", "optim.one_pass=true", "model.row_backend=auto"]).config, CPU)
