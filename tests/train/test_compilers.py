"""Who compiles while a job runs needs a compiler, which is said before the job starts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conf.compose import compose
from models.config import ConfigError
from models.triton_here import hopper_lacks, triton_lacks
from train.start.compilers import check_compilers, check_expert_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "words",
    [
        ["optim.one_pass=true"],
        ["strategy.compile=true", "model.expert_backend=fused"],
        ["model.expert_backend=triton"],
        ["strategy.dispatcher=symmetric_memory"],
    ],
)
def test_without_triton_what_is_asked_for_is_refused(words: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("train.start.compilers.triton_lacks", lambda: "there is no package triton; install it")
    with pytest.raises(ConfigError) as caught:
        check_compilers(compose(["model=tiny", *words]).config, CUDA)
    assert str(caught.value) == f"{' '.join(words)}: there is no package triton; install it, or leave that out"


def test_without_a_compiler_for_the_cpu_it_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError) as caught:
        check_compilers(compose(["model=tiny", "strategy.compile=true"]).config, CPU)
    said = "strategy.compile=true: there is no compiler (no-such-compiler); install one, or leave that out"
    assert str(caught.value) == said


def test_what_triton_needs(monkeypatch: Any, tmp_path: Path) -> None:
    there: list[object] = [object()]
    monkeypatch.setattr("models.triton_here.find_spec", lambda name: there[0])
    monkeypatch.setattr("models.triton_here.sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("CC", "no-such-compiler")
    lacks = triton_lacks.__wrapped__  # not what was found out before
    assert lacks() == "there is no compiler (no-such-compiler); install one"
    monkeypatch.setenv("CC", "true")
    assert "Python.h, which is not there" in lacks()
    (tmp_path / "Python.h").touch()
    assert lacks() is None
    there[0] = None
    assert "there is no package triton" in lacks()


@pytest.mark.parametrize("backend", ["fused", "triton"])
def test_experts_by_kernels_need_a_gpu(backend: str) -> None:
    said = rf"^model\.expert_backend={backend}: its kernels run on a GPU, not on cpu; set it"
    with pytest.raises(ConfigError, match=said):
        check_expert_kernels(compose(["model=tiny", f"model.expert_backend={backend}"]).config.model, CPU)


def test_products_of_ours_need_a_hopper(monkeypatch: Any) -> None:
    monkeypatch.setattr("train.start.compilers.triton_lacks", lambda: None)
    monkeypatch.setattr("train.start.compilers.hopper_lacks", hopper_lacks.__wrapped__)  # not what was found out before
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError) as caught:
        check_compilers(compose(["model=tiny", "precision=bf16", "model.expert_backend=triton"]).config, CUDA)
    said = "its products are made for Hopper (9.0), and this GPU's compute capability is 8.0; set it to auto or fused"
    assert str(caught.value) == f"model.expert_backend=triton: {said}"


def test_nobody_who_compiles_nothing_is_asked(monkeypatch: Any) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "no-such-compiler")
    check_compilers(compose(["model=tiny", "precision=bf16"]).config, CUDA)
    check_compilers(compose(["model=tiny", "optim.one_pass=true"]).config, CPU)
