"""What the columns of a table mean, in words for somebody who sees one for the first time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from convsv.reports._networks import network_words
from convsv.reports._sparkline import EMPTY, SPARKLINE, sparkline
from convsv.reports._summary import assumed
from convsv.results import Interval, LayerReport, Report, Spectrum

__all__ = ["legend"]

Entry = tuple[str, str]

_REACHED = (
    "what the singular values of the symbol came to, for the weights as they are stored: the layer without borders, "
    "or with full circular padding at any size"
)
_AT_SIZE = re.compile(r"([a-z]+) \d+(x\d+)*")
_WIDE = 0.05
_ADVICE = "state it with --size, --padding-mode or --geometry FILE.toml"


def legend(report: Report, *, summary: bool = False) -> tuple[Entry, ...]:
    """Return what to write below the tables of a report: terms and their meaning, only those that occur in it.

    Args:
        report: the report, complete.
        summary: the table shown is that of the bounds over all layers.
    """
    layers = [layer for checkpoint in report.checkpoints for layer in checkpoint.layers]
    if report.command == "lipschitz":
        return tuple(network_words([c.network for c in report.checkpoints if c.network is not None]))
    if not layers:
        return ()
    if report.command == "clip":
        entries = [*_clip_entries(layers)]
    elif report.command == "check":
        entries = [*_check_entries(layers)]
    elif report.command == "compare":
        entries = [*_change_entries(report, layers)]
    else:
        entries = [*_norm_entries(report.command, layers), *_spectrum_entries(report, layers)]
    if report.command == "layers":
        entries.append(("shape", "of the weight as stored: output, input channels, kernel (Keras: kernel first)"))
    if any(layer.symbol_min for layer in layers):
        what = "the symbol's smallest singular value over all frequencies: a lower bound of all singular values of "
        entries.append(("symbol min", f"{what}the infinite or fully circular layer, NOT of one that pads with zeros"))
    if any("bounds" in layer.results for layer in layers):
        best = ("best bound", "the smallest certified upper bound at any size among the published ones, and its name")
        entries += _bound_entries(summary=summary) if report.command == "bounds" else [best]
    if not summary:
        entries += _guess_entries(layers)
    if any(layer.unavailable for layer in layers) and not summary:
        entries.append(("—", "not available, for the reason of that number below the table"))
    if report.partial:
        entries.append(("partial", "interrupted: only the layers finished by then are shown"))
    return tuple(entries)


def _norm_entries(command: str, layers: Sequence[LayerReport]) -> Iterator[Entry]:
    norms = [layer.norm for layer in layers if layer.norm]
    if norms:
        yield (
            "norm",
            f"the most the layer can stretch an input (its largest singular value) {_ofs(norms)}. {_surety(norms)}",
        )
    if norms and command != "bounds":
        yield "width", "upper / lower - 1 of that interval: how closely the norm is known" + _why_wide(layers)
    sized = [layer.norm_at_size for layer in layers if layer.norm_at_size and command != "bounds"]
    if sized:
        yield "norm at size", f"the same for the layer as it runs, {_ofs(sized)}. {_surety(sized)}"


def _clip_entries(layers: Sequence[LayerReport]) -> Iterator[Entry]:
    clips = [layer.clip for layer in layers if layer.clip]
    if not clips:
        return
    norms = [norm for clip in clips for norm in (clip.norm_before, clip.norm_after)]
    when = f"{_ofs(norms)}, before and after, of the weights as they are stored"
    yield "norm", f"the most the layer can stretch an input (its largest singular value) {when}. {_surety(norms)}"
    if any(clip.radius is not None for clip in clips):
        yield "radius", "the largest norm allowed"
    yield (
        "moved",
        "how far the weights are from what they were: Frobenius norm of the difference over that of the weights",
    )
    edits = [clip.reached for clip in clips if clip.reached]
    if edits:
        grids = ", ".join(sorted({"x".join(map(str, edit.grid)) for edit in edits}))
        yield "reached", f"{_REACHED}. An estimate, on grids of {grids} frequencies"
    if any(edit.beyond is not None for edit in edits):
        yield "beyond", "the largest singular value behind the wanted rank, over the largest of all"


def _change_entries(report: Report, layers: Sequence[LayerReport]) -> Iterator[Entry]:
    norms = [layer.norm for layer in layers if layer.norm]
    if norms:
        yield "norm", f"the most the layer can stretch an input (its largest singular value) {_ofs(norms)}"
    steps = report.comparison.steps if report.comparison else ()
    changes = [change for step in steps for change in step.layers]
    if any(change.ratio for change in changes):
        word = "last / first" if len(steps) > 1 else "ratio"
        marks = "▲ and ▼: the intervals share no number, so it certainly grew or shrank"
        yield word, f"one norm over the other, certified. {marks}"
    if len(steps) > 1:
        return
    if any(change.kernel_distance is not None for change in changes):
        yield "weights", "Frobenius norm of the difference of the kernels over that of the old one"
    if any(change.spectrum for change in changes):
        yield "spectrum", "mean distance of the singular values over the largest old one (Wasserstein-1)"
    if any(change.status == "unknown" for change in changes):
        yield "unknown", "in both, but a report does not hold what tells whether the weights changed"


def _check_entries(layers: Sequence[LayerReport]) -> Iterator[Entry]:
    findings = [found for layer in layers if layer.check for found in layer.check.findings]
    norms = [f.interval for f in findings if f.criterion == "max_norm" and f.interval]
    if norms:
        yield "norm", f"the most the layer can stretch an input (its largest singular value) {_ofs(norms)}"
    yield "value", "certified: proved to lie between the two numbers, rounding errors included"
    verdicts = {found.verdict for found in findings}
    if "PASS" in verdicts:
        yield "PASS", "the whole interval keeps to the limit"
    if "FAIL" in verdicts:
        yield "FAIL", "certified to break the limit, whatever is guessed of the layer"
    if "UNDECIDED" in verdicts:
        yield "UNDECIDED", "neither could be proved, for the reason of that number below the table"
    if any(found.accepted for found in findings):
        yield "accepted", "the baseline knows of it, and it has not become worse"


def _why_wide(layers: Iterable[LayerReport]) -> str:
    """Say why an interval may be wide that no computing narrows: its ends hold for different numbers of groups."""
    guessed = (layer.norm for layer in layers if layer.geometry.origin.get("groups") == "inferred")
    if not any(norm and norm.width > _WIDE for norm in guessed):
        return ""
    return (
        ". It is large where groups are guessed from shapes, because the upper end then holds for any number of "
        "groups: state groups with --geometry FILE.toml to narrow it"
    )


def _ofs(found: Iterable[Interval | Spectrum]) -> str:
    """Return what operators the numbers are about, without naming every size."""
    return ", ".join(sorted({_phrase(item.of) for item in found}))


def _phrase(of: str) -> str:
    at_size = _AT_SIZE.fullmatch(of)
    if at_size:
        return f"with {at_size[1].replace('zeros', 'zero')} padding at the size shown"
    return "at any input size" if of == "any size" else f"({of})"


def _surety(found: Iterable[Interval | Spectrum]) -> str:
    guarantees = {item.guarantee for item in found}
    if guarantees == {"certified"}:
        return "Certified: proved to lie between the two numbers, rounding errors included"
    return f"Guarantee: {', '.join(sorted(guarantees))}"


def _spectrum_entries(report: Report, layers: Iterable[LayerReport]) -> Iterator[Entry]:
    found: dict[str, list[Spectrum]] = {}
    for layer in layers:
        for method, result in layer.results.items():
            if isinstance(result, Spectrum):
                found.setdefault(method, []).append(result)
    for method, spectra in found.items():
        guarantee = "/".join(sorted({spectrum.guarantee for spectrum in spectra}))
        what = "upper ends of all singular values" if spectra[0].kind == "upper" else "singular values"
        yield method, f"{what} of the layer {_ofs(spectra)}: largest and smallest ({guarantee})"
        if any(spectrum.kind == "leading" for spectrum in spectra):
            yield "leading", "not all values were computed; those found by iteration are proved from one side: ≥, ≤"
    if any(sparkline(spectrum) for spectra in found.values() for spectrum in spectra):
        yield SPARKLINE, f"how many values lie where, from zero at the left to the largest at the right; {EMPTY} none"
    if found and not report.settings.get("norm", True):
        yield "condition", "max / min; inf when the smallest value is zero within rounding"
        yield "stable rank", "(Frobenius norm / max) squared; effective rank: exp of the entropy of the values"


def _bound_entries(*, summary: bool) -> Iterator[Entry]:
    yield "bound", "published bounds: the norm is at most (≤, upper) or at least (≥, lower) the value"
    yield "ratio", "value / certified norm: 1 is perfect, 2 is twice too large"
    yield "operator", "what the bound is about; one of a finite size may lie below the norm at any size"
    yield "guarantee", "certified: proved, rounding included; estimate: the value may be on the wrong side of the norm"
    if summary:
        yield "tightest", "for how many layers it is the best certified bound of its side at any size"


def _guess_entries(layers: Iterable[LayerReport]) -> Iterator[Entry]:
    guessed = {name for layer in layers for name in assumed(layer)}
    ends = {
        end: {name for layer in layers if layer.norm for name in layer.norm.assumes.get(end, ())}
        for end in ("lower", "upper")
    }
    leaning = [f"the {end} end holds if the guessed {_and(names)}" for end, names in ends.items() if names]
    if leaning:
        yield "number?", f"{'; '.join(leaning)}. A number without ? leans on no guess"
    if guessed:
        yield "?", f"assumed, because the checkpoint does not tell: {_ADVICE}"


def _and(names: Iterable[str]) -> str:
    *most, last = sorted(name.replace("_", " ") for name in names)
    return f"{', '.join(most)} and {last} are right" if most else f"{last} is right"
