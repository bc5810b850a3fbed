"""When the rows of a report come: layers of milliseconds together, and none late."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from convsv.cli import _run
from convsv.cli._run import Begun, Run
from convsv.results import CheckpointReport, LayerReport

KNOWN = CheckpointReport("m.pt", "pytorch", None)
SHAPES = {"a": (4, 4, 3, 3), "b": (8, 8, 3, 3), "c": (64, 64, 3, 3), "d": (64, 32, 3, 3), "e": (512, 512, 3, 3)}


def streamed(monkeypatch: pytest.MonkeyPatch, waits: float, until: str = "e", *, known: bool = True) -> list[str]:
    """Return what happens: a capital letter where a layer is done, a small one where its row is written."""
    happened: list[str] = []

    def reports() -> Iterator[LayerReport]:
        for name, shape in SHAPES.items():
            happened.append(name.upper())
            yield SimpleNamespace(name=name, shape=shape)  # type: ignore[misc]
            if name == until != "e":
                raise KeyboardInterrupt

    outputs: Any = SimpleNamespace(
        kept=lambda layer: layer, layers=lambda known, some: happened.extend(x.name for x in some), unread=False
    )
    monkeypatch.setattr(_run, "_UNNOTICED", waits)
    run = object.__new__(Run)
    run._written, run._screen = 0.0, SimpleNamespace(advance=lambda: None)  # type: ignore[assignment]
    layers: Any = [SimpleNamespace(shape=shape) for shape in SHAPES.values()] if known else []
    written: list[LayerReport] = []
    try:
        run._stream(Begun(KNOWN, "m.pt", layers, reports()), written, outputs)
    except KeyboardInterrupt:
        happened.append("!")
    assert [layer.name for layer in written] == [name for name in happened if name in SHAPES]
    return happened


def test_rows_wait_for_each_other_but_not_for_a_larger_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "".join(streamed(monkeypatch, 1e9)) == "ABabCDcdEe"


def test_rows_of_layers_that_take_their_time_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "".join(streamed(monkeypatch, -1.0)) == "AaBbCcDdEe"


def test_an_interrupt_leaves_no_row_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "".join(streamed(monkeypatch, 1e9, until="c")) == "ABabCc!"
    assert "".join(streamed(monkeypatch, 1e9, until="a")) == "Aa!"


def test_what_is_known_from_an_earlier_call_comes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "".join(streamed(monkeypatch, 1e9, known=False)) == "ABCDEabcde"
