"""How long `avarc app` takes to start with the digits model: until its page answers, until an example is classified.

Whole processes, one after the other, asked over HTTP as the page asks. The first is not counted: it puts files into the
page cache. CPU seconds are those of the process, until Ctrl-C has ended it. Results: docs/app.md.

usage: python tests/benchmarks/app_start.py [ROUNDS] [--json]
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from statistics import median
from urllib.parse import urlsplit

from figure_tables import Table, show, wants_json

COMMAND = [sys.executable, "-m", "avarc_cli", "app", "--port", "0"]
TIMEOUT = 300  # seconds of an answer
NAMES = ("seconds until the page answers", "seconds until an example is classified", "CPU seconds in all")


def asked(address: str, path: str, question: dict[str, str] | None = None) -> bytes:
    """The answer of the app. Raises: RuntimeError for a refusal."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
    body = None if question is None else json.dumps(question)
    connection.request("GET" if body is None else "POST", path, body, {"X-Avarc": "1"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status}, {answer.decode()}")
    return answer


def started() -> tuple[float, float, float]:
    """The numbers of NAMES, of one process."""
    began = time.perf_counter()
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip()).netloc
        asked(address, "/")
        page = time.perf_counter() - began
        example = json.loads(asked(address, "/api/state"))["examples"][0]
        [found] = json.loads(asked(address, "/api/classify", {"image": example["id"]}))
        prediction = time.perf_counter() - began
        assert found["name"] == example["label"]
        process.send_signal(signal.SIGINT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return page, prediction, usage.ru_utime + usage.ru_stime


def main(rounds: int, *, as_json: bool) -> None:
    started()
    measured = zip(NAMES, zip(*(started() for _ in range(rounds)), strict=True), strict=True)
    rows = [[name, median(each), max(each)] for name, each in measured]
    show(Table([("", ""), ("median", ".1f"), ("largest", ".1f")], rows), as_json=as_json, rounds=rounds)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, as_json=as_json)
