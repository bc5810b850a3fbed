"""The geometry file: what it may say, what it may not, and which table wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from convsv.checkpoints.sidecar import Sidecar, read_sidecar
from convsv.errors import GeometryError, UsageError
from convsv.geometry import PADDINGS, GeometryFacts

EXAMPLE = """
[defaults]
size = [32, 32]
padding_mode = "zeros"
[layers."layer2.*.conv1"]      # globs on layer names; later tables win
stride = 2                      # an integer or one a spatial axis
size = [56, 56]
"""


def sidecar(folder: Path, text: str) -> Sidecar:
    path = folder / "geometry.toml"
    path.write_text(text, encoding="utf-8")
    return read_sidecar(path)


def test_example_of_the_contract(tmp_path: Path) -> None:
    read = sidecar(tmp_path, EXAMPLE)
    assert read.facts("layer2.0.conv1", 2) == GeometryFacts(size=(56, 56), stride=2, padding_mode="zeros")
    assert read.facts("layer1.0.conv1", 2) == GeometryFacts(size=(32, 32), padding_mode="zeros")


VALUES: list[tuple[str, str, Any]] = [
    ("stride", "2", 2),
    ("stride", "[2, 1]", (2, 1)),
    ("size", "56", 56),
    ("size", "[56, 7]", (56, 7)),
    ("dilation", "[1, 3]", (1, 3)),
    ("padding", "0", 0),
    ("padding", "[1, 2]", (1, 2)),
    ("padding", "[[0, 1], [2, 3]]", ((0, 1), (2, 3))),
    ("padding", '"same"', "same"),
    ("padding", '"valid"', "valid"),
    ("groups", "4", 4),
    ("transposed", "true", True),
    ("transposed", "false", False),
    ("output_padding", "[0, 1]", (0, 1)),
    *[("padding_mode", f'"{mode}"', mode) for mode in PADDINGS],
]


@pytest.mark.parametrize(("key", "text", "value"), VALUES)
def test_value_is_read(tmp_path: Path, key: str, text: str, value: object) -> None:
    facts = sidecar(tmp_path, f'[layers."conv"]\n{key} = {text}\n').facts("conv", 2)
    assert getattr(facts, key) == value
    assert type(getattr(facts, key)) is type(value)


def test_every_fact_can_be_stated() -> None:
    assert {key for key, _, _ in VALUES} == set(vars(GeometryFacts()))


WRONG: list[tuple[str, str]] = [
    ("stride", "0"),
    ("stride", "-1"),
    ("stride", "1.5"),
    ("stride", "true"),
    ("stride", '"2"'),
    ("stride", "[]"),
    ("stride", "[1, 1, 1, 1]"),
    ("stride", "[1, 0]"),
    ("stride", "[[1, 1]]"),
    ("size", "0"),
    ("size", "99999999999999999999"),
    ("dilation", "0"),
    ("padding", "-1"),
    ("padding", '"full"'),
    ("padding", "[[1, 2, 3]]"),
    ("padding", "[[1, -2]]"),
    ("padding", "{ before = 1 }"),
    ("padding_mode", '"mirror"'),
    ("padding_mode", "0"),
    ("groups", "0"),
    ("groups", "[1, 1]"),
    ("transposed", "1"),
    ("output_padding", "-1"),
    ("max_norm", "0"),
    ("max_norm", "-1.0"),
    ("max_norm", "inf"),
    ("max_norm", "nan"),
    ("max_norm", "true"),
    ("max_norm", '"1"'),
]


@pytest.mark.parametrize("table", ["defaults", 'layers."a.conv"'])
@pytest.mark.parametrize(("key", "text"), WRONG)
def test_impossible_value_is_refused_by_name(tmp_path: Path, table: str, key: str, text: str) -> None:
    with pytest.raises(GeometryError) as caught:
        sidecar(tmp_path, f"[{table}]\n{key} = {text}\n")
    message = str(caught.value)
    assert "geometry.toml" in message
    assert f"{key} in [{table}] must be" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[defaults]\nstrides = 2", "did you mean stride?"),
        ('[layers."a"]\npading = 2', "did you mean padding?"),
        ('[layers."a"]\nkernel = 2', "known: size, stride"),
        ("[layer.a]\nstride = 2", "did you mean layers?"),
        ("stride = 2", "known: defaults, layers"),
        ("layers = 3", 'write [layers."name"]'),
        ("layers.conv = 3", "must be a table"),
        ("defaults = [1]", "must be a table"),
    ],
)
def test_unknown_key_or_table_is_refused_with_advice(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(GeometryError) as caught:
        sidecar(tmp_path, text)
    assert words in str(caught.value)
    assert "geometry.toml" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"[defaults\n",
        b"a = 1\na = 2\n",
        b"\xff\xfe",
        b"\x00",
        b"size = 0x\n",
        b"a = " + b"[" * 20000,
        b"a = 1" + b"0" * 5000,
        b"# " + b"x" * (1 << 24),
    ],
    ids=["open table", "key twice", "not utf-8", "nul", "bad number", "too deep", "too many digits", "too large"],
)
def test_content_that_is_no_toml_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "geometry.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_sidecar(path)
    assert "geometry.toml" in str(caught.value)


def test_missing_file_and_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_sidecar(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="not a regular file"):
        read_sidecar(tmp_path)


def test_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        read_sidecar(tmp_path / "pipe")


def test_empty_file_says_nothing(tmp_path: Path) -> None:
    assert sidecar(tmp_path, "").facts("conv", 2) == GeometryFacts()


def test_later_tables_win_field_by_field(tmp_path: Path) -> None:
    read = sidecar(
        tmp_path, '[layers."*"]\nstride = 2\ngroups = 2\n[layers."a.*"]\nstride = 3\n[layers."*.b"]\ndilation = 4\n'
    )
    assert read.facts("a.b", 2) == GeometryFacts(stride=3, groups=2, dilation=4)
    assert read.facts("c", 2) == GeometryFacts(stride=2, groups=2)


def test_defaults_come_first_wherever_they_stand(tmp_path: Path) -> None:
    read = sidecar(tmp_path, '[layers."a"]\nstride = 3\n[defaults]\nstride = 2\n')
    assert (read.facts("a", 2).stride, read.facts("b", 2).stride) == (3, 2)


def test_globs_mind_the_case(tmp_path: Path) -> None:
    read = sidecar(tmp_path, '[layers."Conv*"]\nstride = 3\n')
    assert (read.facts("Conv1", 2).stride, read.facts("conv1", 2).stride) == (3, None)


def test_default_for_other_numbers_of_axes_is_not_applied(tmp_path: Path) -> None:
    read = sidecar(tmp_path, "[defaults]\nsize = [32, 32]\nstride = 2\npadding = [[1, 1], [1, 1]]\n")
    assert read.facts("conv1d", 1) == GeometryFacts(stride=2)
    assert read.facts("conv3d", 3) == GeometryFacts(stride=2)
    assert read.facts("conv2d", 2).size == (32, 32)


@pytest.mark.parametrize("key", ["size", "stride", "padding", "dilation", "output_padding"])
def test_table_with_a_wrong_number_of_axes_names_layer_and_table(tmp_path: Path, key: str) -> None:
    read = sidecar(tmp_path, f'[layers."conv*"]\n{key} = [3, 3]\n')
    with pytest.raises(GeometryError) as caught:
        read.facts("conv1", 1)
    assert str(caught.value).endswith(
        f'geometry.toml: conv1: {key} in [layers."conv*"] must be one value or 1 (found (3, 3))'
    )


def test_max_norm_of_the_last_table_that_states_one(tmp_path: Path) -> None:
    read = sidecar(tmp_path, '[defaults]\nmax_norm = 2\n[layers."a*"]\nmax_norm = 1.5\n[layers."ab"]\nstride = 2\n')
    assert [read.max_norm(name) for name in ("ab", "a", "b")] == [1.5, 1.5, 2.0]
    assert sidecar(tmp_path, "").max_norm("a") is None


def test_globs_without_a_layer_are_told(tmp_path: Path) -> None:
    read = sidecar(tmp_path, '[layers."a*"]\nstride = 2\n[layers."b*"]\nstride = 2\n')
    assert read.unmatched(["a1", "c"]) == ("b*",)
    assert read.unmatched([]) == ("a*", "b*")
