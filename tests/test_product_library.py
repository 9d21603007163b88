"""Which library multiplies float32 matrices: chosen once for a machine, recorded, and kept by runs that go on."""

import json
import os
import shutil
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import until

from avarc_cli import Options, load_classifier, product_library
from avarc_cli.bank import read as read_bank
from avarc_cli.cli import main
from avarc_cli.errors import UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.loading import ModelSpec, load_model, multiplying_by, with_bank
from avarc_cli.product_library import Comparison
from avarc_cli.sampling.folder import RECORD
from avarc_cli.zoo import paths
from avarc_cli.zoo.local_files import ASSETS
from avarc_kernels.linear import missing

CPU = torch.device("cpu")
SCHEDSTAT = Path("/proc/self/schedstat")
TELLS = SCHEDSTAT.exists() and not SCHEDSTAT.read_text().startswith("0 0")
OTHERS = [library for library in ("onednn", "avarc") if missing(library, torch.empty(0)) is None]
WORDS = {"onednn": "float32 products by oneDNN", "avarc": "float32 products by avarc"}
needs_onednn = pytest.mark.skipif("onednn" not in OTHERS, reason="this PyTorch has no oneDNN")


@pytest.fixture
def machine(monkeypatch):
    """A machine on which nothing is stored or set, and where oneDNN is twice as fast; counts the measurements."""
    measured = []
    shutil.rmtree(paths.products_folder(), ignore_errors=True)
    monkeypatch.delenv(product_library.VARIABLE)
    found = Comparison({"torch": (2.0, 4.0), "onednn": (1.0, 2.0)}, waiting=0.0)
    monkeypatch.setattr(product_library, "compare", lambda: measured.append(1) or found)
    yield measured
    shutil.rmtree(paths.products_folder(), ignore_errors=True)


@needs_onednn
def test_the_library_is_measured_once_for_a_machine(machine):
    assert [product_library.resolve("auto", CPU) for _ in range(3)] == ["onednn"] * 3
    assert len(machine) == 1
    (file,) = paths.products_folder().iterdir()
    for damaged in (b"", b'{"format": 1}', file.read_bytes().replace(b"4.0", b"-4.0")):
        file.write_bytes(damaged)
        assert product_library.resolve("auto", CPU) == "onednn"
    assert len(machine) == 4


