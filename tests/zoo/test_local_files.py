"""Weights files are found on this machine, or reported with how to get them."""

import dataclasses

import pytest

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.zoo import cards, local_files
from avarc_cli.zoo.cards import AssetFile, HubFile, LocalFile

COMMIT = "0" * 39 + "1"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache; the returned function puts a file into it like a download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def put(repo, filename):
        folder = tmp_path / f"models--{repo.replace('/', '--')}"
        path = folder / "snapshots" / COMMIT / filename
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
        return path

    return put


def test_a_downloaded_file_is_found_in_the_hub_cache(hub_cache):
    card = cards.model_card("var-d16-cca")
    assert local_files.locate(card.weights) is None
    path = hub_cache(card.weights.repo, card.weights.filename)
    assert local_files.locate(card.weights) == path
    assert local_files.require(card) == path


def test_a_pinned_revision_is_not_satisfied_by_another(hub_cache):
    path = hub_cache("a/b", "w.pth")
    assert local_files.locate(HubFile("a/b", "w.pth", revision=COMMIT)) == path
    assert local_files.locate(HubFile("a/b", "w.pth", revision="f" * 40)) is None


@pytest.mark.usefixtures("hub_cache")
def test_missing_weights_are_reported_with_the_command_to_download_them():
    with pytest.raises(AvarcError, match="var-d16") as caught:
        local_files.require(cards.model_card("var-d16"))
    assert caught.value.fix.startswith("avarc download var-d16 ")


def test_included_and_local_files_are_found_or_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(local_files, "ASSETS", tmp_path)
    card = cards.model_card("digits")
    with pytest.raises(AvarcError, match="'digits'") as caught:
        local_files.require(card)
    assert caught.value.fix == "install avarc again"
    (tmp_path / "digits").mkdir()
    (tmp_path / card.weights.filename).touch()
    assert local_files.require(card) == tmp_path / card.weights.filename
    assert local_files.locate(AssetFile("nothing")) is None
    assert local_files.locate(LocalFile(tmp_path)) is None, "a folder is not a weights file"


def test_a_missing_local_file_is_a_usage_error(tmp_path):
    card = dataclasses.replace(cards.model_card("digits"), weights=LocalFile(tmp_path / "gone.pth"))
    with pytest.raises(UsageError, match="gone"):
        local_files.require(card)
