"""`switchyard schedule`: what it prints and draws, and what it refuses."""

import struct
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import pytest

from launch.schedule import schedule
from launch.schedule_drawing import draw
from launch.schedule_picture import COLOURS, INK, Picture
from models.config import ConfigError
from parallel.pipeline.action import Op, actions_of
from parallel.pipeline.schedules import ScheduleName, build_schedule
from parallel.pipeline.simulator import Costs, simulate

SVG = "{http://www.w3.org/2000/svg}"


def test_a_schedule_is_drawn_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule(["1f1b", "pp=2", "microbatches=3", "input=2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rank 0  F0 F1 ·········B0       F2 B1       ···B2       ",
        "rank 1  ···F0 B0       F1 B1       F2 B2       ·········",
        "1f1b: 2 ranks, 2 stages, 3 micro-batches",
        "makespan 16, ideal 12 (no rank ever idle), bubble 25.0%",
        "bubble by rank 25.0% 25.0%",
        "most micro-batches in flight, summed over a rank's stages 2 1",
        "one stage takes forward=1 input=2 weight=1 pair=4 send=0",
    ]


def test_pairs_other_stages_and_messages_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule(["dualpipe", "pp=2", "microbatches=4", "pair=2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "rank 0  F0 f2 F1 b2    f3&B0 b3    I1 W1 "
    assert out[2:4] == [
        "dualpipe: 2 ranks, 2 stages in each of 2 chains, 4 micro-batches",
        "makespan 11, ideal 11 (no rank ever idle), bubble 0.0%",
    ]
    assert out[6] == "capitals are a rank's first stage, small letters any other"
    assert schedule(["interleaved_1f1b", "pp=2", "microbatches=2", "stages_per_rank=3", "send=0.5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2] == "interleaved_1f1b: 2 ranks, 6 stages, 2 micro-batches"
    assert out[-1].endswith(" send=0.5")


def test_a_terminal_gets_as_many_columns_as_it_has() -> None:
    table = build_schedule(ScheduleName.dualpipe, 4, 24)
    simulation = simulate(table, Costs())
    for width in (20, 60, 100, 10_000):
        lines = draw(table, simulation, width)
        assert len({len(line) for line in lines}) == 1
        assert len(lines[0]) <= width
    assert [line.plain for line in lines] == [line.plain for line in draw(table, simulation, None)]
    styles = {str(span.style) for line in lines for span in line.spans}
    assert {"black on bright_blue", "white on blue", "black on bright_green", "black on yellow"} <= styles


def test_both_pictures_show_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg, png = tmp_path / "a.svg", tmp_path / "a.png"
    assert schedule(["dualpipe", "pp=4", "microbatches=12", "--svg", str(svg), f"--png={png}"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(svg), str(png)]
    root = ElementTree.parse(svg).getroot()
    labels = [element.text or "" for element in root.iter(f"{SVG}text")]
    table = build_schedule(ScheduleName.dualpipe, 4, 12)
    n_actions = sum(len(actions_of(cell)) for row in table.rows for cell in row)
    assert len(labels) == table.n_ranks + n_actions + 4
    assert labels[-4:] == ["F", "B", "I", "W"]
    width, height, pixels, palette = read_png(png.read_bytes())
    assert (str(width), str(height)) == (root.get("width"), root.get("height"))
    shown = {palette[index] for row in pixels for index in row}
    assert shown >= {colour for colours in COLOURS.values() for colour in colours} | {INK}


def test_the_png_puts_a_pairs_forward_over_its_backward() -> None:
    table = build_schedule(ScheduleName.dualpipe, 2, 4)
    simulation = simulate(table, Costs())
    picture = Picture(table, simulation)
    width, _, pixels, palette = read_png(picture.png())
    rows = [[palette[index] for index in row] for row in pixels]
    other_forward, backward = COLOURS[Op.forward][1], COLOURS[Op.backward][0]  # f3 & B0 on rank 0
    over = [x for x in range(width) if rows[11][x] == other_forward and rows[25][x] == backward]
    assert over, "no column has the forward of the other chain above a backward"


def read_png(content: bytes) -> tuple[int, int, list[bytes], list[str]]:
    """Width, height, the rows of palette indices, and the palette; every checksum is checked."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, *kind_of_image = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind_of_image == [8, 3, 0, 0, 0]
    raw = zlib.decompress(chunks[b"IDAT"])
    assert len(raw) == height * (width + 1)
    rows = [raw[y * (width + 1) : (y + 1) * (width + 1)] for y in range(height)]
    assert all(row[0] == 0 for row in rows)
    palette = ["#" + chunks[b"PLTE"][i : i + 3].hex() for i in range(0, len(chunks[b"PLTE"]), 3)]
    return width, height, [row[1:] for row in rows], palette


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "schedule needs pp=…: switchyard schedule dualpipe pp=4 microbatches=8"),
        (["1f1b", "pp=2"], "schedule needs microbatches=…: switchyard schedule dualpipe pp=4 microbatches=8"),
        (["pp=2", "microbatches=4"], "schedule takes one name out of gpipe, 1f1b, interleaved_1f1b, interleaved_zero_"),
        (["1f1b", "zbv", "pp=2", "microbatches=4"], "schedule takes one name out of gpipe, 1f1b, interleaved_1f1b, "),
        (["2f2b", "pp=2", "microbatches=4"], "no schedule '2f2b': choose from gpipe, 1f1b, "),
        (["1f1b", "pp=two", "microbatches=4"], "pp=two: set it to a whole number, at least 1"),
        (["1f1b", "pp=2", "microbatches=0"], "microbatches=0: set it to a whole number, at least 1"),
        (
            ["1f1b", "pp=2", "microbatches=4", "ranks=2"],
            "ranks=2: schedule takes pp, microbatches, stages_per_rank, ",
        ),
        (["1f1b", "pp=2", "microbatches=4", "weight=0"], "weight=0: set it to a time in any unit, above 0"),
        (["1f1b", "pp=2", "microbatches=4", "send=-1"], "send=-1: set it to a time in any unit, 0 or more"),
        (["1f1b", "pp=2", "microbatches=4", "pair=inf"], "pair=inf: set it to a time in any unit, above 0"),
        (["1f1b", "pp=2", "microbatches=4", "--pdf", "a"], "unknown flag --pdf: schedule has --svg and --png"),
        (["1f1b", "pp=2", "microbatches=4", "--svg"], "--svg lacks its file: write --svg FILE"),
        (["dualpipe", "pp=3", "microbatches=6"], "strategy.schedule=dualpipe on strategy.pp=3 ranks: it pairs ranks; "),
        (
            ["1f1b", "pp=2", "microbatches=4", "stages_per_rank=2"],
            "strategy.stages_per_rank=2: strategy.schedule=",
        ),
        (["1f1b", "pp=2", "microbatches=4", "--svg", "/no/such/a.svg"], "--svg /no/such/a.svg: No such file or"),
    ],
)
def test_a_refusal_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        schedule(words)
    assert str(refusal.value).startswith(said)
    assert "\n" not in str(refusal.value)
