"""Annotations for GitHub Actions: a line a finding that asks for attention, in the syntax of workflow commands."""

from __future__ import annotations

from typing import TextIO

from convsv.reports import Sink, Style, writer
from convsv.reports._sentences import sentence
from convsv.reports._text import visible
from convsv.results import Check, CheckpointReport, LayerReport, Report

__all__: list[str] = []


def _data(text: str) -> str:
    """Return text as the message of a command: one line, and nothing in it ends the message."""
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


class _Annotations:
    def __init__(self, out: TextIO) -> None:
        self._out = out

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        if layer.check:
            self._check(checkpoint, layer.name, layer.check)

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        if checkpoint.check:
            self._check(checkpoint, "all layers", checkpoint.check)
        if checkpoint.failed:
            self._line("error", checkpoint.path, "UNREAD", checkpoint.problems[-1])

    def end(self, report: Report) -> None:
        self._out.flush()

    def _check(self, checkpoint: CheckpointReport, name: str, check: Check) -> None:
        for found in check.findings:
            if found.verdict != "PASS":
                severe = found.counts and check.severity == "error"
                level = "error" if severe else "notice" if found.accepted else "warning"
                verdict = f"{found.verdict}, accepted" if found.accepted else found.verdict
                self._line(level, checkpoint.path, verdict, f"{name}: {sentence(found)}")

    def _line(self, level: str, path: str, verdict: str, message: str) -> None:
        title = _property(f"convsv check: {verdict}")
        self._out.write(f"::{level} file={_property(path)},title={title}::{_data(message)}\n")


@writer("github", commands=("check",))
def github_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink for annotations of GitHub Actions, one line each; for ``check``."""
    return _Annotations(out)
