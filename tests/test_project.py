"""The project's own promises: commands in the documents exist, set-up is what the README says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from suture.cli import main
from suture.recipes import shipped_recipes

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]


LINT = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
)


def _console(text: str) -> Iterator[str]:
    """Lines after `$ ` in console blocks, continuations joined, comments cut."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield from line[2:].partition("   #")[0].split(" && ")


def _suture_lines(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in _console(text) if line.startswith("suture ")]


def _check(words: list[str]) -> None:
    """The command and every option of `words` exist."""
    assert words[0] in main.COMMANDS, words
    command = main.load(words.pop(0))
    if hasattr(command, "list_commands"):
        name = words.pop(0)
        command = command.get_command(None, name)
        assert command is not None, name
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert options <= known | {"--help", "-h"}, options - known


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_exist(document: str) -> None:
    for words in _suture_lines((ROOT / document).read_text(encoding="utf-8")):
        if words != ["--help"]:
            _check(words)


def test_the_readme_shows_commands() -> None:
    lines = _suture_lines((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {words[0] for words in lines} >= {"init", "plan", "run", "derive", "apply", "revert"}


@pytest.mark.parametrize("recipe", sorted(shipped_recipes()))
def test_commands_in_recipe_headers_exist(recipe: str) -> None:
    header = shipped_recipes()[recipe].read_text(encoding="utf-8").split("\nname:")[0]
    header = header.replace("\\\n#", "")  # a command that goes on in the next line
    found = re.findall(r"^#\s+(suture [a-z]+.*?)(?:\s{2,}\(.*)?$", header, re.MULTILINE)
    assert found
    for line in found:
        _check(shlex.split(line)[1:])


@pytest.mark.parametrize("verb", sorted(main.COMMANDS))
def test_every_command_has_help_and_json(verb: str) -> None:
    command = main.load(verb)
    leaves = [command]
    if hasattr(command, "list_commands"):
        leaves = [command.get_command(None, name) for name in command.list_commands(None)]
    for leaf in leaves:
        assert leaf.help, f"{verb} {leaf.name}"
        options = {option for param in leaf.params for option in param.opts}
        assert "--json" in options, f"{verb} {leaf.name}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["setup", "demo", "test", "test-slow", "lint", "docs"])
def test_make_targets_set_up_first(target: str, tmp_path: Path) -> None:
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    done = subprocess.run(
        ["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    install = done.stdout.index("-c constraints.txt -e '.[dev]'")
    works = {"demo": "suture demo", "test": "-m pytest", "test-slow": "-m slow"}
    works |= {"lint": "lint-imports", "docs": "mkdocs build"}
    if target in works:
        assert done.stdout.index(works[target]) > install


def test_continuous_integration_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()


def test_constraints_fix_torch_and_cover_the_base() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert not [version for version in pins.values() if "+" in version or "/" in version]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    assert names <= pins.keys()
    assert not [line for line in project["dependencies"] if "==" in line]


def test_version_is_said_once() -> None:
    import suture

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == suture.__version__


def test_the_import_contract_bites(tmp_path: Path) -> None:
    """A checkpoint file that imports the command line is refused."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("shipped", "data")
    )
    shutil.copytree(ROOT / "src" / "suture" / "data", tmp_path / "src" / "suture" / "data")
    with (tmp_path / "src" / "suture" / "checkpoint" / "names.py").open("a") as file:
        file.write("\nimport suture.cli.terminal\n")
    done = subprocess.run(
        [sys.executable, "-c", LINT],
        cwd=tmp_path,
        env={"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "suture.checkpoint is not allowed to import suture.cli" in done.stdout


def test_error_codes_in_documents_are_unique() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (E\d{3}) \|", text, re.MULTILINE)
    assert len(rows) == len(set(rows))


def test_one_code_has_one_meaning_per_package() -> None:
    """A code stands for one trouble, so only one package (or the shared files) may raise it."""
    homes: dict[str, set[str]] = defaultdict(set)
    for file in (ROOT / "src" / "suture").rglob("*.py"):
        parts = file.relative_to(ROOT / "src" / "suture").parts
        home = parts[0] if len(parts) > 1 else "shared"
        for code in re.findall(r'SutureError\(\s*"(E\d{3})"', file.read_text(encoding="utf-8")):
            homes[code].add(home)
    shared = {"E701", "E702", "E703", "E704", "E705"}  # wrong values, wherever they are noticed
    homes = {code: places - {"patch"} if code < "E2" else places for code, places in homes.items()}
    clashes = {code: places for code, places in homes.items() if len(places) > 1}
    assert not {code: places for code, places in clashes.items() if code not in shared}
