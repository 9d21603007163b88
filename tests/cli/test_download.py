"""avarc download from a hub without faults: the files, where they are put, and what is reported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import CCA, COMMIT, OLD_COMMIT, VAR, sha256
from huggingface_hub import hf_hub_download

from avarc_cli.cli import main
from avarc_cli.errors import EXIT_USAGE
from avarc_cli.zoo import cards, local_files

D16, VAE = "var_d16.pth", "vae_ch160v4096z32.pth"


def download(capsys, *words):
    """Run the command: (exit code, parsed result, stderr)."""
    capsys.readouterr()
    code = main(["download", "--json", *map(str, words)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "bug" not in err, err
    return code, json.loads(out)["files"] if out else None, err


def test_a_model_is_verified_and_put_into_the_hubs_cache_with_its_tokenizer(hub, home, capsys):
    code, got, err = download(capsys, "var-d16")
    assert code == 0
    assert [one["name"] for one in got] == ["var-d16", "var-vqvae-256"]
    content = hub.files[VAR, D16]
    assert (got[0]["commit"], got[0]["sha256"], got[0]["size"]) == (COMMIT, sha256(content), len(content))
    assert Path(got[0]["path"]).read_bytes() == content
    assert "not pinned" in err and COMMIT in err
    found = hf_hub_download(VAR, D16, local_files_only=True, cache_dir=home / "hub")
    assert found == got[0]["path"], "the hub's own client finds it"
    assert local_files.require(cards.model_card("var-d16")) == Path(found)
    assert not list(home.rglob("*.incomplete"))


def test_a_second_download_fetches_nothing(hub, capsys):
    download(capsys, "var-d16")
    fetched = len(hub.seen("GET"))
    code, got, _ = download(capsys, "var-d16", "var-vqvae-512")
    assert code == 0 and all(one["was_here"] for one in got)
    assert len(hub.seen("GET")) == fetched
    assert {one["path"] for one in got if "vqvae" in one["name"]} == {got[-1]["path"]}, "both sizes share one file"


def test_files_from_the_hubs_own_client_are_used(hub, home, capsys):
    hf_hub_download(VAR, D16, cache_dir=home / "hub")
    fetched = len(hub.seen("GET"))
    assert download(capsys, "var-d16")[1][0]["was_here"]
    assert len(hub.seen("GET")) == fetched + 2, "only the tokenizer: its location and its content"


def test_a_corrupt_file_in_the_cache_is_replaced(hub, capsys):
    path = Path(download(capsys, "var-d16")[1][0]["path"])
    path.resolve().write_bytes(b"x" + path.read_bytes()[1:])
    code, got, err = download(capsys, "var-d16")
    assert code == 0 and not got[0]["was_here"]
    assert "was corrupt" in err
    assert path.read_bytes() == hub.files[VAR, D16]


def test_a_revision_is_remembered_and_main_undoes_it(hub, capsys):
    _, got, _ = download(capsys, "var-d16", "--revision", "v1")
    assert got[0]["commit"] == OLD_COMMIT
    assert got[1]["commit"] == COMMIT, "the tokenizer was not named"
    assert cards.model_card("var-d16").weights.revision == OLD_COMMIT
    assert OLD_COMMIT in str(local_files.require(cards.model_card("var-d16")))
    assert main(["models", "show", "var-d16"]) == 0
    assert OLD_COMMIT in capsys.readouterr().out
    download(capsys, "var-d16", "--revision", "main")
    assert cards.model_card("var-d16").weights.revision is None


def test_a_digest_that_avarc_knows_is_of_the_published_revision_only(hub, capsys):
    card = cards.model_card("rar-b")
    for weights in (card.weights, cards.any_card(card.tokenizer).weights):
        hub.files[weights.repo, weights.filename] = hub.files[VAR, D16]
    code, _, err = download(capsys, "rar-b")
    assert code == 1 and "is not the file that avarc knows" in err and not hub.seen("GET")
    code, _, err = download(capsys, "rar-b", "--revision", "v1")
    assert code == 0, err
    assert cards.model_card("rar-b").weights.sha256 is None
    assert main(["models", "verify", "rar-b"]) == 0


def test_a_cached_commit_needs_no_hub(hub, capsys):
    download(capsys, "var-vqvae-256", "--revision", OLD_COMMIT)
    asked = len(hub.requests)
    assert download(capsys, "var-vqvae-256")[1][0]["commit"] == OLD_COMMIT
    assert len(hub.requests) == asked


def test_a_plain_folder_contains_only_the_files(hub, home, capsys):
    folder = home / "plain"
    code, got, _ = download(capsys, "var-d16-cca", "--dir", folder)
    assert code == 0
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "CCA_VAR_Guidance_Free/VAR_d16_CCA.pth",
        VAE,
    }
    assert Path(got[0]["path"]).read_bytes() == hub.files[CCA, "CCA_VAR_Guidance_Free/VAR_d16_CCA.pth"]
    assert local_files.locate(cards.model_card("var-d16-cca").weights) is None
    assert all(one["was_here"] for one in download(capsys, "var-d16-cca", "--dir", folder)[1])


def test_a_plain_folder_gets_cached_files_without_a_download(hub, home, capsys):
    download(capsys, "var-d16")
    fetched = len(hub.seen("GET"))
    for words in ((), ("--offline",)):
        folder = home / f"plain{len(words)}"
        assert download(capsys, "var-d16", "--dir", folder, *words)[0] == 0
        assert (folder / D16).read_bytes() == hub.files[VAR, D16]
    assert len(hub.seen("GET")) == fetched


def test_other_files_in_a_plain_folder_are_not_overwritten(hub, home, capsys):
    (home / D16).write_bytes(b"my own")
    code, _, err = download(capsys, "var-d16", "--dir", home)
    assert code == 1 and "is another file" in err
    assert (home / D16).read_bytes() == b"my own"


def test_offline_sends_no_request_and_reports_what_is_missing(hub, capsys):
    code, _, err = download(capsys, "var-d16", "--offline")
    assert code == 1 and "not on this machine" in err and "offline" in err
    assert not hub.requests
    download(capsys, "var-d16")
    asked = len(hub.requests)
    code, got, _ = download(capsys, "var-d16", "--offline")
    assert code == 0 and got[0]["sha256"] == sha256(hub.files[VAR, D16]) and got[0]["commit"] == COMMIT
    assert len(hub.requests) == asked


def test_the_hubs_own_offline_mode_is_respected(hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download(capsys, "var-d16")[0] == 1
    assert not hub.requests


def test_a_renamed_repository_is_followed(hub, capsys):
    @hub.rule
    def renamed(request):
        if "/resolve/" in request.path and request.path.startswith("/FoundationVision/"):
            new = request.path.replace("/FoundationVision/var/", "/New/name/")
            return request.reply(307, {"Location": new})
        return False

    hub.files = {("New/name", name): content for (_, name), content in hub.files.items()}
    code, got, _ = download(capsys, "var-d16")
    assert code == 0 and got[0]["sha256"] == sha256(hub.files["New/name", D16])


def test_a_token_is_sent_only_to_the_hub_and_not_to_the_content_host(hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert download(capsys, "var-d16")[0] == 0
    for request in hub.requests:
        assert ("hf_secret" in request.headers.get("Authorization", "")) == (not request.path.startswith("/cdn/"))


def test_included_models_need_no_download_and_unknown_names_get_the_closest(hub, capsys):
    code, got, err = download(capsys, "digits")
    assert (code, got) == (0, []) and "included" in err
    assert main(["download", "var-16"]) == EXIT_USAGE
    assert "did you mean var-d16" in capsys.readouterr().err
    assert not hub.requests


@pytest.mark.parametrize("revision", ["", "../../x"])
def test_an_invalid_revision_is_rejected(hub, capsys, revision):
    assert download(capsys, "var-d16", "--revision", revision)[0] == EXIT_USAGE
    assert not hub.requests


def test_the_shell_command_uses_the_endpoint_of_the_environment(server, tmp_path):
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "AVARC_HOME": str(tmp_path / "a")}
    done = run(["--quiet", "download", "var-vqvae-256"], env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert Path(done.stdout.strip()).read_bytes() == server.files[VAR, VAE]
    again = run(["download", "var-vqvae-256"], env | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert again.returncode == 0, "without a hub, the cached file is used with a note"
    assert "no connection to http://127.0.0.1:9" in again.stderr and "using the cached" in again.stderr


def run(words, env):
    import os

    env = {**os.environ, "HF_HUB_OFFLINE": "0", **env}
    return subprocess.run([sys.executable, "-m", "avarc_cli", *words], env=env, capture_output=True, text=True)
