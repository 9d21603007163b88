"""An empty argument or path is an error, where Python would take it for the current folder."""

import pytest

from avarc_cli import load_classifier
from avarc_cli.cli import main
from avarc_cli.errors import UsageError


@pytest.mark.parametrize(
    "words",
    [
        "classify {} --out run",
        "classify images {}",
        "encode {} --out tokens.h5",
        "explain {}",
        "reconstruct {}",
        "data check {}",
        "add-class five {} --bank bank",
        "incremental {} --base 0 --tasks 1",
        "train classifier {} --out model",
        "train var {} --tokenizer digits-vqvae --out var.safetensors",
        "fid {} --reference digits",
        "cache info {}",
        "classify images --out {}",
        "classify images --out=",
        "evaluate --data {}",
    ],
)
def test_an_empty_word_is_wrong_usage(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("{}", "") for word in words.split()]) == 2
    shown = capsys.readouterr().err
    assert "is empty" in shown
    assert not list(tmp_path.iterdir())


def test_an_empty_option_that_is_no_path_is_left_to_the_command(capsys):
    assert main(["classify", "nowhere", "--classes", ""]) == 2
    assert "'nowhere' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("images", ["", [""], ["five.png", ""]])
def test_python_is_told_about_an_empty_path(images):
    with pytest.raises(UsageError, match="is empty"):
        load_classifier("digits").classify_all(images)
