"""What is composed from words that are right, and what is read back from what was written."""

from pathlib import Path

import pytest
import yaml

from conf.compose import compose, read_job
from conf.options import Options
from conf.schema import JobConfig, validate
from models.config import ConfigError
from train.config import Device
from train.data.config import DataSource

# What an option needs besides: it has no default that would do.
NEEDED = {
    "text": ["data.path=a.txt"],
    "tokens": ["data.path=a.bin"],
    "hf": ["data.name=owner/dataset"],
    "mixture": ["data.mixture=[{source: stdlib}, {source: text, path: a.txt, name: files, weight: 2}]"],
}
OPTIONS = [(group, option) for group, files in Options.find().files.items() for option in files]


def test_the_default_job_runs_on_two_ranks() -> None:
    config = compose([]).config
    validate(config, 2)
    assert (config.model.name, config.strategy.name, config.train.steps) == ("small", "ddp", 300)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_runs_and_is_called_by_its_file(group: str, option: str) -> None:
    assert getattr(getattr(compose([f"{group}={option}"]).config, group), "name", option) == option
    needed = NEEDED.get(option, []) if group == "data" else []
    ranks = {"single": 1, "pp_tp": 4, "pp_fsdp": 4, "pp_fsdp_ep": 4, "pp_fsdp_tp_ep": 8}
    validate(compose([f"{group}={option}", *needed]).config, ranks.get(option, 2))


def test_a_list_of_parts_is_typed_prints_and_reads_back(tmp_path: Path) -> None:
    words = ["data=mixture", "data.mixture=[{source: hf, name: owner/a-b, weight: 3}, {source: text, path: 'é f.txt'}]"]
    composed = compose(words)
    first, second = composed.config.data.mixture
    assert (first.source, first.name, first.weight) == (DataSource.hf, "owner/a-b", 3.0)
    assert (second.source, second.path, second.weight) == (DataSource.text, "é f.txt", 1.0)
    (tmp_path / "config.yaml").write_text(composed.yaml)
    assert read_job(tmp_path / "config.yaml") == composed.config


def test_hsdp_is_fsdp_with_a_degree() -> None:
    validate(compose(["strategy=fsdp", "strategy.dp_replicate=2"]).config, 4)


def test_of_two_words_the_last_one_counts() -> None:
    words = ["train.steps=3", "model=tiny", "strategy=single", "model=tiny_mla", "train.steps=4", "strategy=fsdp"]
    config = compose(words).config
    assert (config.train.steps, config.model.name, config.strategy.name) == (4, "tiny_mla", "fsdp")


def test_a_key_outweighs_its_option_in_any_order() -> None:
    assert compose(["model.dim=32", "model=tiny"]).config.model.dim == 32


@pytest.mark.parametrize(
    "name",
    ["1e3", "007", "1_0", "true", "Null?", "café", "日本", "a b", "a=b", "it's", 'say "so"', "(x)", "a:b", "~", "\\"],
)
def test_a_text_stays_as_it_was_typed(name: str) -> None:
    assert compose([f"run.name={name}"]).config.run.name == name


def test_a_text_may_be_quoted_or_null_or_refer_to_another_key() -> None:
    assert compose(["run.name='a, b'"]).config.run.name == "a, b"
    assert compose(["run.name=null"]).config.run.name is None
    assert compose(["model=tiny", "run.name=${model.name}-${train.seed}"]).config.run.name == "tiny-0"


@pytest.mark.parametrize(("typed", "value"), [("yes", True), ("1", True), ("TRUE", True), ("off", False), ("0", False)])
def test_a_bool_has_many_spellings(typed: str, value: bool) -> None:
    assert compose([f"overlap.grad_reduce={typed}"]).config.overlap.grad_reduce is value


def test_a_folder_of_the_users_adds_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "it's mine, (é)" / "model").mkdir(parents=True)
    (tmp_path / "it's mine, (é)" / "model" / "sp acé.yaml").write_text(
        "defaults: [tiny, _self_]\nname: wide\ndim: 96\n"
    )
    monkeypatch.chdir(tmp_path)
    config = compose(["model=sp acé", "model.n_layers=2"], Path("it's mine, (é)")).config
    assert (config.model.name, config.model.dim, config.model.n_layers) == ("wide", 96, 2)
    assert config.model.attention.head_dim == 16  # tiny's


def test_where_it_is_started_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = compose(["model=tiny"]).yaml
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "tiny.yaml").write_text("dim: 1\n")
    monkeypatch.chdir(tmp_path)
    assert compose(["model=tiny"]).yaml == here
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]  # and no folder of Hydra's is left


WORDS = [
    "run.name=1e3",
    "checkpoint=off",
    "train.device=cpu",
    "optim.clip_norm=null",
    "model.name=off",
    "optim.lr=1e-3",
]


def test_what_is_printed_reads_back_as_the_same_job(tmp_path: Path) -> None:
    composed = compose(WORDS)
    assert yaml.safe_load(composed.yaml)["data"]["sequence_length"] == 256  # resolved
    path = tmp_path / "config.yaml"
    path.write_text(composed.yaml)
    assert read_job(path) == composed.config
    # As a run writes it, with what it was started on.
    path.write_text(yaml.safe_dump(yaml.safe_load(composed.yaml) | {"environment": {"python": "3"}}, sort_keys=False))
    job = read_job(path)
    assert job == composed.config
    assert (job.run.name, job.model.name, job.train.device) == ("1e3", "off", Device.cpu)


def test_an_older_configuration_reads_with_todays_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 7}\n")
    job = read_job(tmp_path / "config.yaml")
    assert job.train.steps == 7
    assert job.model == JobConfig().model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {dimm: 3}", "unknown key 'model.dimm'; did you mean model.dim?"),
        ("train: {steps: many}", "train.steps: set it to a whole number"),
        ("model: [1", "line 1: expected ',' or ']'"),
        ("- 1", "is not a run's config.yaml"),
        ("", "is not a run's config.yaml"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_job(tmp_path / "config.yaml")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
