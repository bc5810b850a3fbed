"""The names a user's script may rely on, and what `import convsv` costs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib.metadata import version

import pytest

import convsv

PROMISED = {"analyze", "find_layers", "open_checkpoint", "operator_norm", "spectrum"}
HEAVY = ("torch", "numpy", "h5py", "safetensors", "ml_dtypes", "rich", "typer", "matplotlib", "onnx")


def isort_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order ruff keeps."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def public_modules() -> list[str]:
    found = pkgutil.walk_packages(convsv.__path__, "convsv.")
    return sorted(m.name for m in found if not any(part.startswith("_") for part in m.name.split(".")[1:]))


def test_the_promised_names_are_there() -> None:
    assert set(convsv.__all__) >= PROMISED


def test_all_is_sorted_and_without_repeats() -> None:
    names = [name for name in convsv.__all__ if not name.startswith("__")]
    assert names == sorted(set(names), key=isort_order)


def test_dir_lists_the_public_names() -> None:
    assert set(dir(convsv)) >= set(convsv.__all__)


@pytest.mark.parametrize("before", ["", "import convsv.bounds", "convsv.operator_norm"])
def test_bounds_is_a_function_though_a_package_has_its_name(before: str) -> None:
    program = f"""
import numpy as np, convsv
{before}
kernel = np.ones((2, 2, 3))
first, second = (convsv.bounds(kernel, names=["frobenius"]) for _ in range(2))
assert first["frobenius"].value == second["frobenius"].value > 0
import convsv.bounds as package
assert "frobenius" in package.BOUNDS
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_version_is_the_installed_one() -> None:
    assert convsv.__version__ == version("convsv")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        convsv.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", convsv.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(convsv, name)
    if inspect.isfunction(value) or inspect.isclass(value) or inspect.ismodule(value):
        assert (inspect.getdoc(value) or "").strip()


@pytest.mark.parametrize("name", public_modules())
def test_every_module_documents_what_it_exports(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for exported in getattr(module, "__all__", ()):
        value = getattr(module, exported)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{name}.{exported} has no docstring"


def test_importing_convsv_imports_nothing_heavy() -> None:
    program = f"import sys, convsv; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_rooms_for_training_open_without_an_import_of_their_own() -> None:
    program = (
        "import sys, convsv; assert 'torch' not in sys.modules; "
        "print(convsv.differentiable.spectral_penalty.__name__, convsv.constructions.cayley.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["spectral_penalty", "cayley"]
