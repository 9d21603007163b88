"""Cards: their facts agree with each other, and unknown names are reported."""

import json
import math
import struct

import pytest

from avarc_cli import families
from avarc_cli.errors import UsageError
from avarc_cli.zoo import cards, local_files

MODELS = cards.model_cards()
TOKENIZERS = cards.tokenizer_cards()


def by_name(card):
    return card.name


def test_names_are_unique_across_models_and_tokenizers():
    names = [card.name for card in (*MODELS, *TOKENIZERS)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("card", MODELS, ids=by_name)
def test_a_model_and_its_tokenizer_agree(card):
    tokenizer = cards.tokenizer_card(card.tokenizer)
    assert (card.image_size, card.layout, card.channels) == (tokenizer.image_size, tokenizer.layout, tokenizer.channels)
    assert cards.model_card(card.name) is card


@pytest.mark.parametrize("card", [*MODELS, *TOKENIZERS], ids=by_name)
def test_the_layout_is_scales_from_one_a_grid_that_divides_the_image_or_none(card):
    sides = card.layout.sides
    if not sides:
        assert any(name in card.name for name in ("titok", "maskgit", "maskgen"))
        return
    assert len(sides) == 1 or (sides[0] == 1 and list(sides) == sorted(set(sides)))
    assert card.image_size % sides[-1] == 0


@pytest.mark.parametrize("card", [*MODELS, *TOKENIZERS], ids=by_name)
def test_families_are_registered(card):
    registry = families.GENERATORS if card in MODELS else families.TOKENIZERS
    assert registry.get(card.family).name == card.family


def test_published_sizes_are_those_of_the_paper():
    assert cards.tokenizer_card("var-vqvae-256").layout.num_tokens == 680
    assert cards.tokenizer_card("var-vqvae-512").layout.num_tokens == 2240
    assert {card.name for card in MODELS if card.image_size == 512} == {"var-d36", "llamagen-t2i-xl-512"}
    assert cards.model_card("llamagen-l-384").layout.num_tokens == 576
    assert cards.tokenizer_card("llamagen-vq8-256").layout.num_tokens == 1024


INCLUDED = [card for card in (*MODELS, *TOKENIZERS) if isinstance(card.weights, cards.AssetFile)]


@pytest.mark.parametrize("card", [card for card in INCLUDED if card.params is not None], ids=by_name)
def test_an_included_file_has_as_many_parameters_as_its_card_says(card):
    with local_files.require(card).open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    counted = sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
    assert counted == pytest.approx(card.params, rel=0.05)  # a file also holds a few buffers


@pytest.mark.parametrize(("find", "kind"), [(cards.model_card, "model"), (cards.tokenizer_card, "tokenizer")])
def test_an_unknown_name_is_reported_with_the_command_that_lists_all(find, kind):
    with pytest.raises(UsageError, match=f"no {kind} is called 'resnet'") as caught:
        find("resnet")
    assert caught.value.fix == "avarc models lists all names; or give the path of a checkpoint file"


@pytest.mark.parametrize("name", [card.name for card in (*MODELS, *TOKENIZERS)])
def test_a_misspelled_name_is_answered_in_lines_of_80_columns(name):
    with pytest.raises(UsageError) as caught:
        cards.any_card(f"{name}x")
    first, *others = str(caught.value).splitlines()
    assert len(f"error: {first}") <= 80 and all(len(line) <= 80 for line in others)
    assert f"did you mean {name}" in caught.value.fix and caught.value.fix.endswith("? avarc models lists all")


def test_a_misspelled_name_is_reported_with_the_closest():
    with pytest.raises(UsageError, match="did you mean var-d3"):
        cards.model_card("VAR-d3O")
