"""docs/notebook.ipynb runs without an error, and what is committed are its outputs, without a machine's paths.

`python tests/test_notebook.py` runs it and stores the outputs.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


def executed(folder):
    """The notebook with new outputs; it writes to the folder only. Raises: CellExecutionError."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    here = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, record_timing=False, resources=here).execute()
    notebook.metadata.language_info = {"name": "python"}  # without the version of this machine
    return notebook


@pytest.mark.slow
def test_the_notebook_runs_and_every_result_is_shown(tmp_path, monkeypatch):
    for name, value in {"IPYTHONDIR": tmp_path, "JUPYTER_RUNTIME_DIR": tmp_path, "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    committed = nbformat.read(NOTEBOOK, as_version=4)
    pairs = zip(executed(tmp_path).cells, committed.cells, strict=True)
    for new, old in pairs:
        if new.cell_type == "code":
            assert kinds(new.outputs) == kinds(old.outputs), new.source


def kinds(outputs):
    """Of each output; what was printed counts as one, which may arrive in several parts."""
    each = [(output.output_type, sorted(output.get("data", ()))) for output in outputs]
    return [kind for i, kind in enumerate(each) if kind[0] != "stream" or i == 0 or each[i - 1] != kind]


def test_what_is_committed_is_small_and_has_no_paths_of_a_machine():
    text = NOTEBOOK.read_text("utf-8")
    assert len(text) < 200_000
    assert not re.search(r"/(?:home|root|tmp|work|usr|Users)/|\\Users\\", re.sub(r'"image/png": "[^"]*"', "", text))


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), NOTEBOOK)
