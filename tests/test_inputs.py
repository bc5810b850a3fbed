"""Many inputs: folders, patterns, lists on standard input; their order, their duplicates, and what they cost."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.checkpoints import find_checkpoints
from convsv.checkpoints._natural import natural_key
from convsv.checkpoints.patterns import is_pattern, matching_checkpoints
from convsv.cli import _output, app
from convsv.cli._names import LONGEST, listed_names
from convsv.errors import UnknownFormatError, UsageError
from convsv.results import LayerReport

Make = Callable[..., None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make(here: Path) -> Make:
    """Make checkpoints of one small convolution each, the later ones of larger norm."""
    counter = iter(range(1, 100_000))

    def make(*names: str) -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            save_file({"a.weight": np.full((2, 2, 3, 3), next(counter), np.float32)}, name)

    return make


def convsv(*args: str, given: bytes = b"") -> Any:
    return CliRunner().invoke(app, list(args), input=given)


def reported(*args: str, given: bytes = b"", code: int = 0) -> list[str]:
    """Return the paths of the checkpoints in a report on some inputs, in order."""
    result = convsv("layers", *args, "--format", "json", "--quiet", given=given)
    assert result.exit_code == code, result.stderr
    return [checkpoint["path"] for checkpoint in json.loads(result.stdout)["checkpoints"] if checkpoint["layers"]]


# -------------------------------------------------------------------------------------------------------------- order


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["run2/a", "run10/a", "epoch=2-step=20", "epoch=2-step=100", "epoch=10-step=1", "e", "1", "01", "2", "x²"]
    order = ["01", "1", "2", "e", "epoch=2-step=20", "epoch=2-step=100", "epoch=10-step=1", "run2/a", "run10/a", "x²"]
    assert sorted(names, key=natural_key) == order
    assert sorted(["9" * 5000, "1" + "0" * 5000], key=natural_key) == ["9" * 5000, "1" + "0" * 5000]


@given(st.lists(st.text(alphabet="a0129/._-é٣²"), unique=True))
def test_any_names_have_an_order(names: list[str]) -> None:
    order = sorted(names, key=natural_key)
    names.reverse()
    assert sorted(names, key=natural_key) == order


def test_a_folder_and_a_pattern_are_in_the_order_of_the_run(make: Make) -> None:
    make(*(f"run/epoch_{n}.safetensors" for n in (10, 9, 2, 100, 1)))
    order = [f"run/epoch_{n}.safetensors" for n in (1, 2, 9, 10, 100)]
    assert reported("run") == order
    assert reported("run/epoch_*.safetensors") == order
    assert [os.fspath(path) for path in find_checkpoints("run")] == order


def test_a_trajectory_is_compared_and_drawn_in_order(make: Make) -> None:
    make(*(f"run/epoch_{n}.safetensors" for n in (1, 2, 9, 10, 100)))  # norms grow in this order
    result = convsv("compare", "run/*", "--method", "none", "--format", "json", "--quiet")
    steps = json.loads(result.stdout)["comparison"]["steps"]
    assert [step["new"] for step in steps] == [f"run/epoch_{n}.safetensors" for n in (2, 9, 10, 100)]
    ratios = [layer["ratio"]["lower"] for step in steps for layer in step["layers"]]
    assert all(ratio > 1 for ratio in ratios)
    pytest.importorskip("matplotlib")
    assert convsv("plot", "run", "--kind", "heatmap", "-o", "h.svg").exit_code == 0
    drawing = Path("h.svg").read_text(encoding="utf-8")
    places = [drawing.index(f"epoch_{n}.") for n in (1, 2, 9, 10, 100)]
    assert places == sorted(places)


def test_more_checkpoints_are_compared_than_files_may_be_open_at_first(make: Make) -> None:
    make(*(f"{n}.safetensors" for n in range(40)))
    command = f"ulimit -S -n 32; {sys.executable} -m convsv compare '*.safetensors' --method none --format tsv -q"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 40)


# ----------------------------------------------------------------------------------------------------------- patterns


def test_a_pattern_goes_through_folders(make: Make) -> None:
    make("runs/a/1.pt", "runs/a/2.safetensors", "runs/b/c/3.pt", "runs/.hidden/4.pt", "runs/a/.5.pt", "6.pt")
    Path("runs/a/notes.txt").write_text("no checkpoint", encoding="utf-8")
    assert reported("runs/**/*.pt") == ["runs/a/1.pt", "runs/b/c/3.pt"]
    assert reported("./runs/*/*") == ["./runs/a/1.pt", "./runs/a/2.safetensors", "./runs/b/c/3.pt"]
    assert reported("runs/**") == ["runs/a/1.pt", "runs/a/2.safetensors", "runs/b/c/3.pt"]
    assert reported("runs/.hid*/*") == ["runs/.hidden/4.pt"]
    assert reported("runs/[!b]/?.pt") == ["runs/a/1.pt"]
    assert reported(f"{Path.cwd()}/runs/*/1.pt") == [f"{Path.cwd()}/runs/a/1.pt"]
    Path("deep").mkdir()
    os.chdir("deep")
    assert reported("../*.pt") == ["../6.pt"]


def test_a_pattern_follows_no_links_in_circles(make: Make) -> None:
    make("runs/a/1.pt")
    Path("runs/a/up").symlink_to(Path.cwd() / "runs")
    Path("runs/a/self").symlink_to(Path.cwd() / "runs/a/self")
    assert reported("runs/**/*.pt") == reported("runs/**") == ["runs/a/1.pt"]


def test_a_file_whose_name_looks_like_a_pattern_wins(make: Make) -> None:
    make("a[1].pt", "a1.pt", "*.pt")
    assert reported("a[1].pt") == ["a[1].pt"]
    assert reported("*.pt") == ["*.pt"]
    assert reported("a[[]1].pt") == ["a[1].pt"]


def test_shards_of_one_checkpoint_are_one(make: Make, sample_checkpoints: Path) -> None:
    shutil.copytree(sample_checkpoints / "digits-sharded", "run/sharded")
    make("run/1.safetensors")
    assert reported("run/*") == ["run/1.safetensors", "run/sharded"]
    assert reported("run/**") == ["run/1.safetensors", "run/sharded"]
    assert reported("run/**/*.json") == ["run/sharded/model.safetensors.index.json"]
    assert reported("run/*/*") == ["run/sharded/model.safetensors.index.json"]


def test_a_pattern_that_matches_nothing_is_usage(make: Make) -> None:
    make("a.pt")
    result = convsv("layers", "b*.pt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == ["error: b*.pt: no file matches this pattern"]
    assert reported("b*.pt", "a.pt", code=2) == ["a.pt"]
    assert convsv("layers", "a**b/*").exit_code == 2
    Path("notes.txt").write_text("no checkpoint", encoding="utf-8")
    with pytest.raises(UnknownFormatError, match="1 other file"):
        matching_checkpoints("no*")


def test_what_cannot_be_listed_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("runs/a/1.pt", "runs/b/2.pt")
    scan = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path) == "runs/b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert reported("runs/*", code=3) == ["runs/a/1.pt"]


def test_what_is_no_pattern() -> None:
    assert not is_pattern("runs/epoch_2.pt")
    assert all(map(is_pattern, ("*", "a?", "[ab]")))


# --------------------------------------------------------------------------------------------------------- duplicates


def test_what_folders_patterns_and_lists_bring_comes_once(make: Make) -> None:
    make("run/1.pt", "run/2.pt")
    both = ["run/1.pt", "run/2.pt"]
    assert reported("run", "run/*", "./run/../run") == both
    assert reported("run/2.pt", "run") == ["run/2.pt", "run/1.pt"]
    assert reported("run", "run/1.pt", "run/1.pt") == both
    assert reported("run", "-", given=b"run/2.pt\n") == both


def test_what_is_named_twice_by_itself_comes_twice(make: Make) -> None:
    make("1.pt")
    assert reported("1.pt", "1.pt", "*.pt") == ["1.pt", "1.pt"]
    assert reported("-", given=b"1.pt\n1.pt\n") == ["1.pt", "1.pt"]
    assert convsv("compare", "1.pt", "1.pt", "--method", "none").exit_code == 0


def test_another_name_of_the_same_file_is_reported_too(make: Make) -> None:
    make("epoch_1.pt")
    Path("last.pt").symlink_to("epoch_1.pt")
    assert reported(".") == ["./epoch_1.pt", "./last.pt"]


# --------------------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("end", [b"\n", b"\0"], ids=["lines", "NUL"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open end"])
def test_a_list_is_taken_literally(make: Make, end: bytes, last: bool) -> None:
    names = ["-x.pt", "with blank.pt", "'quote.pt", "*.pt", "$HOME.pt", "run/2.pt"]
    make(*names)
    given = end.join(os.fsencode(name) for name in names) + (end if last else b"")
    assert reported("-", given=given) == names


def test_a_list_of_nul_names_may_hold_line_ends(make: Make) -> None:
    make("two\nlines.pt", "1.pt")
    assert reported("-", given=b"two\nlines.pt\x001.pt\x00") == ["two\nlines.pt", "1.pt"]


def test_a_list_names_folders_and_no_patterns(make: Make) -> None:
    make("run/1.pt", "run/2.pt")
    assert reported("-", given=b"\n\nrun\n\n") == ["run/1.pt", "run/2.pt"]
    assert reported("-", "run", given=b"run/*\n", code=2) == ["run/1.pt", "run/2.pt"]


def test_bad_entries_of_a_list_do_not_stop_the_others(make: Make) -> None:
    make("1.pt", "2.pt")
    Path("bad.pt").write_text("no checkpoint", encoding="utf-8")
    assert reported("-", given=b"missing.pt\n1.pt\nbad.pt\n\xff.pt\n2.pt\n", code=2) == ["1.pt", "2.pt"]


@pytest.mark.parametrize("given", [b"", b"\n\n", b"PK\x03\x04 and more", b'\x40\0\0\0\0\0\0\0{"a":1}', b"x" * 200_000])
def test_what_is_no_list_is_one_line(make: Make, given: bytes) -> None:
    make("1.pt")
    result = convsv("layers", "-", "1.pt", "--format", "jsonl", "-q", given=given)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout.splitlines()[0])["checkpoint"]["path"] == "1.pt"


def test_a_name_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def read1(self, count: int) -> bytes:
            self.asked += count
            return b"x" * count

    stream: Any = Endless()
    with pytest.raises(UsageError, match="no list of names"):
        list(listed_names(stream))
    assert stream.asked <= 4 * LONGEST


def test_names_are_yielded_while_the_list_is_written(make: Make) -> None:
    make("1.pt", "2.pt")
    command = [sys.executable, "-m", "convsv", "layers", "-", "--format", "jsonl", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"1.pt\n")
        process.stdin.flush()
        # The list is still open: the first row must come all the same, or this waits for ever.
        assert json.loads(process.stdout.readline())["checkpoint"]["path"] == "1.pt"
        rest, _ = process.communicate(b"2.pt\n")
    assert [json.loads(line).get("checkpoint", {}).get("path") for line in rest.splitlines()] == ["2.pt", None]
    assert process.returncode == 0


def test_a_reader_that_leaves_ends_a_long_run_quietly(make: Make) -> None:
    make(*(f"{n}.pt" for n in range(30)))
    command = f"{sys.executable} -m convsv layers '*.pt' --format jsonl | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (len(done.stdout.splitlines()), done.stderr.count("error")) == (1, 0)


def test_a_list_is_never_written_over(make: Make) -> None:
    make("1.pt", "2.json")
    before = Path("2.json").read_bytes()
    result = convsv("layers", "-", "-o", "2.json", given=b"1.pt\n2.json\n")
    assert (result.exit_code, Path("2.json").read_bytes()) == (2, before)
    assert "is to be read and written" in result.stderr
    assert convsv("layers", ".", "-o", "2.json").exit_code == 2


def test_clip_and_geometry_files_take_no_list(make: Make) -> None:
    make("1.pt")
    for args in (["clip", "-", "--max-norm", "1", "-o", "out.pt"], ["layers", "-", "--write-geometry", "g.toml"]):
        result = convsv(*args, given=b"1.pt\n")
        assert result.exit_code == 2
        assert "list" in result.stderr
    assert convsv("clip", "?.pt", "--max-norm", "1", "-o", "out.pt", "-q").exit_code == 0


@pytest.mark.parametrize("verb", ["analyze", "circulant", "bounds", "check", "report"])
def test_every_verb_takes_them(make: Make, verb: str) -> None:
    make("run/1.pt", "run/2.pt", "3.pt")
    more = {"check": ["--max-norm", "1e9"], "report": ["-o", "r.jsonl"]}.get(verb, ["-o", "r.jsonl"])
    result = convsv(verb, "run/*.pt", "-", *more, "-q", "--size", "4", given=b"3.pt\n")
    assert result.exit_code == 0, result.stderr
    if verb != "check":
        last = json.loads(Path("r.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        assert [c["path"] for c in last["summary"]["checkpoints"]] == ["run/1.pt", "run/2.pt", "3.pt"]
        assert last["summary"]["layers"] == 3


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers' reports are in memory as each checkpoint is complete."""
    counts: list[int] = []
    plain = _output.Outputs.checkpoint

    def checkpoint(self: _output.Outputs, done: Any) -> None:
        plain(self, done)
        gc.collect()
        counts.append(sum(type(thing) is LayerReport for thing in gc.get_objects()))

    monkeypatch.setattr(_output.Outputs, "checkpoint", checkpoint)
    return counts


