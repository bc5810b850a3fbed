"""JUnit XML for CI systems: a suite a checkpoint, a test case a layer and limit.

FAIL becomes a ``failure``, UNDECIDED an ``error``, and what was not checked, is accepted or only warns is ``skipped``.
"""

from __future__ import annotations

import re
from typing import TextIO
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from convsv.reports import Sink, Style, writer
from convsv.reports._sentences import sentence
from convsv.reports._text import visible
from convsv.results import Check, CheckpointReport, LayerReport, Report

__all__: list[str] = []

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _safe(text: str) -> str:
    """Return text as XML can hold it, and as log viewers show it: nothing hidden."""
    return _NOT_XML.sub("\ufffd", visible(text))


class _Junit:
    def __init__(self, out: TextIO) -> None:
        self._out = out

    def layer(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Wait: a suite begins with its counts."""

    def checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Wait: so does the whole."""

    def end(self, report: Report) -> None:
        root = Element("testsuites", name="convsv check")
        for checkpoint in report.checkpoints:
            root.append(_suite(checkpoint, partial=report.partial))
        for count in ("tests", "failures", "errors", "skipped"):
            root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
        indent(root)
        text = tostring(root, encoding="unicode")
        self._out.write(f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')
        self._out.flush()


def _suite(checkpoint: CheckpointReport, *, partial: bool) -> Element:
    suite = Element("testsuite", name=_safe(checkpoint.path))
    for layer in checkpoint.layers:
        _cases(suite, layer.name, layer.check)
    if checkpoint.check:
        _cases(suite, "all layers", checkpoint.check)
    if checkpoint.failed or partial:
        case = _case(suite, "the whole checkpoint")
        why = checkpoint.problems[-1] if checkpoint.failed else "interrupted: layers may be missing"
        SubElement(case, "error", message=_safe(why), type="unread")
    elif checkpoint.problems:
        SubElement(suite, "system-err").text = _safe("\n".join(checkpoint.problems)).replace("\\n", "\n")
    counts = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    suite.set("tests", str(len(suite.findall("testcase"))))
    for count, tag in counts.items():
        suite.set(count, str(len(suite.findall(f"testcase/{tag}"))))
    return suite


def _case(suite: Element, name: str) -> Element:
    return SubElement(suite, "testcase", classname=suite.get("name", ""), name=_safe(name))


def _cases(suite: Element, name: str, check: Check | None) -> None:
    if check is None or not check.findings:
        SubElement(_case(suite, name), "skipped", message="no limit" if check and check.severity != "off" else "off")
        return
    for found in check.findings:
        case = _case(suite, f"{name} · {found.criterion}")
        if found.verdict == "PASS":
            continue
        message = _safe(sentence(found))
        if found.accepted or check.severity == "warn":
            word = "accepted" if found.accepted else "warning"
            SubElement(case, "skipped", message=f"{word}: {message}")
        else:
            SubElement(case, "failure" if found.verdict == "FAIL" else "error", message=message, type=found.verdict)


@writer("junit", ".xml", commands=("check",))
def junit_sink(out: TextIO, head: Report, style: Style) -> Sink:
    """Return a sink for JUnit XML, which CI systems show as test results; for ``check``."""
    return _Junit(out)