@needs_onednn
def test_another_number_of_threads_is_measured_again(machine, monkeypatch):
    product_library.resolve("auto", CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    product_library.resolve("auto", CPU)
    assert len(machine) == 2


@needs_onednn
def test_another_set_of_instructions_is_measured_again(machine, monkeypatch):
    product_library.resolve("auto", CPU)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1000")
    product_library.resolve("auto", CPU)
    assert len(machine) == 2


@needs_onednn
@pytest.mark.parametrize("expected", ["onednn", "torch"])
def test_where_other_processes_disturb_the_measurement_the_rule_decides(machine, monkeypatch, expected):
    measure = product_library.compare
    monkeypatch.setattr(product_library, "compare", lambda: replace(measure(), waiting=0.4))
    monkeypatch.setattr(precisions, "onednn_is_faster", lambda x: expected == "onednn")
    assert [product_library.resolve("auto", CPU) for _ in range(2)] == [expected] * 2
    (file,) = paths.products_folder().iterdir()
    assert "waited" in product_library.choice().why and str(file) in product_library.choice().why
    assert len(machine) == 1


@needs_onednn
def test_what_an_earlier_version_measured_is_measured_again(machine):
    product_library.resolve("auto", CPU)
    (file,) = paths.products_folder().iterdir()
    kept = json.loads(file.read_bytes())
    kept["seconds"] = kept.pop("compared")["seconds"]
    file.write_text(json.dumps(kept))
    assert product_library.resolve("auto", CPU) == "onednn"
    assert len(machine) == 2


@pytest.mark.parametrize(
    ("wall", "cpu", "library"),
    [(0.5, 0.5, "onednn"), (0.96, 0.96, "torch"), (1.0, 1.0, "torch"), (0.5, 1.0, "torch"), (1.0, 0.5, "torch")],
)
def test_other_bits_than_torchs_need_a_clear_gain_by_both_clocks(wall, cpu, library):
    assert Comparison({"torch": (1.0, 1.0), "onednn": (wall, cpu)}, waiting=0.0).library == library


def test_the_fastest_of_several_is_used_and_doctor_names_them_all(machine, monkeypatch):
    found = Comparison({"torch": (1.0, 1.0), "onednn": (0.9, 0.9), "avarc": (0.5, 0.8)}, waiting=0.0)
    assert found.library == "avarc"
    monkeypatch.setattr(product_library, "compare", lambda: found)
    monkeypatch.setattr(product_library, "missing", lambda library, x: None)
    choice = product_library.choice()
    assert choice.picked == "avarc's own"
    assert choice.why == "measured: oneDNN 1.11 and avarc's own 1.25 times as fast as PyTorch's; used from 1.05 on"


def test_a_library_that_can_no_longer_run_is_not_chosen_and_refused_where_it_is_named(machine, monkeypatch):
    def no_compiler(library, x):
        return "it needs a C compiler" if library == "avarc" else None

    fastest = Comparison({"torch": (1.0, 1.0), "onednn": (2.0, 2.0), "avarc": (0.5, 0.5)}, waiting=0.0)
    monkeypatch.setattr(product_library, "compare", lambda: fastest)
    monkeypatch.setattr(product_library, "missing", lambda library, x: None)
    assert product_library.resolve("auto", CPU) == "avarc"
    monkeypatch.setattr(product_library, "missing", no_compiler)
    monkeypatch.setattr(precisions, "onednn_is_faster", lambda x: False)
    assert product_library.resolve("auto", CPU) == "torch"
    assert product_library.choice().picked == "PyTorch's own"
    assert product_library.choice().why.endswith("avarc's own: it needs a C compiler")
    with pytest.raises(UsageError, match="avarc's own products cannot run here"):
        product_library.resolve("avarc", CPU)


@pytest.mark.parametrize("library", ["torch", *OTHERS])
def test_what_the_environment_or_the_caller_says_is_not_measured(machine, monkeypatch, library):
    assert product_library.resolve(library, CPU) == library
    monkeypatch.setenv(product_library.VARIABLE, library.upper())
    assert product_library.resolve("auto", CPU) == library
    assert product_library.choice().why == "AVARC_PRODUCTS says so"
    assert not machine


def test_the_rule_and_other_devices_need_no_measurement(machine, monkeypatch):
    monkeypatch.setattr(precisions, "onednn_is_faster", lambda x: True)
    assert product_library.resolve("rule", CPU) == "onednn"
    assert product_library.resolve("auto", torch.device("cuda")) == "torch"
    assert product_library.without_measurement("auto") == "rule"
    assert product_library.without_measurement("torch") == "torch"
    assert not machine


def test_a_value_that_there_is_not_is_wrong_usage(monkeypatch, capsys):
    monkeypatch.setenv(product_library.VARIABLE, "blas")
    with pytest.raises(UsageError, match="blas"):
        product_library.resolve("auto", CPU)
    assert main(["doctor"]) == 2
    assert "there are auto, rule, torch, onednn, avarc" in " ".join(capsys.readouterr().err.split())


def test_all_libraries_are_timed_on_the_same_products(monkeypatch):
    monkeypatch.setattr(product_library, "SECONDS", 0)
    monkeypatch.setattr(product_library, "LINEARS", ((64, 32), (32, 64)))
    state = torch.get_rng_state()
    found = product_library.compare()
    assert list(found.seconds) == ["torch", *OTHERS]
    assert all(0 < clock < 10 for clocks in found.seconds.values() for clock in clocks)
    assert torch.equal(torch.get_rng_state(), state), "a seed that was set before gives other numbers now"


@needs_onednn
def test_a_thread_that_waits_disturbs_the_measurement(monkeypatch):
    monkeypatch.setattr(product_library, "SECONDS", 0)
    monkeypatch.setattr(product_library, "LINEARS", ((64, 32), (32, 64)))
    for after, disturbed in (({"1": 6, "2": 10**12}, True), ({"1": 5, "3": 10**12}, False), ({}, False)):
        waited = iter([{"1": 5, "2": 10**9}, after])  # thread 2 waits or ends, and thread 3 is new
        monkeypatch.setattr(product_library, "_waited", waited.__next__)
        assert product_library.compare().disturbed == disturbed


@pytest.mark.skipif(not TELLS, reason="the system does not tell how long threads wait for a core")
def test_threads_that_wait_for_a_core_are_noticed():
    cores, before, done = os.sched_getaffinity(0), sum(product_library._waited().values()), threading.Event()

    def work():
        while not done.is_set():
            zlib.crc32(bytes(1 << 22))  # without Python's lock

    threads = [threading.Thread(target=work) for _ in range(3)]
    os.sched_setaffinity(0, {min(cores)})  # threads inherit it
    try:
        for thread in threads:
            thread.start()
        until(lambda: sum(product_library._waited().values()) - before > 1e8)
    finally:
        done.set()
        os.sched_setaffinity(0, cores)
        for thread in threads:
            thread.join()


@needs_onednn
def test_a_model_multiplies_by_its_own_library_and_says_so(machine):
    model, other = load_model(), load_model(ModelSpec(products="torch"))
    assert "float32 products by oneDNN" in model.arithmetic and "oneDNN" not in other.arithmetic
    tokens, classes = torch.zeros(1, 103, dtype=torch.int64), torch.arange(3)

    def scores(loaded):
        state = loaded.likelihood.begin(tokens, torch.zeros_like(classes), classes)
        return loaded.likelihood.extend(state, 5, keep_cache_segments=0)

    first, second = scores(model), scores(other)
    assert torch.allclose(first, second, atol=1e-4)
    assert torch.equal(scores(model), first) and torch.equal(scores(other), second)
    assert load_model(ModelSpec(**model.given)).arithmetic == model.arithmetic
    assert len(machine) == 1


@needs_onednn
def test_a_deterministic_run_takes_the_rule(machine, monkeypatch):
    monkeypatch.setattr(precisions, "onednn_is_faster", lambda x: False)
    assert "oneDNN" not in load_classifier("digits", Options(deterministic=True)).model.arithmetic
    assert not machine


@pytest.mark.parametrize("library", OTHERS)
def test_a_run_goes_on_with_the_library_that_it_began_with(tmp_path, monkeypatch, small_cache, library):
    def classify(name, by, *options):
        monkeypatch.setenv(product_library.VARIABLE, by)
        command = ["--quiet", "classify", str(small_cache), "--out", str(tmp_path / name), *options]
        return main(command), json.loads((tmp_path / name / "run.json").read_text())["arithmetic"]

    code, arithmetic = classify("whole", library)
    assert code == 0 and WORDS[library] in arithmetic
    assert classify("parts", library, "--shard", "1/2")[0] == 0
    assert classify("parts", "torch", "--shard", "2/2") == (0, arithmetic)
    name = "predictions.jsonl"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "float32 products by" not in classify("whole", "torch", "--overwrite")[1]


@pytest.mark.parametrize("library", OTHERS)
def test_pictures_that_are_continued_keep_the_library_that_they_were_begun_with(tmp_path, monkeypatch, capsys, library):
    def draw(name, by, *options, code=0):
        monkeypatch.setenv(product_library.VARIABLE, by)
        command = ["--quiet", "sample", "3", "8", "--count", "2", "--batch-size", "2", "--out", str(tmp_path / name)]
        assert main([*command, *options]) == code
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        return {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files}

    whole = draw("whole", library)
    request = json.loads(whole[RECORD])
    assert request["products"] == library
    draw("parts", library, "--shard", "1/2")
    assert draw("parts", "torch", "--shard", "2/2") == whole
    assert draw("parts", "torch") == whole, "it is complete"
    del request["products"]
    (tmp_path / "parts" / RECORD).write_text(json.dumps(request))
    draw("parts", "torch")  # an earlier version drew them: they count as the same
    assert json.loads(draw("parts", "torch", "--overwrite")[RECORD])["products"] == "torch"
    (tmp_path / "parts" / RECORD).write_text(json.dumps(request | {"products": 5}))
    draw("parts", "torch", code=2)
    assert "products: 5 there, torch here" in " ".join(capsys.readouterr().err.split())


@needs_onednn
def test_a_model_by_another_library_keeps_the_classes_of_its_bank(tmp_path):
    words = ["--quiet", "add-class", "seven", str(ASSETS / "digits" / "test" / "7"), "--model", "digits"]
    assert main([*words, "--no-offset", "--steps", "1", "--variants", "1", "--bank", str(tmp_path / "bank")]) == 0
    model = with_bank(load_model(ModelSpec(products="torch")), read_bank(tmp_path / "bank"))
    other = multiplying_by(model, "onednn")
    assert "oneDNN" in other.arithmetic and other.classes.names == model.classes.names
    assert multiplying_by(model, "torch") is model


@pytest.fixture
def small_cache(tmp_path):
    """Tokens of six random digits."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    cache = tmp_path / "tokens.h5"
    assert main(["--quiet", "encode", str(tmp_path / "images"), "--out", str(cache)]) == 0
    return cache
