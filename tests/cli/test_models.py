"""avarc models: the list, one card, and the machine-readable form of both."""

import json

import pytest

from avarc_cli.cli import main
from avarc_cli.zoo import cards


def shown(capsys, *words):
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_list_names_every_card_with_its_facts(capsys):
    lines = shown(capsys, "models").splitlines()
    for card in (*cards.model_cards(), *cards.tokenizer_cards()):
        (line,) = [line for line in lines if line.startswith(f"{card.name} ")]
        assert str(card.layout.num_tokens) in line
        assert card.license.split(";")[0] in line
    (d36,) = [line.split() for line in lines if line.startswith("var-d36 ")]
    assert d36 == ["var-d36", "var", "2.3", "B", "512", "2240", "MIT", "FoundationVision/var", "(unpinned)", d36[-1]]
    assert d36[-1] in {"yes", "no"}


@pytest.mark.parametrize("name", ["digits", "digits-llamagen", "var-d16", "var-vqvae-512"])
def test_show_prints_the_whole_card(capsys, name):
    card = cards.any_card(name)
    out = shown(capsys, "models", "show", name)
    assert card.license in out
    assert card.source in out
    assert str(card.layout) in " ".join(out.split())


def test_a_published_card_says_how_to_get_the_file(capsys):
    out = shown(capsys, "models", "show", "var-d16")
    assert "avarc download var-d16" in out
    assert "unpinned" in out
    assert "var_d16.pth" in out


@pytest.mark.parametrize("words", [("--json", "models"), ("models", "--json")])
def test_json_holds_every_card(capsys, words):
    listed = json.loads(shown(capsys, *words))
    assert [card["name"] for card in listed["models"]] == [card.name for card in cards.model_cards()]
    assert [card["name"] for card in listed["tokenizers"]] == [card.name for card in cards.tokenizer_cards()]
    d16 = next(card for card in listed["models"] if card["name"] == "var-d16")
    unpinned = {"revision": None, "sha256": None}
    assert d16["weights"] == {"repo": "FoundationVision/var", "filename": "var_d16.pth", **unpinned}
    assert d16["num_tokens"] == 680


def test_json_of_one_card_is_that_card(capsys):
    assert json.loads(shown(capsys, "models", "show", "var-d36", "--json"))["layout"]["grids"][-1] == [32, 32]


def test_quiet_lists_bare_names(capsys):
    assert shown(capsys, "--quiet", "models").splitlines()[:2] == ["digits", "digits-0-4"]


def test_an_unknown_name_is_wrong_usage_and_suggests_a_near_one(capsys):
    assert main(["models", "show", "var-16"]) == 2
    assert "did you mean var-d16" in capsys.readouterr().err


def test_a_name_without_show_is_answered_with_the_command(capsys):
    assert main(["models", "var-d16"]) == 2
    assert "avarc models show var-d16" in capsys.readouterr().err
