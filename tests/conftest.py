"""What every test shares: thread limits, hypothesis profiles, and the folder of real checkpoints."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch or numpy: pytest's workers share the cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

import leftovers

REPOSITORY = Path(__file__).resolve().parent.parent

# Nobody's own cache is read or filled by tests, whatever they start; each test has one of its own.
_CACHES = tempfile.mkdtemp(prefix="convsv-tests-")
_NUMBERS = itertools.count()
atexit.register(shutil.rmtree, _CACHES, ignore_errors=True)
# Started in the background, or by nohup, these are ignored, and the tests' programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ["CONVSV_CACHE_DIR"] = f"{_CACHES}/shared"

# A deadline would be an assertion about time. Derandomised in CI: a failure there can be repeated here.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
# By hand, for hours of doubt: HYPOTHESIS_PROFILE=thorough.
settings.register_profile(
    "thorough",
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True)
def own_cache() -> Iterator[Path]:
    """A place for a cache that no other test knows; nothing is there."""
    path = Path(_CACHES) / str(next(_NUMBERS))
    before, os.environ["CONVSV_CACHE_DIR"] = os.environ["CONVSV_CACHE_DIR"], str(path)
    yield path
    os.environ["CONVSV_CACHE_DIR"] = before


@pytest.fixture(scope="module", autouse=True)
def judged_by_the_program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The files that a reader's tests make go through the whole program in the end, as a stranger's would."""
    if request.path.stem not in leftovers.MOST:
        yield
        return
    base = tmp_path_factory.getbasetemp()
    before = set(base.iterdir())
    yield
    made = [folder for folder in base.iterdir() if folder not in before and not folder.is_symlink()]
    leftovers.judge(made, leftovers.MOST[request.path.stem], tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def sample_checkpoints() -> Path:
    """The folder of sample checkpoints, which is part of the repository."""
    return REPOSITORY / "sample_checkpoints"


@pytest.fixture(scope="session")
def shared_checkpoints() -> Path:
    """The folder of real public checkpoints; the test is skipped where it is missing."""
    folder = REPOSITORY.parent / "shared" / "checkpoints"
    if not folder.is_dir():
        pytest.skip("no folder of shared checkpoints beside the repository")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; torch is imported only when such a test was collected."""
    needy = [item for item in items if item.get_closest_marker("cuda")]
    if not needy:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in needy:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
