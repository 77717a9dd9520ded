"""`switchyard report`: a page from run folders, which opens from disk, fetches nothing and says what is in them."""

import html
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from harness.made_run import made_run

from launch.cli import main
from launch.report.differences import differences
from launch.report.expert_map import expert_loads
from launch.report.goodput import TRAINED, shares
from launch.report.losses import compare_losses
from launch.report.run_view import RunView
from train.ledger.fold import fold
from train.ledger.read import read_ledger

SVG = "{http://www.w3.org/2000/svg}"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TINY = ["model=tiny", "data=synthetic"]
LOSSES = [6.0, 5.5, 5.0, 4.5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that learnt the same, differently, and something else; one with a pipeline; and what a sweep says of them
    and of two more."""
    folder = tmp_path_factory.mktemp("swept")
    runs = folder / "runs"
    made_run(runs / "ddp<&>", [*TINY, "strategy=ddp"], LOSSES)
    made_run(runs / "fsdp", [*TINY, "strategy=fsdp", "overlap=max"], LOSSES, step_s=0.2, memory_gib=0.5)
    made_run(runs / "off", [*TINY, "strategy=fsdp"], [6.0, 5.5, 5.6, 4.5], step_s=0.3, buckets={}, ledger=False)
    bubble = {"compute_fwd": 0.3, "bubble": 0.1}
    made_run(runs / "pp", [*TINY, "strategy=pp", "train.seed=7"], [6.0, 5.0, 4.0, 3.0], step_s=0.4, buckets=bubble)
    made_run(runs / "other_words", TINY, LOSSES)
    named = ["pp", "ddp<&>", "fsdp", "off"]
    points = [{"point": name, "state": "done", "why": None, "tokens_per_sec": 1.0} for name in named]
    points.append({"point": "tp", "state": "refused", "why": "refused: strategy.tp=3 & more", "tokens_per_sec": None})
    (folder / "results.json").write_text(json.dumps({"command": "switchyard sweep a<b", "points": points}))
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def tree(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def view(folder: Path, name: str) -> RunView:
    read = RunView.read(folder / "runs" / name, name)
    assert read
    return read


def section(tree: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(one for one in tree.iter("section") if one.get("id") == name)


def texts(element: ElementTree.Element) -> list[str]:
    return [text.strip() for text in element.itertext() if text.strip()]


def test_it_is_one_file_that_fetches_nothing(page: str, tree: ElementTree.Element) -> None:
    for element in tree.iter():
        assert element.tag.removeprefix(SVG) not in ("link", "img", "image", "iframe", "use", "object")
        for name in ("src", "href"):
            assert element.get(name, "#").startswith("#")
    without_names = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in without_names
    assert "url(" not in page
    assert "@import" not in page


def test_every_part_is_there(tree: ElementTree.Element) -> None:
    found = [one.get("id") for one in tree.iter("section")]
    assert found == [
        *("numbers", "missing", "steps", "exposed", "memory", "losses", "goodput", "pipelines", "experts"),
        "differences",
    ]
    assert [link.get("href") for link in tree.iter("a")] == [f"#{name}" for name in found]
    assert "switchyard sweep a<b" in texts(tree)


def test_runs_are_those_that_the_sweep_names_and_stand_by_speed(tree: ElementTree.Element) -> None:
    names = ["".join(row[0].itertext()) for row in section(tree, "numbers").iter("tr")]
    assert names == ["run", "ddp<&>", "fsdp", "off", "pp"]
    row = texts(list(section(tree, "numbers").iter("tr"))[2])
    assert row[:7] == ["fsdp", "500", "200.0", "0.0", "20.0%", "25.0%", "0.50"]
    lead = next(one for one in tree.iter("p") if one.get("class") == "lead")
    assert "".join(lead.itertext()).startswith("Fastest is ddp<&>: 1,000 tokens/s, 4.00 times the slowest (pp).")


def test_points_that_are_not_done_say_why(tree: ElementTree.Element) -> None:
    assert texts(section(tree, "missing"))[-3:] == ["tp", "refused", "refused: strategy.tp=3 & more"]


def test_bars_are_as_long_as_their_parts(tree: ElementTree.Element) -> None:
    parts = {
        title.text: float(rect.get("width", 0)) for rect in section(tree, "steps").iter(f"{SVG}rect") for title in rect
    }
    assert parts["ddp<&>: exposed_comm/fsdp 20 ms"] == pytest.approx(720 * 0.02 / 0.4, abs=0.01)
    assert parts["off: step, not divided 300 ms"] == pytest.approx(720 * 0.75, abs=0.01)
    exposed = [rect[0].text for rect in section(tree, "exposed").iter(f"{SVG}rect") if len(rect)]
    assert exposed == ["ddp<&>: fsdp 20 ms", "fsdp: fsdp 20 ms"]
    assert "20 ms, 20.0% of its step" in texts(section(tree, "exposed"))


def test_losses_are_equal_or_flagged_with_the_step(folder: Path, tree: ElementTree.Element) -> None:
    runs = [view(folder, name) for name in ("ddp<&>", "fsdp", "off", "pp")]
    equal, differs, other = compare_losses(runs)
    assert (equal.sentence, equal.flagged) == ("equal in all 4 steps", False)
    assert differs.flagged
    assert differs.sentence == "differs: at most 0.6 apart (0.1 of the loss), in step 3"
    assert (other.sentence, other.flagged) == ("another job (train.seed): not compared", False)
    # On the page the first is pp, which is another job than all of them.
    assert texts(section(tree, "losses")).count("another job (train.seed): not compared") == 3
    curves = [line for line in section(tree, "losses").iter(f"{SVG}polyline")]
    assert len(curves) == 8  # of both charts
    assert {line.get("points", "").count(",") for line in curves} == {4}


def test_loss_that_is_no_number_does_not_break_the_page(tmp_path: Path) -> None:
    made_run(tmp_path / "a", TINY, [6.0, float("nan"), 5.0])
    assert main(["report", str(tmp_path / "a")]) == 0
    ElementTree.fromstring((tmp_path / "a" / "report.html").read_text().removeprefix("<!DOCTYPE html>\n"))


def test_a_loss_that_turned_to_none_is_no_equal_one(tmp_path: Path) -> None:
    for name, third in (("a", 5.0), ("b", float("nan")), ("c", float("nan"))):
        made_run(tmp_path / "runs" / name, TINY, [6.0, 5.5, third, 4.5])
    a, b, c = (view(tmp_path, name) for name in "abc")
    broken, same = compare_losses([a, b])[0], compare_losses([b, c])[0]
    assert (broken.sentence, broken.flagged) == ("differs: one alone is not finite, in step 3", True)
    assert (same.sentence, same.flagged) == ("equal in all 4 steps", False)
    assert compare_losses([b, a])[0].flagged


def results(folder: Path, **states: str) -> None:
    points = [
        {"point": name, "state": state, "why": None, "tokens_per_sec": 1.0 if state == "done" else None}
        for name, state in states.items()
    ]
    (folder / "results.json").write_text(json.dumps({"command": "switchyard sweep", "points": points}))


def lead(page: Path) -> str:
    tree = ElementTree.fromstring(page.read_text().removeprefix("<!DOCTYPE html>\n"))
    return "".join(next(one for one in tree.iter("p") if one.get("class") == "lead").itertext())


def test_a_point_that_is_not_done_is_not_the_fastest(tmp_path: Path) -> None:
    for name, step_s in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        made_run(tmp_path / "runs" / name, TINY, LOSSES, step_s=step_s)
    results(tmp_path, a="failed", b="done", c="done")
    assert main(["report", str(tmp_path)]) == 0
    assert lead(tmp_path / "report.html").startswith("Fastest is b: 500 tokens/s, 1.50 times the slowest (c).")
    tree = ElementTree.fromstring((tmp_path / "report.html").read_text().removeprefix("<!DOCTYPE html>\n"))
    assert ["".join(row[0].itertext()) for row in section(tree, "numbers").iter("tr")] == [
        "run",
        "b",
        "c",
        "a (failed)",
    ]
    assert "Points that are not done" in texts(section(tree, "missing"))
    results(tmp_path, a="failed", b="failed", c="cut off")
    assert main(["report", str(tmp_path)]) == 0
    assert lead(tmp_path / "report.html") == "No point is done."


def test_steps_of_other_sizes_are_compared_by_their_tokens(tmp_path: Path) -> None:
    """Twice the tokens in 1.5 times the time: the shorter step is the slower one."""
    made_run(tmp_path / "a", TINY, LOSSES, step_s=0.2)
    made_run(tmp_path / "b", TINY, LOSSES, step_s=0.3)
    metrics = tmp_path / "b" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(row | {"perf/tokens_per_sec": 200 / 0.3}) + "\n" for row in rows))
    assert main(["report", str(tmp_path)]) == 0
    said = lead(tmp_path / "report.html")
    assert said.startswith("Fastest is b: 667 tokens/s, 1.33 times the slowest (a).")
    assert said.endswith("Its step is 100.0 ms shorter than as many tokens take a.")


def test_parts_of_a_step_are_the_last_starts(tmp_path: Path) -> None:
    """The first row of a start is its warm-up, in whichever start."""
    folder = made_run(tmp_path / "runs" / "a", TINY, [6.0] * 6)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("resumed_after_step: 0", "resumed_after_step: 3"))
    metrics = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[3] |= {"time/other_s": 9.0}
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert view(tmp_path, "a").breakdown["other"] == pytest.approx(0.01)


@pytest.mark.parametrize("broken", ["5", '{"train/loss": 1.0}', '{"train/step": 9, "train/loss": "x"}', "config"])
def test_a_run_that_cannot_be_read_is_one_line(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_run(tmp_path / "a", TINY, LOSSES)
    if broken == "config":
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("resumed_after_step", "something_else"))
    else:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(broken + "\n")
    assert main(["report", str(folder)]) == 2
    alone = capsys.readouterr().err
    assert alone.count("\n") == 1
    made_run(tmp_path / "b", TINY, LOSSES)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().err == alone.replace("switchyard: ", "switchyard: left out: ")


@pytest.mark.parametrize("content", ["{}", '{"points": 3}', '{"command": "a", "points": [{"x": 1}]}', "[1]"])
def test_results_that_are_somebody_elses_are_passed_over(content: str, tmp_path: Path) -> None:
    made_run(tmp_path / "runs" / "a", TINY, LOSSES)
    (tmp_path / "results.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 0
    assert lead(tmp_path / "report.html") == "a: 1,000 tokens/s"


def test_goodput_shares_make_a_whole(folder: Path) -> None:
    books = fold(read_ledger(folder / "runs" / "fsdp"))
    found = dict(shares(books))
    assert sum(found.values()) == pytest.approx(100)
    assert found[TRAINED] == pytest.approx(100 * books.ettr)


def test_a_pipeline_is_drawn_beside_what_was_idle_in_fact(tree: ElementTree.Element) -> None:
    said = " ".join(texts(section(tree, "pipelines")))
    assert "1f1b, 2 ranks, 4 micro-batches Idle on paper 20.0%; measured of a step: pp 25.0%." in said
    assert len(list(section(tree, "pipelines").iter(f"{SVG}rect"))) > 8


def test_differences_alone_are_shown(folder: Path) -> None:
    settings = [view(folder, name).settings for name in ("ddp<&>", "fsdp")]
    found = differences(settings)
    assert found["strategy.name"] == ["ddp", "fsdp"]
    assert found["overlap.name"] == ["default", "max"]
    assert found["overlap.reshard_after_forward"] == ["true", "false"]
    assert not [key for key in found if not key.startswith(("strategy.", "overlap."))]
    assert differences([settings[0], settings[0]]) == {}


def test_every_expert_has_a_line_where_its_load_was_written(tmp_path: Path) -> None:
    """Two runs that routed the same, one whose step 2 was taken back, and one that routed otherwise."""
    loads = {1: [[4, 0], [2, 2]], 2: [[1, 3], [2, 2]], 3: [[3, 1], [2, 2]]}
    written = {"a": [1, 2, 3], "b": [1, 2, 3, 2, 3], "c": [1, 3]}
    for name, steps in written.items():
        made_run(tmp_path / name, TINY, LOSSES)
        lines = [json.dumps({"train/step": step, "chosen": loads[step]}) for step in steps]
        (tmp_path / name / "expert_load.jsonl").write_text("\n".join(lines) + "\n")
    found = expert_loads(tmp_path / "b")
    assert found == expert_loads(tmp_path / "a")
    assert found == ([1, 2, 3], [[[2.0, 0.5, 1.5], [0.0, 1.5, 0.5]], [[1.0] * 3, [1.0] * 3]])
    assert main(["report", *(str(tmp_path / name) for name in written), f"to={tmp_path / 'r.html'}"]) == 0
    tree = ElementTree.fromstring((tmp_path / "r.html").read_text().removeprefix("<!DOCTYPE html>\n"))
    experts = section(tree, "experts")
    assert ["".join(line.itertext()) for line in experts.iter("p")][1:] == ["a, b:", "c:"]
    said = [title.text for title in experts.iter(f"{SVG}title")]
    assert "MoE layer 0, expert 0, steps 1 to 1: 2.00 of the mean" in said
    assert "MoE layer 1, expert 1, steps 1 to 3: 1.00 to 1.00 of the mean" in said


def test_balanced_routing_is_never_shown_without_its_name(tmp_path: Path) -> None:
    made_run(tmp_path / "a", [*TINY, "model.moe.routing=balanced", "model.moe.balance=none"], LOSSES)
    read = RunView.read(tmp_path / "a", "a")
    assert read
    assert read.label == "a (balanced routing)"


def test_runs_by_name_go_where_they_are_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(folder / "runs" / name) for name in ("fsdp", "off")]
    assert main(["report", *runs]) == 0
    assert main(["report", *runs, "to=both.html"]) == 0
    for name in ("report.html", "both.html"):
        text = (tmp_path / name).read_text()
        assert "<h1>2 runs</h1>" in text
        assert 'id="missing"' not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "report takes folders of runs, or of a sweep: switchyard report runs/NAME runs/OTHER"),
        (["nowhere"], "/nowhere: there is no such folder; name folders of runs, or one that holds them"),
        (["."], ": it is no run's, and holds none; name folders of runs, or one that holds them"),
        (["~nosuchuser"], "~nosuchuser: Could not determine home directory.; name another"),
        (["--open"], "unknown flag --open: report takes folders of runs, and to=FILE.html"),
        (["RUN", "to=/nowhere/a.html"], "to=/nowhere/a.html: No such file or directory; name a file in a folder"),
    ],
)
def test_refusals(
    words: list[str],
    said: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(str(folder) if word == "RUN" else word for word in words)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_run_that_logged_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside others it is left out."""
    made_run(tmp_path / "a", TINY, [])
    assert main(["report", str(tmp_path / "a")]) == 2
    assert "has logged a step" in capsys.readouterr().err
    made_run(tmp_path / "b", TINY, LOSSES)
    assert main(["report", str(tmp_path), f"to={tmp_path / 'r.html'}"]) == 0
    tree = ElementTree.fromstring((tmp_path / "r.html").read_text().removeprefix("<!DOCTYPE html>\n"))
    assert ["".join(row[0].itertext()) for row in section(tree, "numbers").iter("tr")] == ["run", "b"]


PROBE = """
var first = document.querySelector("input[data-run]");
first.click();
document.title = JSON.stringify({
  off: document.querySelectorAll(".run-0.off").length,
  others: document.querySelectorAll(".run-1.off").length,
  width: document.documentElement.scrollWidth,
  smallest: Array.from(document.querySelectorAll("svg text")).map(function (text) {
    return text.getBoundingClientRect().height; }).filter(Boolean).sort(function (a, b) { return a - b; })[0]
});
"""


def test_a_browser_shows_it(page: str, tmp_path: Path) -> None:
    """It opens from disk without an error, nothing is wider than the window, and a curve goes when it is told to."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here: {', '.join(BROWSERS)}")
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", f"<script>{html.unescape(PROBE)}</script></body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", "--enable-logging=stderr"]
    shown = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert "CONSOLE" not in shown.stderr, shown.stderr
    title = re.search(r"<title>(\{.*?\})</title>", shown.stdout)
    assert title, shown.stdout[:2000] + shown.stderr[-2000:]
    found = json.loads(html.unescape(title[1]))
    assert (found["off"], found["others"]) == (2, 0)
    assert found["width"] <= 1200
    assert found["smallest"] >= 10  # pixels
