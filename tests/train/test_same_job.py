"""A run folder is one job: what may change when it is started again, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord
from harness.worker_pool import WorkerPool

from conf.compose import compose, schema_defaults
from models.config import ConfigError
from train.report import finished_summary
from train.run_folder import check_same_job, write_config

Job = Callable[[str], RunRecord]
CORPUS = "c0ffee"
DEFAULTS = schema_defaults()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a job that was started with these words and no others."""
    write_config(tmp_path, plain("model=tiny"), {"corpus_sha256": CORPUS})
    return tmp_path


def plain(*words: str) -> dict:
    return yaml.safe_load(compose(words).yaml)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("model.moe.top_k=1", "model.moe.top_k"),
        ("model=tiny_mla", "model.name"),
        ("train.seed=1", "train.seed"),
        ("train.global_batch_size=8", "train.global_batch_size"),
        ("data=synthetic", "data.name"),
        ("data.sequence_length=64", "data.sequence_length"),
        ("optim.lr=0.1", "optim.lr"),
        ("precision=bf16", "precision.name"),
    ],
)
def test_another_job_is_refused(folder: Path, word: str, key: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_same_job(folder, plain("model=tiny", word), CORPUS, DEFAULTS)
    message = str(refusal.value)
    assert message.startswith(f"{key}=")
    assert str(folder) in message
    assert "\n" not in message


def test_a_run_of_an_older_version_goes_on_as_the_default_says(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["precision"]["matmul"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    check_same_job(folder, plain("model=tiny"), CORPUS, DEFAULTS)
    with pytest.raises(ConfigError, match=r"^precision\.matmul=fp8, and .* precision\.matmul=default: "):
        check_same_job(folder, plain("model=tiny", "precision.matmul=fp8"), CORPUS, DEFAULTS)


def test_another_mixture_is_refused_by_what_differs_in_it(tmp_path: Path) -> None:
    parts = "data.mixture=[{{source: text, path: {path}, weight: 2}}, {{source: stdlib, weight: {weight}}}]"
    write_config(tmp_path, plain("data=mixture", parts.format(path="here", weight=1)), {"corpus_sha256": CORPUS})
    check_same_job(tmp_path, plain("data=mixture", parts.format(path="moved", weight=1)), CORPUS, DEFAULTS)
    with pytest.raises(
        ConfigError, match=r"^data\.mixture\[1\]\.weight=3\.0, and .* data\.mixture\[1\]\.weight=1\.0: "
    ):
        check_same_job(tmp_path, plain("data=mixture", parts.format(path="here", weight=3)), CORPUS, DEFAULTS)


def test_another_corpus_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the corpus is not the one"):
        check_same_job(folder, plain("model=tiny"), "decaf", DEFAULTS)


@pytest.mark.parametrize(
    "word",
    [
        "strategy=fsdp",
        "overlap=max",
        "logging=off",
        "checkpoint=off",
        "train.steps=7",
        "train.micro_batch_size=2",
        "train.log_every=3",
        "model.expert_backend=loop",
        "model.init_from=runs/donor",
        "model.loss_chunk_size=9",
        "model.loss_backend=torch",
        "model.row_backend=torch",
        "optim.halves=true",
        "data.cache_dir=elsewhere",
        "data.tokenizer=moved.json",
    ],
)
def test_what_does_not_make_another_job_may_change(folder: Path, word: str) -> None:
    check_same_job(folder, plain("model=tiny", word), CORPUS, DEFAULTS)


@pytest.fixture
def finished(trained: Job, tmp_path: Path) -> RunRecord:
    """A copy of a run that has done its 20 steps."""
    return RunRecord(shutil.copytree(trained("single fp32").folder, tmp_path / "finished"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("word", ["train.seed=1", "train.steps=19"])
def test_a_refusal_is_one_line_and_touches_nothing(
    finished: RunRecord, word: str, words_of: Callable[[str], tuple[str, ...]], pool: WorkerPool
) -> None:
    before = files(finished.folder)
    done = job_in_pool(pool, 1, *words_of("single fp32"), word, f"run.dir={finished.folder}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"switchyard: {word}, ")
    assert done.stderr.count("\n") == 1
    assert files(finished.folder) == before


def test_a_finished_run_prints_its_table_again_and_touches_nothing(
    finished: RunRecord, words_of: Callable[[str], tuple[str, ...]], pool: WorkerPool
) -> None:
    before = files(finished.folder)
    done = job_in_pool(pool, 1, *words_of("single fp32"), "logging=default", f"run.dir={finished.folder}")
    assert done.returncode == 0, done.stderr
    summary = yaml.safe_load(before["summary.json"])
    assert f"{summary['loss_first']:.4f} → {summary['loss_last']:.4f}" in done.stdout
    assert f"{summary['wall_s']:,.1f} s" in done.stdout
    assert done.stdout.endswith(f"switchyard show {finished.folder}\n")
    assert files(finished.folder) == before


def test_a_summary_counts_only_for_the_step_it_is_of(finished: RunRecord) -> None:
    """A job that went on and died after its last checkpoint still has the summary of its earlier end."""
    summary = finished_summary(finished.folder, 20)
    assert summary is not None
    assert summary.run_dir == str(finished.folder)  # and not where it was copied from
    assert finished_summary(finished.folder, 22) is None
    assert finished_summary(finished.folder.parent, 20) is None


def test_a_finished_run_goes_on_to_more_steps(
    finished: RunRecord, words_of: Callable[[str], tuple[str, ...]], pool: WorkerPool
) -> None:
    """And in another layout, with other overlap."""
    rows = finished.step_rows
    words = (*words_of("single fp32"), "strategy=fsdp", "overlap=max", "train.steps=22")
    done = job_in_pool(pool, 1, *words, f"run.dir={finished.folder}")
    assert done.returncode == 0, done.stderr
    assert finished.step_rows[:20] == rows
    assert [row["train/step"] for row in finished.step_rows] == list(range(1, 23))
    assert finished.config["strategy"]["name"] == "fsdp"
    assert "steps         │ 22" in done.stdout
