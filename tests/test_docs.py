"""Docs that cannot lie: generated parts match the code, shown output is real, examples run, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import catalogue
import convsv
import sessions
import shortcuts
import trained
from convsv.cli import app
from convsv.geometry import ORIGINS

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "sample_checkpoints" / "README.md"]
)
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
WANTED = re.findall(r"^convsv .*$", README, re.MULTILINE)
MEASURED = ("output", "shortcuts")
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def relative_links(document: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target]


@pytest.mark.parametrize("name", [name for name in catalogue.PARTS if name not in MEASURED])
def test_the_catalogue_is_current(name: str) -> None:
    made = catalogue.PARTS[name][1]()
    assert catalogue.current(name) == [made] * len(catalogue.PARTS[name][0]), "run `make docs`"


def assert_alike(shown: str, printed: str) -> None:
    """Another machine's BLAS may round the last digit otherwise: words must agree exactly, numbers nearly."""
    assert NUMBER.sub("#", shown).split() == NUMBER.sub("#", printed).split(), "run `make docs`"
    assert [float(n) for n in NUMBER.findall(shown)] == pytest.approx(
        [float(n) for n in NUMBER.findall(printed)], rel=2e-3
    )


@pytest.mark.parametrize("name", MEASURED)
def test_measured_parts_show_what_is_measured(name: str) -> None:
    (shown,) = catalogue.current(name)
    assert_alike(shown, catalogue.PARTS[name][1]())


def test_every_shortcut_of_the_readme_is_outside_the_certified_norm() -> None:
    for found in shortcuts.measured():
        assert not found.norm.lower * (1 - 1e-6) <= found.gives <= found.norm.upper * (1 + 1e-6), found.done


def test_what_the_readme_says_of_a_trained_network_is_so(shared_checkpoints: Path) -> None:
    said = re.search(
        r"the matrix gives (\S+) to (\S+) of the norm, and ten power iterations stay up to (\d+) %", README
    )
    assert said is not None
    matrix, missing = [], []
    for name, kernel in trained.resnet20(shared_checkpoints).items():
        block = re.match(r"layer(\d)\.(\d\.conv1)?", name)
        size = 32 >> max(0, int(block[1]) - 1 - (block[2] == "0.conv1")) if block else 32
        geometry = trained.at_size(name, kernel, size).geometry
        report = convsv.analyze(kernel, geometry)[0]
        iterated = convsv.bounds(kernel, geometry, names=["farnia2019"])["farnia2019"]
        assert report.norm is not None
        assert report.norm_at_size is not None
        matrix.append(shortcuts.weight_matrix(kernel.transpose(2, 3, 1, 0)) / report.norm.lower)
        missing.append(1 - iterated.value / report.norm_at_size.lower)  # type: ignore[union-attr]
    assert len(matrix) == 19
    assert (f"{min(matrix):.2f}", f"{max(matrix):.2f}") == (said[1], said[2])
    assert f"{100 * max(missing):.0f}" == said[3]


@pytest.mark.parametrize("document", sessions.DOCUMENTS)
def test_sessions_print_what_they_show(document: str, tmp_path: Path) -> None:
    shown = (REPOSITORY / document).read_text(encoding="utf-8")
    assert_alike(shown, sessions.replayed(shown, tmp_path))


def test_the_gate_of_the_tutorial_lets_pass_with_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (limits,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (step,) = re.findall(r"- run: convsv (.*)", text)
    (tmp_path / "sample_checkpoints").symlink_to(REPOSITORY / "sample_checkpoints")
    monkeypatch.chdir(tmp_path)
    for limit, code in (("10.0", 0), ("5.0", 1)):
        (tmp_path / "pyproject.toml").write_text(limits.replace("10.0", limit), encoding="utf-8")
        assert CliRunner().invoke(app, shlex.split(step)).exit_code == code
        assert (tmp_path / "norms.xml").exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("\n")[0])
def test_the_python_examples_run(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    exec(compile(example, "README.md", "exec"), {})


@pytest.fixture
def a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in a folder with what the README's commands name."""
    copies = {"model.pt": "digits-module.pt", "a.pt": "digits.pt", "b.safetensors": "digits.safetensors"}
    copies |= {"model.keras": "digits.keras", "weights.pt": "digits.pt"}
    for name, sample in copies.items():
        (tmp_path / name).write_bytes((REPOSITORY / "sample_checkpoints" / sample).read_bytes())
    (tmp_path / "facts.toml").write_text('[layers."down"]\nstride = 2\n', encoding="utf-8")
    net = "from torch.nn import Conv2d, Sequential\n\ndef build():\n    return Sequential(Conv2d(3, 8, 3))\n"
    (tmp_path / "my_net.py").write_text(net, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("a_users_folder")
def test_the_commands_that_are_often_wanted_run() -> None:
    for line in WANTED:
        done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert done.exit_code == 0, f"{line}\n{done.stderr}"
        assert done.stdout or " -o " in line


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2
    assert len(WANTED) >= 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    assert [link for link in relative_links(document) if not (document.parent / link).exists()] == []


def test_the_index_lists_every_page_and_the_readme_links_to_it() -> None:
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}
    assert set(relative_links(REPOSITORY / "docs" / "README.md")) >= pages
    assert "docs/README.md" in relative_links(REPOSITORY / "README.md")


def test_the_page_on_geometry_names_every_origin() -> None:
    page = (REPOSITORY / "docs" / "geometry.md").read_text(encoding="utf-8")
    assert all(f"| `{origin}` |" in page for origin in ORIGINS)


def test_the_readme_opens_with_the_two_commands() -> None:
    opening = "\n".join(README.splitlines()[:20])
    assert "make demo" in opening
    assert "make test" in opening


def test_the_readme_and_the_demo_show_the_same_command() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    sample = re.search(r"^SAMPLE := (\S+)$", makefile, re.MULTILINE)
    assert sample is not None
    assert catalogue.SHOWN[-1] == sample[1]
    assert f"convsv {' '.join(catalogue.SHOWN[:-1])}" in makefile


def test_the_changelog_has_an_entry_for_this_version() -> None:
    assert convsv.__version__ in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_make_help_lists_every_public_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True, env=environment)
    assert re.findall(r"make ([a-z]+)", done.stdout) == phony[1].split()
