"""One page of each kind, with names that are markup."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from handmade_run import Line, write_run

from avarc_cli.cli import main
from avarc_cli.evaluation.protocol import find, read
from avarc_cli.evaluation.write_table import write_tables

DIGITS = Path(__file__).resolve().parents[2] / "avarc_cli" / "assets" / "digits" / "test"
MARKUP = '</script><script>document.body.dataset.failed = "name"</script>'


def many(folder: Path, *, classes: int, images: int, step: int = 1) -> Path:
    """A run: of every ten images of a class, seven right, two the next class, and one `step` further."""
    names = [f"kind {i}" for i in range(classes)]
    names[3] = MARKUP
    lines = []
    for i in range(images):
        label, turn = i % classes, i // classes % 10
        said = label if turn < 7 else (label + (1 if turn < 9 else step)) % classes
        path = f"{label}/{i}<b>.png"
        lines.append(Line(path, names[said], names[label], posterior=0.3 + 0.7 * (i % 97) / 97, tokens=100 + i % 13))
    return write_run(folder, lines, classes=names)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of 25 classes over the same images."""
    folder = tmp_path_factory.mktemp("runs")
    return [many(folder / f"run <i>{i}", classes=25, images=250, step=2 + i) for i in range(2)]


@pytest.fixture(scope="session")
def report(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(runs[0], tmp_path_factory.mktemp("report") / "page.html")


@pytest.fixture(scope="session")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 200 classes and 2,000 images."""
    return many(tmp_path_factory.mktemp("large") / "run", classes=200, images=2000, step=2)


@pytest.fixture(scope="session")
def large_report(large_run: Path) -> Path:
    return reported(large_run, large_run / "report.html")


def reported(run: Path, out: Path) -> Path:
    assert main(["-q", "report", str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def comparison(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison") / "page.html"
    assert main(["-q", "compare", *map(str, runs), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with their maps: two that are right and two that are wrong."""
    folder = tmp_path_factory.mktemp("gallery")
    for name in ("9/1038.png", "9/0254.png", "0/0078.png", "1/0021.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DIGITS / name, folder / "images" / name)
    out = folder / "page.html"
    assert main(["-q", "explain", str(folder / "images"), "--workers", "0", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a protocol of which nothing was run."""
    return write_tables(read(find("a-varc")), [], tmp_path_factory.mktemp("table"))[-1]


@pytest.fixture(params=["report", "comparison", "gallery", "table"])
def page(request: pytest.FixtureRequest) -> Path:
    """Each of them."""
    found: Path = request.getfixturevalue(request.param)
    return found
