"""The rooms of the house and who may enter which: import-linter's contracts, and what they cannot see."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "convsv"
# The command line prints and exits; the child processes that libhdf5 and onnx run in are programs of their own.
PROGRAMS = {"cli", "__main__.py", "_hdf5_child.py", "_hdf5_edit_child.py", "_onnx_child.py"}
# Reading a pickle runs what it names; a file in memory that shrinks ends the process.
DANGEROUS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "mmap"}
EXITS = {"print", "exit", "quit", "sys.exit", "os._exit", "os.abort"}


def library_modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if not PROGRAMS & set(path.relative_to(PACKAGE).parts))


def calls_that_end_or_print(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.dump(node.exc):
            yield f"line {node.lineno}: raise SystemExit"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in EXITS:
            yield f"line {node.lineno}: {ast.unparse(node.func)}()"


def test_every_import_contract_holds(repository: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))",
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_library_is_found() -> None:
    assert len(library_modules()) > 10


@pytest.mark.parametrize("module", library_modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_outside_the_command_line_prints_or_exits(module: Path) -> None:
    assert list(calls_that_end_or_print(ast.parse(module.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "text", ["print(1)", "import sys\nsys.exit(2)", "raise SystemExit", "raise SystemExit(3)", "exit()"]
)
def test_the_scan_sees_prints_and_exits(text: str) -> None:
    assert list(calls_that_end_or_print(ast.parse(text)))


def dangers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"line {node.lineno}: {name}" for name in names if name.split(".")[0] in DANGEROUS)
        if isinstance(node, ast.Attribute) and node.attr == "memmap":
            yield f"line {node.lineno}: memmap"
        if isinstance(node, ast.keyword):
            is_pickle = node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
            yield from [f"line {node.value.lineno}: {node.arg}"] * (is_pickle or node.arg == "mmap_mode")


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_or_mapped_into_memory(module: Path) -> None:
    assert list(dangers(ast.parse(module.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from pickle import loads", "import mmap", "np.memmap(x)", "np.load(x, allow_pickle=True)"],
)
def test_the_scan_sees_pickles_and_maps(text: str) -> None:
    assert list(dangers(ast.parse(text)))
