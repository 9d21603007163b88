"""Text-conditional LlamaGen on the command line, as far as it needs no captions."""

from __future__ import annotations

import json

from avarc_cli.cli import main


def avarc(*words) -> int:
    return main([str(word) for word in words])


def test_its_cards_name_its_family_and_its_tokenizers(capsys):
    assert avarc("--json", "models") == 0
    listed = {card["name"]: card for card in json.loads(capsys.readouterr().out)["models"]}
    for size in ("256", "512"):
        card = listed[f"llamagen-t2i-xl-{size}"]
        assert card["family"] == "llamagen-t2i" and card["tokenizer"] == f"llamagen-vq16-t2i-{size}"


def test_bench_times_it_beside_plain_pytorch_with_all_positions(capsys):
    shape = ["--shape", "llamagen-t2i-2:64:4", "--scales", "4", "--pairs", "3", "--rounds", "1", "--precision", "fp32"]
    assert avarc("--json", "bench", *shape) == 0
    results = json.loads(capsys.readouterr().out)["report"]["results"]
    assert [each["name"] for each in results] == ["plain PyTorch", "avarc"]
    assert results[1]["error_max"] < 1e-4
    assert avarc("bench", "--shape", "llamagen-t2i-huge") == 2
    assert "llamagen-t2i-xl, or llamagen-t2i-depth:width:heads" in capsys.readouterr().err
