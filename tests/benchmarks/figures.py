"""Figures of benchmarks: recorded as JSON, and the tables of the documentation that are made of them.

    python tests/benchmarks/figures.py record [--note TEXT] NAME [VARIABLE=VALUE...] COMMAND...
    python tests/benchmarks/figures.py write            # the tables again, from the files that the pages name
    python tests/benchmarks/figures.py check            # exit status 1 if a page is not what they give

COMMAND is one whose --json prints figures: a benchmark of this folder that shows its tables by `figure_tables`,
paper_plan.py, avarc bench (also with --roofline), avarc demo, or python -m avarc_kernels.bench. A file of docs/figures/
has them with the command, the date, the machine and the versions; gpu.py writes those of a machine with a GPU. A page
has a line `<!-- figures: NAME -->` where a table belongs, and `<!-- end -->` where it ends. Between `<!-- typed: NAME
-->` and `<!-- end -->` are figures typed by hand, until there is a file of that name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from figure_tables import Table, head, markdown, row, shown

from avarc_cli.words import counted

FORMAT = 1
DOCS = ROOT / "docs"
FOLDER = DOCS / "figures"
BLOCK = re.compile(r"<!-- (figures|typed): (\S+) -->\n.*?<!-- end -->", re.DOTALL)
CASES = {"figures": "operations", "cases": "plan", "tables": "tables", "plans": "demo"}
"""Key of the cases in what a command prints -> kind."""
VARIABLE = re.compile(r"[A-Z_]+=\S*")
Figures = dict[str, Any]


def record(command: Sequence[str], *, note: str = "", timeout: float | None = None) -> Figures:
    """Run a command with --json, and return what it printed in the format of a file.

    Args:
        note: on the circumstances. timeout: in seconds.
    Raises: subprocess.SubprocessError when it prints no figures, or takes longer; what it said is on stderr.
    """
    started = time.monotonic()
    done = run(command, timeout=timeout)
    if not done.stdout.strip():
        done.check_returncode()
    cases = _cases(json.loads(done.stdout))  # also of kernels that exceed their bounds: exit status 1
    return described(command, cases, seconds=time.monotonic() - started, note=note)


def run(command: Sequence[str], *, timeout: float | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run it; "avarc" and "python" are this interpreter's. Raises: subprocess.TimeoutExpired."""
    given, (name, *words) = _environment(command)
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH"))))
    environ = os.environ | given | {"PYTHONPATH": path}
    words = [sys.executable, *(["-m", "avarc_cli"] if name == "avarc" else []), *words]
    return subprocess.run(words, stdout=subprocess.PIPE, timeout=timeout, env=environ, cwd=ROOT, check=False)


