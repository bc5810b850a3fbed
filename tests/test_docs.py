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
from convsv.cli import app
from convsv.geometry import ORIGINS

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "sample_checkpoints" / "README.md"]
)
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def relative_links(document: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target]


@pytest.mark.parametrize("name", [name for name in catalogue.PARTS if name != "output"])
def test_the_catalogue_is_current(name: str) -> None:
    made = catalogue.PARTS[name][1]()
    assert catalogue.current(name) == [made] * len(catalogue.PARTS[name][0]), "run `make docs`"


def assert_alike(shown: str, printed: str) -> None:
    """Another machine's BLAS may round the last digit otherwise: words must agree exactly, numbers nearly."""
    assert NUMBER.sub("#", shown).split() == NUMBER.sub("#", printed).split(), "run `make docs`"
    assert [float(n) for n in NUMBER.findall(shown)] == pytest.approx(
        [float(n) for n in NUMBER.findall(printed)], rel=2e-3
    )


def test_the_shown_output_is_what_the_command_prints() -> None:
    (shown,) = catalogue.current("output")
    assert_alike(shown, catalogue.output())


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


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


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