@pytest.mark.parametrize("form", ["jsonl", "tsv", "csv"])
def test_rows_are_not_kept(make: Make, alive: list[int], form: str) -> None:
    make(*(f"{n}.pt" for n in range(6)))
    assert convsv("layers", "*.pt", "--format", form, "-q").exit_code == 0
    assert alive[1:] == [alive[1]] * 5


@pytest.mark.parametrize("args", [["--format", "json"], ["--format", "tsv", "--sort", "name"], ["-o", "r.md"]])
def test_what_is_written_whole_is_kept(make: Make, alive: list[int], args: list[str]) -> None:
    make(*(f"{n}.pt" for n in range(6)))
    assert convsv("layers", "*.pt", *args, "-q").exit_code == 0
    assert alive[-1] - alive[0] == 5


def test_what_is_missing_is_said_although_nothing_is_kept(here: Path) -> None:
    for n in range(3):
        save_file({"a.weight": np.full((2, 2, 3, 3), np.nan, np.float32)}, f"{n}.pt")
    result = convsv("analyze", "*.pt", "--format", "jsonl")
    assert result.exit_code == 0
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines() if "no norm" in line] == [
        f"{n}.pt" for n in range(3)
    ]
    assert "3 layers with assumed geometry" in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["summary"]["unavailable"] >= 3
