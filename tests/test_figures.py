"""Tables of the documentation that are made of recorded figures."""

import json
import re

import figures
import gpu
import pytest
from figure_tables import Table, show, shown, wants_json

ALONE = [{"name": "--device cpu", "seconds": 2.0}, {"name": "--devices cpu:2", "seconds": 1.0}]
PERFORMANCE = (figures.DOCS / "performance.md").read_text()
MACHINE = {"cpu": "a CPU", "cores": 2, "torch_threads": 1, "gpu": None}


def a_file(kind, cases, *, note="", gpu=None, **about):
    of = {"machine": MACHINE | {"gpu": gpu}, "versions": {"torch": "2.13"}, "date": "2026-01-02", "note": note}
    return of | {"command": "a command", "kind": kind, "cases": cases, "about": about}


SECONDS = Table([("", ""), ("seconds", ".2f"), ("of it", ".0%")], [["plain", 2.004, None], ["ours", 1, 0.5]])


def test_the_pages_are_what_the_committed_files_give(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["figures.py", "check"])
    assert figures.main() == 0, capsys.readouterr().out
    named = {name for page in figures.DOCS.glob("*.md") for _, name in figures.BLOCK.findall(page.read_text())}
    assert {path.stem for path in figures.FOLDER.iterdir()} <= named
    assert all(path.stat().st_size < 80_000 for path in figures.FOLDER.iterdir())


PLAN = [("avarc, fp32", None), ("avarc, bf16", None), ("avarc, bf16+fp32", None)]
SUMMARY = {
    "with AMX": [("paper-plan-d16-cpu", *case) for case in PLAN],
    "Zen 4": [("paper-plan-d16-zen4", *case) for case in PLAN],
    "limited to AVX2": [
        ("paper-plan-d16-avx2", f"avarc, {name}", None) for name in ("fp32", "int16", "int16+fp32", "int8")
    ],
    "Zen 3": [("paper-plan-d16-zen3", f"avarc, {name}", None) for name in ("fp32", "int16+fp32")],
    "H200": [
        ("gpu-d16", "fp32", "torch"),
        ("gpu-d16", "bf16", "triton"),
        ("gpu-d16", "fp8", "triton"),
        ("gpu-rar-b", "bf16", "triton"),
    ],
}
"""Words of a row of the summary -> file, name or precision, and kernels of the speedups that the row repeats."""


@pytest.mark.parametrize("machine", SUMMARY)
def test_the_summary_of_speedups_repeats_the_tables(machine):
    row = rf"^\|[^|]*{machine}[^|]*\|([^|]*\|[^|]*)\|"
    (cells,) = re.findall(row, PERFORMANCE, re.MULTILINE)
    numbers = re.findall(r"(?<![\w.-])\d+(?:\.\d+)?", cells)
    for number, (file, name, kernels) in zip(numbers, SUMMARY[machine], strict=True):
        cases = json.loads((figures.FOLDER / f"{file}.json").read_text())["cases"]
        (case,) = (c for c in cases if name in (c["name"], c.get("precision")) and c.get("kernels") == kernels)
        assert f"{case['speedup']:.{len(number.partition('.')[2])}f}" == number


def test_the_benchmarks_of_tables_can_be_recorded():
    for page in figures.DOCS.glob("*.md"):
        for block in figures.BLOCK.finditer(page.read_text()):
            for script in re.findall(r"^    .*python (tests/benchmarks/\w+\.py)", block[0], re.MULTILINE):
                assert "json" in (figures.ROOT / script).read_text(), script


def test_typed_figures_stay_until_their_file_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "DOCS", tmp_path)
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- typed: x -->\n\nmeasured: 3\n\n<!-- end -->\nb\n")
    before = page.read_text()
    assert call("write", monkeypatch) == call("check", monkeypatch) == 0
    assert page.read_text() == before and "page.md: x is typed" in capsys.readouterr().out
    figures.write(a_file("devices", ALONE), tmp_path / "x.json")
    assert call("check", monkeypatch) == 1
    assert call("write", monkeypatch) == call("check", monkeypatch) == 0
    assert page.read_text().startswith("a\n<!-- figures: x -->\n\n    a command\n")
    assert "measured: 3" not in page.read_text() and page.read_text().endswith("| 1 | 2.00 |\n\n<!-- end -->\nb\n")
    page.write_text(page.read_text().replace("2.00", "2.01"))
    assert call("check", monkeypatch) == 1


