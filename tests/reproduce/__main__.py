"""Run every experiment and write the page: ``python tests/reproduce``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Before anything imports torch or numpy: times are those of one thread.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / "tests")

from convsv.errors import ConvsvError  # noqa: E402 - after the path is known
from reproduce.claims import EXPERIMENTS, Section, Settings  # noqa: E402
from reproduce.data import load  # noqa: E402
from reproduce.page import write_page  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Parse the options, run, and write."""
    parser = argparse.ArgumentParser(prog="python tests/reproduce", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few seeds, about a minute")
    parser.add_argument("--cifar", type=Path, metavar="DIR", help="train on the CIFAR-10 files in DIR, not on digits")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        default=ROOT.parent / "shared" / "checkpoints",
        help="public checkpoints; without them the sample network stands in",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.md", help="the page (docs/reproduction.md)")
    given = parser.parse_args(arguments)
    settings = Settings(given.quick, given.checkpoints, given.cifar)
    # A quick run must not take the place of the page in the documents.
    default = ROOT / ("build" if given.quick else "docs") / "reproduction.md"
    try:
        load(settings, 0)  # files that are missing or damaged are refused now and not after ten minutes
    except ConvsvError as error:
        sys.exit(str(error))
    started = time.process_time()
    sections = run(settings)
    target = given.output or default
    write_page(sections, settings, (time.process_time() - started) / 60, target)
    print(target)


def run(settings: Settings) -> list[Section]:
    """Return the sections of all experiments, in the order of the page."""
    sections = []
    for name, entry in sorted(EXPERIMENTS.items(), key=lambda item: item[1].place):
        started = time.perf_counter()
        sections.append(entry.run(settings))
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return sections


if __name__ == "__main__":
    main()
