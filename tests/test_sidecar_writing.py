"""Geometry files that convsv writes: read again they say what was known, and leave open what was guessed."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convsv.checkpoints._sidecar_writing import Described, literal_glob, sidecar_text
from convsv.checkpoints.sidecar import read_sidecar
from convsv.cli import app
from convsv.geometry import ORIGINS, Geometry, GeometryFacts, Origin, resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def convsv(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def layers(*args: str) -> list[dict[str, Any]]:
    result = convsv("layers", *args, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)["checkpoints"][0]["layers"]
    return found


def described(name: str, geometry: Geometry) -> Described:
    return Described(name, "conv2d", (8, 4, 3, 3), geometry)


def read_back(folder: Path, *layers: Described) -> Any:
    path = folder / "g.toml"
    path.write_text(sidecar_text(layers), encoding="utf-8", newline="\n")
    return read_sidecar(path)


KNOWN: list[tuple[str, GeometryFacts]] = [
    ("plain", GeometryFacts(56, 1, 1, "zeros", 1, 1, False)),
    ("different axes", GeometryFacts((56, 7), (2, 1), ((0, 1), (2, 2)), "reflect", (1, 3), 4, False)),
    ("transposed", GeometryFacts((5, 6), 2, (1, 0), "zeros", 1, 2, True, (1, 0))),
    ("same with a stride", GeometryFacts(7, 2, "same", "zeros", 1, 1, False)),
    ("valid", GeometryFacts(7, 2, "valid", "circular", 1, 1, False)),
]


@pytest.mark.parametrize("facts", [facts for _, facts in KNOWN], ids=[name for name, _ in KNOWN])
def test_known_geometry_comes_back_as_facts(facts: GeometryFacts, tmp_path: Path) -> None:
    geometry = resolve((3, 3), [("stored", facts)])
    again = resolve((3, 3), [("sidecar", read_back(tmp_path, described("conv", geometry)).facts("conv", 2))])
    names = [name for name, origin in geometry.origin.items() if origin == "stored"]
    assert {name: getattr(again, name) for name in names} == {name: getattr(geometry, name) for name in names}
    assert {again.origin[name] for name in names} == {"sidecar"}


@pytest.mark.parametrize("origin", ORIGINS)
def test_guesses_are_comments_and_everything_else_is_a_fact(origin: Origin, tmp_path: Path) -> None:
    geometry = resolve((3, 3), [(origin, GeometryFacts(9, 3, 2, "reflect", 2, 2, True, 1))])
    stated = read_back(tmp_path, described("conv", geometry)).facts("conv", 2)
    is_guess = origin in ("inferred", "assumed")
    assert (stated == GeometryFacts()) is is_guess
    assert (tmp_path / "g.toml").read_text(encoding="utf-8").count(f"  # {origin}") == 8


def test_comments_become_the_same_geometry_once_they_are_facts(tmp_path: Path) -> None:
    geometry = resolve((3, 3), [])
    text = sidecar_text([described("conv", geometry)])
    path = tmp_path / "g.toml"
    uncommented = "\n".join(line.removeprefix("# ") for line in text.split("[layers")[1].splitlines())
    path.write_text(f"[layers{uncommented}\n", encoding="utf-8")
    stated = read_sidecar(path).facts("conv", 2)
    assert stated == GeometryFacts((32, 32), 1, "same", "zeros", 1, 1, False)


def test_same_stays_a_word_because_its_amounts_depend_on_the_size(tmp_path: Path) -> None:
    geometry = resolve((3, 3), [("stored", GeometryFacts(stride=2, padding="same"))])
    assert geometry.padding == ((0, 1), (0, 1))
    stated = read_back(tmp_path, described("conv", geometry)).facts("conv", 2)
    assert resolve((3, 3), [("sidecar", stated), ("option", GeometryFacts(size=7))]).padding == ((1, 1), (1, 1))


NAMES = [
    "conv", "a.b", 'a"b', "a\\b",
    "back\\\\slash\\", "a*", "a?b", "a[b]", "[*]", "[!x]", "a]b", "]", "[", "[[]]", "a[]b",
    "tab\tnewline\nreturn\r", "\x00\x1b[31m\x7f\x85\u202e", "ü/日本/🐟", "'''", "#", "", " ", "a = 1", "a\u2028b",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_every_name_comes_back_alone(name: str, tmp_path: Path) -> None:
    geometry = resolve((3, 3), [("stored", GeometryFacts(stride=2))])
    others = [other for other in NAMES if other != name]
    stated = read_back(tmp_path, described(name, geometry))
    assert stated.facts(name, 2).stride == 2
    assert [other for other in others if stated.facts(other, 2).stride is not None] == []
    assert stated.unmatched(others) == (literal_glob(name),)
    text = (tmp_path / "g.toml").read_text(encoding="utf-8")
    assert all(character == "\n" or character.isprintable() for character in text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.text('ab[]*?!\\"', max_size=6))
def test_any_name_is_a_literal_glob(first: str, second: str) -> None:
    geometry = resolve((3, 3), [("stored", GeometryFacts(stride=2))])
    for name in (first, second):
        assert fnmatchcase(name, literal_glob(name))
        document = tomllib.loads(sidecar_text([described(name, geometry)]))
        assert list(document["layers"]) == [literal_glob(name)]
    assert fnmatchcase(second, literal_glob(first)) == (first == second)


def test_a_name_that_toml_cannot_hold_is_matched_by_a_wildcard(tmp_path: Path) -> None:
    geometry = resolve((3, 3), [("stored", GeometryFacts(stride=2))])
    assert read_back(tmp_path, described("a\ud800b", geometry)).facts("a\ud800b", 2).stride == 2


def test_calls_of_one_layer_share_a_table_and_keep_open_what_differs(tmp_path: Path) -> None:
    calls = [resolve((3, 3), [("traced", GeometryFacts(n, 2, 1, "zeros", 1, 1, False))]) for n in (8, 16)]
    stated = read_back(tmp_path, *(described("conv", call) for call in calls)).facts("conv", 2)
    assert (stated.size, stated.stride) == (None, 2)
    text = (tmp_path / "g.toml").read_text(encoding="utf-8")
    assert "# size = [8, 8] " in text
    assert "# size = [16, 16] " in text
    assert "traced, which differs from call to call" in text


def test_ten_thousand_layers_are_written_read_and_looked_up(tmp_path: Path) -> None:
    geometry = resolve((3, 3), [("stored", GeometryFacts(56, 1, 1, "zeros", 1, 1, False))])
    names = [f"stages.{n}.conv" for n in range(10_000)]
    stated = read_back(tmp_path, *(described(name, geometry) for name in names))
    assert all(stated.facts(name, 2).stride == 1 for name in names)
    assert stated.unmatched(names) == ()


# ---------------------------------------------------------------------------------------------------- the command line


def test_a_twin_gets_the_geometry_that_its_whole_module_holds(sample_checkpoints: Path, tmp_path: Path) -> None:
    sidecar = str(tmp_path / "g.toml")
    first = layers(str(sample_checkpoints / "digits-module.pt"), "--write-geometry", sidecar)
    bare, twin = (
        {row["name"]: row["geometry"] for row in layers(str(sample_checkpoints / "digits.pt"), *args)}
        for args in ([], ["--geometry", sidecar])
    )
    whole = {row["name"]: row["geometry"] for row in first}
    assert whole.keys() == twin.keys()
    assert bare != twin
    for name, geometry in whole.items():
        for key, origin in geometry["origin"].items():
            assert twin[name][key] == geometry[key]
            assert twin[name]["origin"][key] == ("sidecar" if origin == "stored" else origin), key


def test_reading_it_again_gives_the_same_geometry_and_writing_again_the_same_file(
    sample_checkpoints: Path, tmp_path: Path
) -> None:
    model, sidecar = str(sample_checkpoints / "digits.keras"), tmp_path / "g.toml"
    before = layers(model, "--write-geometry", str(sidecar))
    text = sidecar.read_text(encoding="utf-8")
    after = layers(model, "--geometry", str(sidecar), "--write-geometry", str(sidecar), "--force")
    for one, other in zip(before, after, strict=True):
        origins, again = one["geometry"].pop("origin"), other["geometry"].pop("origin")
        assert one["geometry"] == other["geometry"]
        assert {key for key, origin in origins.items() if origin == "assumed"} == {
            key for key, origin in again.items() if origin == "assumed"
        }
    assert sidecar.read_text(encoding="utf-8") == text.replace("# stored", "# sidecar")


def test_the_users_own_numbers_take_the_place_of_comments(tmp_path: Path) -> None:
    model, sidecar = tmp_path / "m.safetensors", tmp_path / "g.toml"
    save_file({"a.weight": np.ones((4, 3, 3, 3), np.float32)}, model)
    layers(str(model), "--write-geometry", str(sidecar))
    sidecar.write_text(sidecar.read_text(encoding="utf-8").replace("# stride = 1 ", "stride = 2 "), encoding="utf-8")
    (row,) = layers(str(model), "--geometry", str(sidecar))
    assert (row["geometry"]["stride"], row["geometry"]["origin"]["stride"]) == ([2, 2], "sidecar")
    assert row["geometry"]["origin"]["size"] == "assumed"


def test_a_file_that_is_there_stays_without_force(tmp_path: Path) -> None:
    model, sidecar = tmp_path / "m.pt", tmp_path / "g.toml"
    torch.save({"a.weight": torch.ones(4, 3, 3, 3)}, model)
    sidecar.write_text("mine", encoding="utf-8")
    result = convsv("layers", str(model), "--write-geometry", str(sidecar))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {sidecar}: is there already; give another name, or --force to replace it\n"
    assert sidecar.read_text(encoding="utf-8") == "mine"
    assert convsv("layers", str(model), "--write-geometry", str(sidecar), "--force").exit_code == 0
    assert '[layers."a"]' in sidecar.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["m.pt", "same.pt"])
def test_the_checkpoint_is_never_written_over(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(4, 3, 3, 3)}, "m.pt")
    Path("same.pt").symlink_to("m.pt")
    before = Path("m.pt").read_bytes()
    result = convsv("layers", "m.pt", "--write-geometry", target, "--force")
    assert result.exit_code == 2
    assert Path("m.pt").read_bytes() == before


def test_nothing_is_written_about_several_or_unreadable_checkpoints(tmp_path: Path) -> None:
    model, broken, sidecar = tmp_path / "m.pt", tmp_path / "b.pt", tmp_path / "g.toml"
    torch.save({"a.weight": torch.ones(4, 3, 3, 3)}, model)
    broken.write_bytes(b"nothing at all")
    for models, code in (([model, model], 2), ([broken], 3)):
        result = convsv("layers", *map(str, models), "--write-geometry", str(sidecar))
        assert result.exit_code == code
        assert not sidecar.exists()


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    model = tmp_path / "m.pt"
    torch.save({"a.weight": torch.ones(4, 3, 3, 3)}, model)
    result = convsv("layers", str(model), "--write-geometry", str(tmp_path / "none" / "g.toml"))
    assert result.exit_code == 5
    assert len(result.stderr.splitlines()) == 2  # the count of assumed geometry too


# --------------------------------------------------------------------------------------------------- real checkpoints


def test_bit_identical_twins_report_the_same_with_the_geometry_of_one(shared_checkpoints: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    sidecar = str(tmp_path / "g.toml")
    whole = layers(str(shared_checkpoints / "ultraface-rfb320.onnx"), "--write-geometry", sidecar)
    twin = layers(str(shared_checkpoints / "ultraface-rfb320.pth"), "--geometry", sidecar)
    assert len(whole) == len(twin) == 52
    by_name = {row["name"]: row for row in twin}
    for row in whole:
        other = by_name[row["name"]]
        origins = other["geometry"].pop("origin")
        row["geometry"].pop("origin")
        assert {key: row[key] for key in ("kind", "shape", "geometry")} == {
            key: other[key] for key in ("kind", "shape", "geometry")
        }
        assert set(origins.values()) == {"sidecar"}


def test_a_pickled_network_of_2017_leaves_only_its_size_open(shared_checkpoints: Path) -> None:
    rows = layers(str(shared_checkpoints / "vdsr-whole.pth"))
    guesses = {
        key for row in rows for key, origin in row["geometry"]["origin"].items() if origin in ("inferred", "assumed")
    }
    assert len(rows) == 20
    assert guesses == {"size"}