def call(what, monkeypatch):
    monkeypatch.setattr("sys.argv", ["figures.py", what])
    return figures.main()


def test_a_benchmark_shows_its_tables_in_two_ways(capsys):
    words = ["x.py", "3", "--json"]
    assert wants_json(words) and words == ["x.py", "3"] and not wants_json(words)
    show(SECONDS, as_json=True, images=3)
    printed = json.loads(capsys.readouterr().out)
    assert printed["tables"][0]["rows"] == [["plain", 2.004, None], ["ours", 1, 0.5]] and printed["images"] == 3
    show(SECONDS, as_json=False)
    text = capsys.readouterr().out.splitlines()
    assert text == ["|  | seconds | of it |", "|---|---|---|", "| plain | 2.00 |  |", "| ours | 1.00 | 50 % |"]
    assert list(figures.lines(a_file("tables", printed["tables"])))[4:] == text


def test_titles_stand_above_tables_that_are_not_alone(capsys):
    show(Table([("a", "")], [[1]], "First"), Table([("b", ",d")], [[1000]], "Second"), as_json=False)
    expected = "First:\n\n| a |\n|---|\n| 1 |\n\nSecond:\n\n| b |\n|---|\n| 1,000 |\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("cell", "how", "text"),
    [(3.81e-7, ".1e", "3.8e-7"), (1e10, ".0e", "1e+10"), (2.07, ".0%", "207 %"), ("x", ".1f", "x")],
)
def test_numbers_are_written_as_in_the_docs(cell, how, text):
    assert shown(cell, how) == text


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
    assert "| plain PyTorch, fp32 | 1.5 | 1.00 | 1.00 | 50 % |  |" in rows
    assert "| avarc, fp32, torch | 1.5 | 2.00 | 3.00 | 50 % | 1.0e-6 / 2.0e-6 |" in rows
    assert "| bf16, torch | 2 | 6 | 4.00 | 1.00 | 4.00 |" in rows
    assert "| bf16, torch | 2 | 6 | not recorded: it waits |  |  |" in rows


def test_a_roofline_has_one_row_a_job():
    parts = [{"name": "products", "seconds": 0.06, "at_peak": 0.03}, {"name": "host", "seconds": 0.04, "at_peak": 0.0}]
    job = {"pairs": 4, "seconds": 0.1, "parts": parts}
    rows = list(figures.lines(a_file("roofline", [{"precision": "fp32", "kernels": "torch", "jobs": [job]}])))
    assert rows[-3:] == ["|  | pairs | ms | of peak | products | host |", "|---|---|---|---|---|---|",
                         "| fp32, torch | 4 | 100 | 30 % | 60 %, at 50 % | 40 % |"]  # fmt: skip


def test_the_plans_of_a_demo():
    plan = {"plan": "exhaustive", "accuracy": 0.98889, "accuracy_95": [0.9718, 0.9956], "tokens_scored_per_image": 1030}
    plan["agreement_with_exhaustive"] = 1.0
    cases = {"exhaustive": plan, "staged": plan | {"plan": "3:3,5:1", "tokens_scored_per_image": 343.2}}
    assert list(figures.lines(a_file("demo", cases)))[-2:] == [
        "| exhaustive | 98.89 % | 97.2 % to 99.6 % | 1,030 |  |",
        "| staged `3:3,5:1` | 98.89 % | 97.2 % to 99.6 % | 343 (33 %) | 100.0 % |",
    ]


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


def test_variables_before_a_command_are_those_of_its_environment(tmp_path):
    script = tmp_path / "s.py"
    script.write_text("import json, os; print(json.dumps({'tables': [], 'said': os.environ['OMP_NUM_THREADS']}))")
    found = figures.record(["OMP_NUM_THREADS=3", "python", str(script), "--json"])
    assert found["about"] == {"said": "3"} and found["machine"]["torch_threads"] == 3
    assert found["command"] == f"OMP_NUM_THREADS=3 python {script}"


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
