"""Versions, pins, packages and the import contract agree with each other."""

import re
import sys
from pathlib import Path

import pytest

import avarc_cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]


def normal(requirement):
    """The normalized name of a requirement's package."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_the_version_is_a_release_number_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", avarc_cli.__version__)
    assert TOOLS["hatch"]["version"]["path"] == "avarc_cli/__init__.py"


def test_citation_and_changelog_are_of_this_version():
    cited = dict(re.findall(r"^(version|date-released): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    released = re.search(r"^## \[(\d.*)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert (cited["version"], cited["date-released"]) == released.groups()
    assert cited["version"] == avarc_cli.__version__


def test_everything_that_make_installs_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {normal(line) for line in lines if re.match(r"[\w.-]+==[\w.]+( ; python_version (<|>=) \"3\.11\")?$", line)}
    assert {normal(line) for line in lines if not line.startswith("#")} == pins
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["docs"]]
    assert {normal(requirement) for requirement in wanted} <= pins


def test_every_module_is_in_the_import_contract():
    contracts = {contract["id"]: contract for contract in TOOLS["importlinter"]["contracts"]}
    layers, no_printing = contracts["layers"], contracts["no-printing"]
    layered = {name.strip(" \n()") for layer in layers["layers"] for name in layer.split("|")}
    modules = {f"avarc_cli.{path.stem}" for path in (ROOT / "avarc_cli").iterdir() if path.suffix == ".py"}
    modules |= {f"avarc_cli.{path.parent.name}" for path in (ROOT / "avarc_cli").glob("*/__init__.py")}
    modules.remove("avarc_cli.__init__")
    assert modules <= layered
    may_print = {f"avarc_cli.{name}" for name in ("__main__", "cli", "commands", "console", "tables")}
    assert modules - may_print <= set(no_printing["source_modules"])


@pytest.mark.parametrize("package", ["avarc_cli", "kernels/avarc_kernels"])
def test_both_packages_are_typed_and_installed(package):
    assert (ROOT / package / "py.typed").is_file()
    assert package in TOOLS["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_the_kernels_folder_is_no_package():
    """Run from a checkout it would hide Hugging Face's `kernels`."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_public_names_are_loaded_when_asked_for():
    assert all(getattr(avarc_cli, name) for name in avarc_cli.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        avarc_cli.nonsense  # noqa: B018
