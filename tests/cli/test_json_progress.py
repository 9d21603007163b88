"""AVARC_PROGRESS=json: progress of commands as lines for schedulers."""

import json
import math

from avarc_cli import console
from avarc_cli.cli import main
from avarc_cli.zoo.local_files import ASSETS

DIGITS = ASSETS / "digits" / "test"


def test_the_variable_chooses_json_progress_and_other_values_are_wrong(capsys, monkeypatch):
    monkeypatch.setenv("AVARC_PROGRESS", "json")
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", math.inf)
    image = str(next(DIGITS.glob("3/*")))
    assert main(["classify", image, "--workers", "0"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    tasks = [(line["task"], line["done"], line["total"]) for line in map(json.loads, lines)]
    assert tasks == [("encoding", 1, 1), ("classifying", 1, 1)]
    assert main(["--quiet", "classify", image, "--workers", "0"]) == 0
    assert not capsys.readouterr().err
    monkeypatch.setenv("AVARC_PROGRESS", "xml")
    assert main(["models"]) == 2
    assert "AVARC_PROGRESS is 'xml'" in capsys.readouterr().err
    monkeypatch.delenv("AVARC_PROGRESS")
    assert main(["--quiet", "models"]) == 0
