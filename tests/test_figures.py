"""Tables of docs/performance.md that are made of recorded figures."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import figures
import gpu

ALONE = [{"name": "--device cpu", "seconds": 2.0}, {"name": "--devices cpu:2", "seconds": 1.0}]
MACHINE = {"cpu": "a CPU", "cores": 2, "torch_threads": 1, "gpu": None}


def a_file(kind, cases, *, note="", gpu=None, **about):
    of = {"machine": MACHINE | {"gpu": gpu}, "versions": {"torch": "2.13"}, "date": "2026-01-02", "note": note}
    return of | {"command": "a command", "kind": kind, "cases": cases, "about": about}


def test_the_page_is_what_the_committed_files_give():
    page = figures.PAGE.read_text()
    assert figures.page_with_tables(page) == page, "run: python tests/benchmarks/figures.py write"
    named = {path for path, _ in _blocks(page)}
    assert named == {path.stem for path in figures.FOLDER.iterdir()}
    assert all("| plain PyTorch, fp32 |" in table for _, table in _blocks(page))


def _blocks(page):
    parts = page.split("<!-- figures: ")[1:]
    return [(part.partition(" ")[0], part.partition("<!-- end -->")[0]) for part in parts]


def test_a_table_says_the_command_and_the_circumstances():
    found = list(figures.lines(a_file("devices", ALONE, note="busy")))
    assert found[0] == "    a command"
    assert found[2] == "2 cores of a CPU, 1 thread; torch 2.13; 2026-01-02; busy."
    assert found[-1] == "| `--devices cpu:2` | 1 | 2.00 |"
    assert list(figures.lines(a_file("devices", ALONE, gpu="an H200")))[2] == "an H200; torch 2.13; 2026-01-02."


def test_speed_and_graphs_of_models():
    plain = {"name": "plain PyTorch", "precision": "fp32", "kernels": "eager", "cpu_seconds": 3.0}
    plain |= {"pairs_per_second": 1.5, "speedup": 1.0, "share_of_peak": 0.5, "error_mean": 0.0, "error_max": 0.0}
    ours = plain | {"name": "avarc", "kernels": "torch", "speedup": 2.0, "error_mean": 1e-6, "error_max": 2e-6}
    graph = {"precision": "bf16", "kernels": "torch", "pairs": 2, "segments": 6, "failed": ""}
    graph |= {"eager_seconds": 0.004, "replay_seconds": 0.001, "speedup": 4.0}
    graphs = [graph, graph | {"failed": "it waits"}]
    rows = list(figures.lines(a_file("models", [plain, ours | {"cpu_seconds": 1.0}], device="cpu", graphs=graphs)))
    assert "| plain PyTorch, fp32 | 1.5 | 1.00 | 1.00 | 50% |  |" in rows
    assert "| avarc, fp32, torch | 1.5 | 2.00 | 3.00 | 50% | 1.0e-06 / 2.0e-06 |" in rows
    assert "| bf16, torch | 2 | 6 | 4.00 | 1.00 | 4.00 |" in rows
    assert "| bf16, torch | 2 | 6 | not recorded: it waits |  |  |" in rows


def test_operations_have_one_row_a_shape():
    torch_case = {"op": "swiglu", "shape": "M=1", "dtype": "bfloat16", "name": "torch", "seconds": 0.002}
    torch_case |= {"error": 1e-3, "allowed": 2e-3, "failed": "", "mismatch": ""}
    triton = torch_case | {"name": "triton", "seconds": 0.001, "error": 3e-3, "mismatch": "element 0"}
    missing = torch_case | {"name": "flash-attn", "seconds": None, "failed": "not installed"}
    rows = list(figures.lines(a_file("operations", [triton, torch_case, missing])))
    assert rows[-1] == "| `swiglu` | M=1 | bfloat16 | 1 | 2 | 3.0e-03 / 2.0e-03 WRONG |"


def test_a_command_is_recorded_with_what_it_printed():
    command = [*"avarc bench --quick --rounds 1 --precision fp32 --kernels torch --device cpu --json".split()]
    found = figures.record(command, note="a test")
    assert found["command"] == " ".join(command[:-1]) and found["format"] == 1 and found["seconds"] > 0
    assert [case["kernels"] for case in found["cases"]] == ["eager", "torch"]
    assert found["about"]["shape"] == "2:64:2" and found["versions"]["torch"]
    assert json.loads(json.dumps(found)) == found and list(figures.lines(found))


def test_kernels_that_are_wrong_are_recorded_and_a_command_that_fails_is_an_error(tmp_path):
    script = tmp_path / "s.py"
    script.write_text('print(\'{"figures": [], "wrong": 1}\')\nraise SystemExit(1)')
    assert figures.record(["python", str(script)])["about"]["wrong"] == 1
    assert gpu.measure(("kernels", f"python {script}", 60), tmp_path).startswith("1 of our implementations")
    assert json.loads((tmp_path / "kernels.json").read_text())["kind"] == "operations"
    assert "non-zero exit status" in gpu.measure(("x", f"python {tmp_path}/none.py", 60), tmp_path)


@pytest.mark.parametrize("quick", [True, False])
def test_the_plan_of_a_gpu_takes_15_minutes_at_most_and_has_commands_that_exist(quick):
    lines = list(gpu.plan("cpu", quick=quick))
    assert all(command.partition(" ")[0] in ("avarc", "python") and " --json" in command for _, command, _ in lines)
    assert len({name for name, _, _ in lines}) == len(lines)
