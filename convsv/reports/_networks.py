"""The bound of a network in reports: a table of its operations, rows, and an object."""

from __future__ import annotations

from collections.abc import Iterator

from convsv.reports._cells import Footnotes
from convsv.reports._numbers import UP, percent, short
from convsv.reports._tables import Column, Table, layer_table
from convsv.results import CheckpointReport, NetworkBound, OperationBound, Report

__all__ = ["checkpoint_table", "network_words"]

_COLUMNS = (
    Column("operation", name=True),
    Column("kind", drop=2),
    Column("factor", right=True),
    Column("through", drop=1, right=True),
    Column("share", right=True),
    Column("norm of", drop=3),
    Column("so far", drop=4, right=True),
)


def network_table(checkpoint: CheckpointReport) -> Table:
    """Return the table of one network: a row an operation that does something, and the constant in the title."""
    network, notes = checkpoint.network, Footnotes()
    if network is None:
        return Table((checkpoint.path, "no network"), _COLUMNS, ())
    rows = [_cells(row, notes) for row in network.operations if _does_something(row)]
    silent = len(network.operations) - len(rows)
    told = f"{len(network.operations)} operations to {network.output}"
    told += f" ({silent} of factor 1 not shown)" if silent else ""
    constant = "no Lipschitz constant" if network.upper is None else f"Lipschitz constant ≤ {short(network.upper, UP)}"
    if network.unavailable and not any(row.unavailable for row in network.operations):
        notes.mark(network.unavailable)
    others = {name: upper for name, upper in network.outputs.items() if name != network.output}
    if others:
        shown = ", ".join(f"{name} {'—' if up is None else f'≤ {short(up, UP)}'}" for name, up in others.items())
        notes.mark(f"other outputs: {shown}")
    return Table((checkpoint.path, f"{told} · {constant}"), _COLUMNS, tuple(rows), footnotes=tuple(notes.texts))


def _does_something(row: OperationBound) -> bool:
    return row.factor != 1 or row.unavailable is not None


def _cells(row: OperationBound, notes: Footnotes) -> tuple[str, ...]:
    factor = f"— {notes.mark(row.unavailable)}" if row.unavailable else "—"
    return (
        row.name,
        row.kind,
        factor if row.factor is None else short(row.factor, UP),
        "—" if row.through is None else percent(row.through),
        "—" if row.share is None else percent(row.share),
        row.of,
        "—" if row.upper is None else short(row.upper, UP),
    )


def network_words(networks: list[NetworkBound]) -> Iterator[tuple[str, str]]:
    """Yield what the columns mean: terms and their meaning."""
    if not networks:
        return
    what = (
        "||f(x) - f(y)|| is at most that times ||x - y||, for all inputs x and y, in the Euclidean norm of all entries"
    )
    yield "Lipschitz constant", f"{what}. Certified: proved, rounding errors included; usually far above the smallest"
    yield "factor", "the most an operation can stretch what it takes; of a join, what joining adds to its inputs"
    yield "through", "by how much the bound falls if the factor falls by 1 %, in percent of that"
    yield "share", "the operation's part of the logarithm of the constant; all parts add up to 100 %"
    if any(row.unavailable for network in networks for row in network.operations):
        yield "—", "not available, for the reason of that number below the table"


def checkpoint_table(head: Report, checkpoint: CheckpointReport) -> Table:
    """Return the table of one checkpoint: of its network where that is what was asked for, else of its layers.

    Args:
        head: the report's command and settings.
        checkpoint: the checkpoint, complete.
    """
    return network_table(checkpoint) if head.command == "lipschitz" else layer_table(head, checkpoint)
