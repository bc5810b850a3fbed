"""What ``convsv check`` does: read the limits, decide layer by layer, tell people and CI, and choose the exit code."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from convsv.cache import digest
from convsv.cli._analyst import Analyst
from convsv.cli._inputs import Inputs
from convsv.cli._output import Outputs
from convsv.cli._run import Run, counted
from convsv.cli._screen import Screen, worst
from convsv.cli._task import Task
from convsv.cli._words import parse_memory
from convsv.errors import CheckpointError, OutputError, UsageError
from convsv.policy import Policy, default_policy, read_policy
from convsv.reports import write_report
from convsv.reports._sentences import sentence
from convsv.results import Check, CheckpointReport, LayerReport, Report

if TYPE_CHECKING:
    from convsv.checkpoints.discovery import Discovery
    from convsv.checkpoints.sources import GeometryOptions
    from convsv.cli.check import Demands, Gauging, Integration, Results
    from convsv.cli.options import GeometrySources, Models
    from convsv.gate import GateOptions
    from convsv.layer import ConvLayer

__all__ = ["run_check"]

_FAILED, _UNDECIDED = 1, 4
_WORDS = ("PASS", "FAIL", "UNDECIDED", "accepted", "not checked")
_SHOWN = 10
_SUMMARY_BYTES = 1 << 19
"""GitHub takes 1 MiB a step; other commands of the step may write too."""


def run_check(
    models: Models,
    demands: Demands,
    geometry: GeometrySources,
    computing: Gauging,
    integration: Integration,
    output: Results,
) -> None:
    """Check checkpoints.

    Raises:
        ConvsvError: nothing could be done, for instance because of wrong options.
        typer.Exit: it is done, with an exit code other than 0.
    """
    policy = _policy(demands, geometry)
    named = {}
    if integration.junit:
        named = {integration.junit: "junit"}
        output = replace(output, output=[*output.output, integration.junit])
    more = {**_settings(policy), "budget": computing.budget, "baseline": _text(demands.baseline)}
    task = Task("check", models, geometry, output, computing, norm=True, named=named, more=more)
    screen = Screen(quiet=output.quiet, verbose=output.verbose)
    github = integration.github
    if github is None:
        github = os.environ.get("GITHUB_ACTIONS") == "true" and output.format != "github"
    code = _CheckRun(task, screen, policy, _baseline(demands.baseline), github=github).code()
    if code:
        raise typer.Exit(code)


def _policy(demands: Demands, geometry: GeometrySources) -> Policy:
    """Return what is demanded, from every place where it may be said.

    Raises:
        UsageError: nothing is demanded, or a file is not as it must be.
    """
    from convsv.checkpoints.sidecar import read_sidecar

    policy = read_policy(demands.config) if demands.config else default_policy()
    level = demands.severity.value if demands.severity else None
    options = {
        "max_norm": demands.max_norm,
        "min_norm": demands.min_norm,
        "max_condition": demands.max_condition,
        "max_product": demands.max_product,
        "severity": level,
    }
    policy = policy.overruled(options)
    sidecar = read_sidecar(geometry.geometry) if geometry.geometry else None
    if sidecar and sidecar.states_norms:
        return replace(policy, norms=sidecar.max_norm)
    if policy.is_empty:
        where = f"{policy.path} states no limit" if policy.path else None
        raise UsageError("nothing to check", found=where, advice="give --max-norm R, or limits in a file (--config)")
    return policy


def _settings(policy: Policy) -> dict[str, Any]:
    return {
        **policy.defaults.wanted,
        "max_product": policy.max_product,
        "severity": policy.defaults.severity,
        "config": policy.path,
        "layers": {glob: dict(values) for glob, values in policy.tables},
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _baseline(path: Path | None) -> Report | None:
    """Return the earlier report.

    Raises:
        UsageError: it is not there, or not a report.
    """
    if path is None:
        return None
    from convsv.report_file import read_report

    try:
        return read_report(path)
    except CheckpointError as error:
        raise UsageError(error.what, path=error.path, found=error.found, advice=error.advice) from None


def _counts(checks: Iterable[Check]) -> str:
    """Return how many layers there are of each verdict, in words."""
    found = Counter(_word(check) for check in checks)
    return ", ".join(f"{found[word]} {word}" for word in dict.fromkeys((*_WORDS, *found)) if found[word])


def _word(check: Check) -> str:
    worst_found = check.worst
    if worst_found is None:
        return "not checked"
    return "accepted" if worst_found.accepted else worst_found.verdict


def _is_decided(report: LayerReport) -> bool:
    """Tell whether a verdict would be the same with more time, or on a faster machine."""
    return report.check is not None and all(found.verdict != "UNDECIDED" for found in report.check.findings)


class _CheckRun(Run):
    """One call of ``check``."""

    _recalls = False

    def __init__(self, task: Task, screen: Screen, policy: Policy, earlier: Report | None, *, github: bool) -> None:
        super().__init__(task, screen)
        self._policy, self._earlier, self._github = policy, earlier, github
        self._options: GateOptions | None = None
        self._alone = False
        self._names: set[str] = set()

    def code(self) -> int:
        """Run, and return the exit code.

        Raises:
            ConvsvError: nothing could be done.
        """
        code = super().code()
        for glob in self._policy.unmatched(self._names) if self._names else ():
            self._screen.warning(f'{self._policy.path}: layers."{glob}" matches no layer')
        if self._github:
            self._tell_github(code)
        return worst(code, *self._codes)

    def _paths(self) -> Inputs:
        found = super()._paths()
        self._alone = not found.several
        return found

    def _keeps(self, outputs: Outputs) -> bool:
        """Keep layers for annotations, which are written when all is done."""
        return self._github or super()._keeps(outputs)

    def _analyst(self) -> tuple[Analyst, dict[str, Any]]:
        from convsv.cli.check import Gauging
        from convsv.execution import Execution
        from convsv.gate import GateOptions, check_layers

        computing = self._task.computing
        assert isinstance(computing, Gauging)
        execution = Execution(
            device=computing.device,
            dtype=computing.dtype.value,
            memory=parse_memory(computing.memory),
            jobs=computing.jobs,
        )
        self._options = GateOptions(execution, computing.tol, computing.budget)
        computed = {"device": str(execution.torch_device), "jobs": execution.threads}
        stated = {"execution": execution, "tol": computing.tol, "seconds": computing.budget}
        analyst = self._kept.around(
            lambda layers: check_layers(layers, self._policy, self._gate()),
            execution,
            {"check": stated},
            more=self._demanded,
            keeps=_is_decided,
        )
        return analyst, computed

    def _demanded(self, layer: ConvLayer) -> Any:
        """Return what the verdicts on a layer depend on, beside the layer and its norm."""
        limits, known = self._policy.limits(layer.name), self._gate().known(layer.name)
        return digest({"limits": limits, "product": self._policy.max_product is not None, "known": known})

    def _gate(self) -> GateOptions:
        assert self._options is not None
        return self._options

    def _discover(self, sources: GeometryOptions, path: str) -> tuple[CheckpointReport, tuple[ConvLayer, ...]]:
        known, layers = super()._discover(sources, path)
        models = self._task.models
        if not layers and (models.include or models.exclude):
            raise UsageError("no layer is left to check", path=path, advice="change --include or --exclude")
        if not layers:
            self._screen.warning(f"{path}: nothing was checked")
        if self._earlier is not None:
            from convsv.gate import known_of

            self._options = replace(self._gate(), known=known_of(self._earlier, path, alone=self._alone))
        return known, layers

    def _judged(
        self, known: CheckpointReport, found: Sequence[ConvLayer], layers: Sequence[LayerReport]
    ) -> CheckpointReport:
        from convsv.gate import check_product

        if len(layers) != len(found):  # nobody reads the results any more
            return known
        return replace(known, check=check_product(found, layers, self._policy, self._gate()))

    # ------------------------------------------------------------------------------------------- standard error

    def _say(self, path: str, problems: Sequence[str], found: Discovery) -> None:
        super()._say(path, problems, found)
        unlisted = [line for line in found.unlisted if self._is_chosen(line.partition(": ")[0])]
        if unlisted:
            self._codes.append(_UNDECIDED)
            what = counted(len(unlisted), "weight")
            self._screen.verdict(f"{path}: UNDECIDED: {what} may be convolutions and could not be listed")

    def _is_chosen(self, key: str) -> bool:
        """Tell whether globs on names choose a weight that has no row: by its key, or by its module."""
        models, names = self._task.models, (key, key.rpartition(".")[0] or key)
        included = [any(fnmatchcase(name, glob) for name in names) for glob in models.include]
        excluded = [any(fnmatchcase(name, glob) for name in names) for glob in models.exclude]
        return (not included or any(included)) and not any(excluded)

    def _say_missing(self, checkpoint: CheckpointReport) -> None:
        super()._say_missing(checkpoint)
        self._names |= {layer.name for layer in checkpoint.layers}
        checks = [(layer.name, layer.check) for layer in checkpoint.layers if layer.check]
        if checkpoint.check:
            checks.append(("all layers", checkpoint.check))
        self._codes += [_FAILED] if any(check.stops("FAIL") for _, check in checks) else []
        self._codes += [_UNDECIDED] if any(check.stops("UNDECIDED") for _, check in checks) else []
        if checkpoint.layers:
            if not (sys.stdout.isatty() and sys.stderr.isatty()):  # there the table has just said it
                self._say_verdicts(checkpoint, checks)
            counts = _counts(layer.check for layer in checkpoint.layers if layer.check)
            self._screen.note(f"{checkpoint.path}: {counts}")
            self._say_leaning(checkpoint, [check for _, check in checks])

    def _say_verdicts(self, checkpoint: CheckpointReport, checks: Sequence[tuple[str, Check]]) -> None:
        """Name what does not pass, worst first, and count the rest."""
        lines = []
        for wanted in ("FAIL", "UNDECIDED"):
            for name, check in checks:
                found = [f for f in check.findings if f.verdict == wanted and f.counts]
                lines += [(check.severity, f"{wanted}: {name}: {sentence(f)}") for f in found]
        for severity, line in lines[:_SHOWN]:
            text = f"{checkpoint.path}: {line}"
            self._screen.warning(text) if severity == "warn" else self._screen.verdict(text)
        if len(lines) > _SHOWN:
            self._screen.verdict(f"{checkpoint.path}: and {len(lines) - _SHOWN} more; see the report")

    def _say_leaning(self, checkpoint: CheckpointReport, checks: Iterable[Check]) -> None:
        """Say which verdicts hold only if a guess is right; no FAIL does."""
        found = [f.reason for check in checks for f in check.findings if f.verdict == "PASS" and f.reason]
        for reason, count in Counter(found).items():
            self._screen.note(f"{checkpoint.path}: {count} of these PASS {reason}; state it with --padding-mode")

    def _tell_github(self, code: int) -> None:
        """Write annotations to standard error, where they are not among the results, and the summary of the step."""
        report = Report("check", checkpoints=tuple(self._done), partial=code == 130)
        with suppress(OSError):
            write_report(report, sys.stderr, "github")
            sys.stderr.flush()
        target = os.environ.get("GITHUB_STEP_SUMMARY")
        if not target:
            return
        page = io.StringIO()
        write_report(report, page, "markdown")
        text = page.getvalue()
        if len(text.encode("utf-8", "backslashreplace")) > _SUMMARY_BYTES:
            text = f"{text[: _SUMMARY_BYTES // 4].rpartition(chr(10))[0]}\n\n... and more; see the report.\n"
        try:
            with Path(target).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"## convsv check\n\n{text}\n")
        except OSError as error:
            trouble = OutputError("cannot be written", path=target, found=error.strerror or str(error))
            self._screen.error(trouble)
            self._codes.append(5)