def _environment(command: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What a command begins with of the form VARIABLE=VALUE, and the rest of it."""
    words = [*itertools.dropwhile(VARIABLE.fullmatch, command)]
    return dict(word.split("=", 1) for word in command[: len(command) - len(words)]), words


def described(command: Sequence[str], cases: Figures, *, seconds: float, note: str = "") -> Figures:
    """The content of a file: the cases of the command that ends now, and their circumstances."""
    import torch  # only here, because the tables are written without it

    from avarc_cli import environment

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = int(_environment(command)[0].get("OMP_NUM_THREADS", torch.get_num_threads()))
    return {
        "format": FORMAT,
        "command": shlex.join(word for word in command if word != "--json"),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seconds": round(seconds, 1),
        "note": note,
        "machine": environment.machine() | {"torch_threads": threads, "gpu": gpu},
        "versions": environment.versions(),
        **cases,
    }


def _cases(printed: dict[str, Any]) -> dict[str, Any]:
    """kind, the cases, and what else was printed."""
    if "report" in printed:
        about = dict(printed["report"])
        return {"kind": "models", "cases": about.pop("results"), "about": about}
    if "roofline" in printed:
        about = dict(printed["roofline"])
        return {"kind": "roofline", "cases": about.pop("results"), "about": about}
    key = next(key for key in CASES if key in printed)
    about = dict(printed)
    return {"kind": CASES[key], "cases": about.pop(key), "about": about}


def write(figures: Figures, path: Path) -> None:
    path.write_text(json.dumps(figures, indent=1) + "\n")


def page_with_tables(text: str) -> str:
    """The page with every table as its file gives it."""

    def block(match: re.Match[str]) -> str:
        path = FOLDER / f"{match[2]}.json"
        if match[1] == "typed" and not path.exists():
            return match[0]
        figures = json.loads(path.read_text())
        return f"<!-- figures: {match[2]} -->\n\n" + "\n".join(lines(figures)) + "\n\n<!-- end -->"

    return BLOCK.sub(block, text)


def lines(figures: Figures) -> Iterator[str]:
    """Markdown: the command, the circumstances, and the tables."""
    machine, versions, note = figures["machine"], figures["versions"], figures["note"]
    cores, threads = counted(machine["cores"], "core"), counted(machine["torch_threads"], "thread")
    place = machine["gpu"] or f"{cores} of {machine['cpu']}, {threads}"
    yield f"    {figures['command']}"
    yield ""
    yield f"{place}; torch {versions['torch']}; {figures['date']}{f'; {note}' if note else ''}."
    yield ""
    yield from TABLES[figures["kind"]](figures)


def _models(figures: Figures) -> Iterator[str]:
    """Of `avarc bench`."""
    plain, on_cpu = figures["cases"][0]["cpu_seconds"], figures["about"]["device"] == "cpu"
    in_cpu_time = ["in CPU time"] if on_cpu else []
    yield from head("", "pairs/s", "better execution", *in_cpu_time, "of peak", "error per token, mean / max, nats")
    for case in figures["cases"]:
        way = f"{case['name']}, {case['precision']}" + ("" if case["kernels"] == "eager" else f", {case['kernels']}")
        rate = case["pairs_per_second"]
        speed = [f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", f"{case['speedup']:.2f}"]
        speed += [f"{plain / case['cpu_seconds']:.2f}"] if on_cpu else []
        speed.append(shown(case["share_of_peak"], ".0%"))
        errors = [shown(case[key], ".1e") for key in ("error_mean", "error_max")]
        yield row(way, *speed, " / ".join(errors) if case["error_max"] else "")
    if graphs := figures["about"].get("graphs"):
        yield ""
        yield from _graphs(graphs)


def _graphs(graphs: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield from head("one pass", "pairs", "segments", "launched, ms", "as a CUDA graph, ms", "speedup")
    for graph in graphs:
        what = (f"{graph['precision']}, {graph['kernels']}", str(graph["pairs"]), str(graph["segments"]))
        if graph["failed"]:
            yield row(*what, f"not recorded: {graph['failed']}", "", "")
        else:
            times = [f"{1e3 * graph[key]:.2f}" for key in ("eager_seconds", "replay_seconds")]
            yield row(*what, *times, f"{graph['speedup']:.2f}")


def _operations(figures: Figures) -> Iterator[str]:
    """Of `python -m avarc_kernels.bench`: one row a shape and dtype, one column an implementation."""
    cases: dict[tuple[str, str, str], dict[str, Any]] = {}
    for case in figures["cases"]:
        cases.setdefault((case["op"], case["shape"], case["dtype"]), {})[case["name"]] = case
    names = list(dict.fromkeys(case["name"] for case in figures["cases"] if case["seconds"] is not None))
    yield from head("operation", "shape", "dtype", *(f"{name}, ms" for name in names), "error of ours / allowed")
    for (op, shape, dtype), of_case in cases.items():
        ours = of_case.get("triton") or of_case["torch"]
        error = ours["failed"] or f"{ours['error']:.1e} / {ours['allowed']:.1e}{' WRONG' if ours['mismatch'] else ''}"
        times = [_milliseconds(of_case[name]) if name in of_case else "" for name in names]
        yield row(f"`{op}`", shape, dtype, *times, error)


def _milliseconds(case: dict[str, Any]) -> str:
    return "" if case["seconds"] is None else f"{1e3 * case['seconds']:.3g}"


def _plan(figures: Figures) -> Iterator[str]:
    """Of tests/benchmarks/paper_plan.py."""
    images = figures["about"]["images"]
    with_memory = any(case.get("bytes") for case in figures["cases"])  # older files have none
    names = ("same prediction", "same survivors of every stage", *["memory beyond the models, MiB"] * with_memory)
    yield from head("", "seconds per image", "speedup", *names)
    for case in figures["cases"]:
        more = [f"{case[key]} of {images}" if key in case else "" for key in ("same_prediction", "same_survivors")]
        if with_memory:
            more.append(f"{case['bytes'] / 2**20:,.0f}")
        yield row(case["name"], f"{case['seconds_per_image']:.3g}", f"{case['speedup']:.2f}", *more)


def _devices(figures: Figures) -> Iterator[str]:
    """Of tests/benchmarks/gpu.py: one process, and one on each device."""
    yield from head("", "seconds", "speedup")
    alone = figures["cases"][0]["seconds"]
    for case in figures["cases"]:
        yield row(f"`{case['name']}`", f"{case['seconds']:.3g}", f"{alone / case['seconds']:.2f}")


def _roofline(figures: Figures) -> Iterator[str]:
    """Of `avarc bench --roofline`: one row a precision and number of pairs, one column a part."""
    parts = [part["name"] for part in figures["cases"][0]["jobs"][0]["parts"]]
    yield from head("", "pairs", "ms", "of peak", *parts)
    for case in figures["cases"]:
        for job in case["jobs"]:
            at_peak = sum(part["at_peak"] for part in job["parts"]) / job["seconds"]
            cells = [f"{1e3 * job['seconds']:,.0f}", shown(at_peak, ".0%"), *map(_part, _shares(job))]
            yield row(f"{case['precision']}, {case['kernels']}", str(job["pairs"]), *cells)


def _shares(job: dict[str, Any]) -> Iterator[tuple[float, float]]:
    """Of each part: its share of the job's time, and what it takes at the peak as a share of its own time."""
    for part in job["parts"]:
        yield part["seconds"] / job["seconds"], part["at_peak"] / part["seconds"] if part["seconds"] else 0.0


def _part(shares: tuple[float, float]) -> str:
    of_time, of_peak = (shown(share, ".0%") for share in shares)
    return f"{of_time}, at {of_peak}" if shares[1] else of_time


def _demo(figures: Figures) -> Iterator[str]:
    """Of `avarc demo`: what each plan achieves, and its tokens as a share of exhaustive scoring's."""
    plans = figures["cases"]
    yield from head("plan", "accuracy", "95 % interval", "tokens scored per image", "agreement with exhaustive")
    all_tokens = plans["exhaustive"]["tokens_scored_per_image"]
    for name, plan in plans.items():
        tokens, interval = plan["tokens_scored_per_image"], (shown(end, ".1%") for end in plan["accuracy_95"])
        cells = [shown(plan["accuracy"], ".2%"), " to ".join(interval), f"{tokens:,.0f}", ""]
        if name != plan["plan"]:
            name += f" `{plan['plan']}`"
            cells[2] += f" ({shown(tokens / all_tokens, '.0%')})"
            cells[3] = shown(plan["agreement_with_exhaustive"], ".1%")
        yield row(name, *cells)


def _tables(figures: Figures) -> Iterator[str]:
    """Of a benchmark that shows them by `figure_tables`."""
    return markdown([Table(**case) for case in figures["cases"]])


TABLES = {
    "models": _models,
    "operations": _operations,
    "plan": _plan,
    "devices": _devices,
    "roofline": _roofline,
    "demo": _demo,
    "tables": _tables,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("name", help="of the file")
    recording.add_argument("--note", default="", help="on the circumstances")
    recording.add_argument("command", nargs=argparse.REMAINDER)
    commands.add_parser("write")
    commands.add_parser("check")
    asked = parser.parse_args()
    if asked.what == "record":
        write(record(asked.command, note=asked.note), FOLDER / f"{asked.name}.json")
        return 0
    return _write() if asked.what == "write" else _check()


def _write() -> int:
    for page in DOCS.glob("*.md"):
        page.write_text(page_with_tables(page.read_text()))
    return 0


def _check() -> int:
    """Name the pages that differ, and the figures that are typed."""
    differ = 0
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        if page_with_tables(text) != text:
            differ = 1
            print(f"{page.name}: not what the files give; run: python tests/benchmarks/figures.py write")
        for kind, name in BLOCK.findall(text):
            if kind == "typed":
                print(f"{page.name}: {name} is typed")
    return differ


if __name__ == "__main__":
    sys.exit(main())
