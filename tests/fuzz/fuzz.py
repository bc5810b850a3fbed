"""Coverage-guided fuzzing of one reader with atheris: ``python fuzz.py TARGET CORPUS [libFuzzer options]``.

``make fuzz`` runs every target. A finding is left in the corpus folder as ``crash-*``, ``timeout-*`` or ``oom-*``;
make a regression test of it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["convsv"]):
    from limits import limited
    from mutation import mutated
    from targets import TARGETS, Target

SAMPLES = Path(__file__).parents[2] / "sample_checkpoints"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
KINDS = ("tree", "argument", "set", "word", "cut", "copy", "token", "insert")
LONGEST = 1 << 18


def plant(target: Target, corpus: Path) -> None:
    """Put valid inputs into the corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [target.seed(), *(path.read_bytes() for glob in target.samples for path in SAMPLES.glob(glob))]
    for seed in seeds:
        (corpus / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}").write_bytes(seed)


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """Change an input by libFuzzer's means, or by one that keeps JSON, opcodes and words what they are."""
    if seed % 2:
        return bytes(atheris.Mutate(data, longest))
    where, other, value = seed >> 4 & 0xFFFFF, seed * 0x9E3779B1 >> 8 & 0xFFFFF, seed >> 24 & 0xFF
    return mutated(data, [(KINDS[seed >> 1 & 7], where, other, value)])[:longest]


def main(name: str, corpus: str, *options: str) -> None:
    """Fuzz one target until libFuzzer's options say that it is enough."""
    target = TARGETS[name]
    warnings.simplefilter("error")
    plant(target, Path(corpus))

    def attack(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder, limited():
            target.attack(data, Path(folder))

    attack(target.seed())
    limits = [f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=2048", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], corpus, *limits, *options], attack, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
