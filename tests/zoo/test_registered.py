"""The file of registered names: no process loses another one's entry, and a damaged file is never written."""

import json
import multiprocessing

import killing
import programs
import pytest
from programs.kill_names import card

from avarc_cli.errors import AvarcError
from avarc_cli.zoo import registered

pytestmark = pytest.mark.usefixtures("home")


def work(number):
    registered.add(card(f"kept-{number}"))
    registered.add(card(f"gone-{number}"))
    registered.pin(f"var-{number}", "c0ffee")
    registered.remove(f"gone-{number}")


def test_processes_that_add_remove_and_pin_at_once_lose_nothing():
    numbers = range(8)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(work, numbers, chunksize=1)
    user = registered.load()
    assert sorted(user.names) == [f"kept-{number}" for number in numbers]
    assert user.revisions == {f"var-{number}": "c0ffee" for number in numbers}


def test_a_kill_leaves_the_old_or_the_new_names():
    done = programs.run("kill_names")
    if done.returncode == killing.NOT_TRACED:
        pytest.skip("processes cannot be traced here")
    assert done.returncode == 0, done.stderr


def test_a_card_is_read_as_it_was_written():
    for each in (card("one"), card("two", "ema")):
        registered.add(each)
    assert registered.load().tokenizers == (card("one"), card("two", "ema"))


FORMAT_2 = {
    "format": 2,
    "models": [],
    "tokenizers": [
        {
            "name": "mine",
            "family": "vqvae",
            "image_size": 64,
            "layout": {"grids": [[1, 1], [2, 2]]},
            "params": None,
            "license": "unknown",
            "source": "/data/vae.pth",
            "weights": "/data/vae.pth",
            "preprocess": "fit",
        }
    ],
    "revisions": {"var-d16": "c0ffee"},
}


def test_the_file_of_an_earlier_version_is_read():
    registered.file().parent.mkdir()
    registered.file().write_text(json.dumps(FORMAT_2))
    assert registered.load().names == ["mine"] and registered.load().revisions == {"var-d16": "c0ffee"}
    registered.add(card("more"))
    assert registered.load().names == ["mine", "more"]


def changed(**fields):
    return FORMAT_2 | {"tokenizers": [FORMAT_2["tokenizers"][0] | fields]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[" * 100_000,
        FORMAT_2 | {"format": 99},
        FORMAT_2 | {"format": [2]},
        FORMAT_2 | {"models": {}},
        FORMAT_2 | {"models": ""},
        FORMAT_2 | {"models": [3]},
        FORMAT_2 | {"tokenizers": [None]},
        FORMAT_2 | {"revisions": []},
        FORMAT_2 | {"revisions": {"var-d16": 3}},
        changed(name=5),
        changed(name=None),
        changed(image_size="64"),
        changed(image_size=True),
        changed(params=1.5),
        changed(weights=None),
        changed(weights=["a"]),
        changed(weight_set=1),
        changed(layout=[1, 2]),
        changed(layout={"grids": [[0, 1]]}),
    ],
)
def test_a_file_that_cannot_be_understood_is_an_error_and_stays_as_it_is(content):
    text = content if isinstance(content, str) else json.dumps(content)
    registered.file().parent.mkdir()
    registered.file().write_text(text)
    for change in (
        lambda: registered.add(card("x")),
        lambda: registered.remove("mine"),
        lambda: registered.pin("x", "y"),
    ):
        with pytest.raises(AvarcError, match=r"models\.json"):
            change()
    assert registered.file().read_text() == text
