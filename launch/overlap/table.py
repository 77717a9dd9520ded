"""What `switchyard overlap` prints."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from launch.bench.table import ms, say
from launch.overlap.knobs import typed
from launch.overlap.proof import Hidden, Order, Proof, kind_of

NAMES = {"data_wait": "data wait", "ckpt_save": "saves", "compute_opt": "optimizer", "bubble": "bubble"}
"""Of buckets that are no kind of communication."""


def print_proofs(proofs: Sequence[Proof], refused: Mapping[str, str], device: str, console: Console) -> None:
    """A row for each kind that each knob claims to hide (of one alone, for the other kinds too), and what there is to
    know about the figures. `refused`: why others were not run, by name; `device`: what kind of it they ran on."""
    console.print(_table(proofs, refused))
    for name, why in refused.items():
        say(console, f"{name}: refused: {why}", style="yellow")
    for proof in proofs:
        if (losses := proof.losses) and losses.most:
            why = losses.reason or "not explained"
            said = f"{proof.name}: losses differ by {losses.most:.1e} in step {losses.step}: {why}"
            say(console, said, style=None if losses.reason else "red")
    for note in notes(proofs, device):
        say(console, note)


def notes(proofs: Sequence[Proof], device: str) -> list[str]:
    """How the figures are meant."""
    said = [
        "ms a step; exposed: what compute waited for, mean over ranks and rounds",
        "tokens/s: the median over rounds, the least and the most",
        "begun ahead: of how many collectives of a traced step on rank 0 compute ran between the start and the wait",
        "(of the optimizer: how many of its updates began before backward was over)",
    ]
    if device != "cpu":
        said.append("total: kernels of that step with the knob on; those of NCCL last while they wait for slower ranks")
    else:
        said.append("total, hidden: not known on CPU, which has no kernels to add up; there the order is the proof")
    rows = [row for proof in proofs for row in proof.hidden]
    if device == "cpu" and any(kind_of(row.bucket) == "fsdp" and (row.order_on or row.order_off) for row in rows):
        said.append("fsdp: FSDP2 on gloo returns when it is done: what is issued, and when, is all that can be seen")
    return said


def _table(proofs: Sequence[Proof], refused: Mapping[str, str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("knob\noff → on", no_wrap=True)
    table.add_column("hides", no_wrap=True)
    for column in (
        "total",
        "exposed\noff",
        "exposed\non",
        "hidden",
        "of exposed\noff",
        "begun\nahead, off",
        "begun\nahead, on",
        "tokens/s\non ÷ off",
        "GiB",
        "max\n|Δloss|",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for proof in proofs:
        # What a knob does not claim shows that nothing else came to be exposed: of one knob alone there is room for it.
        rows = [row for row in proof.hidden if row.claimed or (len(proofs) == 1 and not refused)]
        name = f"{proof.name}\n{typed(proof.off)} → {typed(proof.on)}"
        for row, first in zip(rows, [True] + [False] * len(rows), strict=False):
            table.add_row(name if first else "", *_hidden(row), *(_gained(proof) if first else [""] * 3))
    for name in refused:
        table.add_row(name, "refused")
    return table


def _hidden(row: Hidden) -> tuple[str, ...]:
    kind = kind_of(row.bucket)
    name = kind if kind is not None else NAMES[row.bucket]
    return (
        name if row.claimed else f"({name})",
        ms(row.total_s),
        ms(row.exposed_off_s),
        ms(row.exposed_on_s),
        _percent(row.hidden),
        _percent(row.taken_off),
        _order(row.order_off, None),
        _order(row.order_on, row.earlier),
    )


def _gained(proof: Proof) -> list[str]:
    ratio, memory, losses = proof.ratio, proof.memory_gib, proof.losses
    return [
        f"{ratio.median:.3f}\n{ratio.least:.2f} – {ratio.most:.2f}" if ratio else "–",
        "–" if memory is None else f"{round(memory, 2) + 0.0:+.2f}",
        "–" if losses is None else f"{losses.most:.1e}" if losses.most else "0",
    ]


def _order(order: Order | None, earlier: int | None) -> str:
    """Of how many compute ran between; where that is not told, how many there are, and how many were issued earlier."""
    if order is None:
        return "–"
    if order.covered is not None:
        return f"{order.covered} of {order.n}"
    return f"{order.n} issued" + (f"\n{earlier} earlier" if earlier is not None else "")


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{part:.0%}"
