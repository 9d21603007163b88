"""`avarc download` of frozen networks: files of web servers, with and without a published checksum."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import sha256
from programs import run

from avarc_cli.cli import main
from avarc_cli.train.discriminators import vit
from avarc_cli.zoo import networks

VGG16, DINO = (networks.find(name) for name in (networks.VGG16, networks.DINO))


def torch_file(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


@pytest.fixture
def mirror(hub, monkeypatch):
    """The hub, whose folder mirror/ has a megabyte for each network; the cards have their checksums."""
    hub.mirrored = {card.weights.filename: random.Random(card.name).randbytes(1 << 20) for card in networks.NETWORKS}
    monkeypatch.setattr(vit, "DEPTH", 1)
    torch.manual_seed(0)
    hub.mirrored[DINO.weights.filename] = torch_file(vit.ViT(1).state_dict())
    cards = []
    for card in networks.NETWORKS:
        digest = card.weights.sha256 and sha256(hub.mirrored[card.weights.filename])
        cards.append(dataclasses.replace(card, weights=dataclasses.replace(card.weights, sha256=digest)))
    monkeypatch.setattr(networks, "NETWORKS", tuple(cards))
    monkeypatch.setenv("AVARC_MIRROR", f"{hub.url}/mirror/")
    return hub


def download(capsys, *words):
    """Run the command: (exit code, parsed result, stderr)."""
    capsys.readouterr()
    code = main(["download", "--json", *map(str, words)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "bug" not in err, err
    return code, json.loads(out)["files"] if out else None, " ".join(err.split())


def torch_folder(home: Path) -> Path:
    return home / "torch" / "hub" / "checkpoints"


def test_the_published_checksums_end_the_names_as_torch_hub_has_it():
    for card in networks.NETWORKS:
        if card.weights.sha256 is not None:
            assert card.weights.filename.endswith(f"-{card.weights.sha256[:8]}.pth")
        assert card.weights.url.startswith("https://")
    assert [card.name for card in networks.NETWORKS if card.weights.sha256 is None] == [networks.DINO]


def test_networks_go_into_the_folder_of_torch_hub(mirror, home, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    names = [card.name for card in networks.NETWORKS]
    assert not any(map(networks.downloaded, names))
    code, got, err = download(capsys, *names)
    assert code == 0 and [each["name"] for each in got] == names
    for each in got:
        path = Path(each["path"])
        assert path.parent == torch_folder(home) and path.read_bytes() == mirror.mirrored[path.name]
        assert networks.downloaded(each["name"]) == path and each["sha256"] == sha256(path.read_bytes())
    assert "not pinned" not in err
    assert sorted(p.name for p in torch_folder(home).iterdir()) == sorted(mirror.mirrored), "nothing else is left there"
    assert all("hf_secret" not in request.headers.get("Authorization", "") for request in mirror.requests)


def test_a_file_that_torch_hub_put_there_is_used(mirror, home, capsys):
    torch_folder(home).mkdir(parents=True)
    (torch_folder(home) / VGG16.weights.filename).write_bytes(mirror.mirrored[VGG16.weights.filename])
    code, got, _ = download(capsys, "vgg16")
    assert code == 0 and got[0]["was_here"] and not mirror.requests


def test_without_a_published_checksum_the_content_is_checked_and_its_own_is_shown(mirror, home, capsys):
    content = mirror.mirrored[DINO.weights.filename]
    code, _, err = download(capsys, "dino-vits16")
    assert code == 0 and f"dino-vits16: no checksum is published; its sha256 is {sha256(content)}" in err
    networks.downloaded("dino-vits16").unlink()
    for wrong in (b"x" * 1000, torch_file({"blocks.0.attn.qkv.bias": torch.zeros(1152)})):
        mirror.mirrored[DINO.weights.filename] = wrong
        code, _, err = download(capsys, "dino-vits16")
        assert code == 1 and "is not what it should be and has been deleted" in err and "AVARC_MIRROR" in err
        assert not any(p.is_file() for p in torch_folder(home).iterdir())


def test_a_network_with_the_wrong_checksum_is_deleted(mirror, home, capsys):
    expected = sha256(mirror.mirrored[VGG16.weights.filename])
    mirror.mirrored[VGG16.weights.filename] = b"x" * 1000
    code, _, err = download(capsys, "vgg16")
    assert code == 1 and "is corrupt and has been deleted" in err and f"{expected} is published" in err
    assert networks.downloaded("vgg16") is None and not any(p.is_file() for p in torch_folder(home).iterdir())


def test_a_missing_file_names_the_server_and_what_to_do(mirror, home, capsys):
    mirror.mirrored.clear()
    code, _, err = download(capsys, "vgg16")
    assert code == 1 and f"{mirror.url} responds with status 404" in err
    assert str(torch_folder(home)) in err and "AVARC_MIRROR" in err


def test_an_interrupted_download_of_a_network_continues(mirror, home, capsys):
    content, left = mirror.mirrored[VGG16.weights.filename], [1]

    @mirror.rule
    def breaks(request):
        if not request.is_blob:
            return False
        if not left[0]:
            return request.reply(503)
        left[0] -= 1
        return request.reply(200, {"Content-Length": str(len(content))}, send=content[:300_000])

    code, _, err = download(capsys, "vgg16")
    assert code == 1 and "is kept" in err and networks.downloaded("vgg16") is None
    mirror.rules.clear()
    assert download(capsys, "vgg16")[0] == 0
    assert mirror.seen("GET")[-1].headers["Range"] == "bytes=300000-"
    assert networks.downloaded("vgg16").read_bytes() == content


def test_a_server_without_head_requests_is_enough(mirror, capsys):
    mirror.rule(lambda request: request.command == "HEAD" and request.reply(405))
    assert download(capsys, "vgg16")[0] == 0


def test_space_for_networks_is_checked_first(mirror, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    code, _, err = download(capsys, "vgg16")
    assert code == 1 and "not enough space" in err and not mirror.seen("GET")


def test_a_disk_that_fills_up_keeps_what_is_there(mirror, home):
    more = {"AVARC_MIRROR": f"{mirror.url}/mirror", "TORCH_HOME": str(home / "torch"), "HF_HUB_OFFLINE": "0"}
    done = run("small_disk", 500_000, "download", "vgg16", env=os.environ | more)
    assert done.returncode == 1 and "no space left" in done.stderr and "continues from there" in done.stderr, (
        done.stderr
    )
    (left,) = (p for p in torch_folder(home).iterdir() if p.is_file())
    assert left.name.endswith(".incomplete") and 0 < left.stat().st_size <= 500_000


def test_a_plain_folder_offline_and_revisions(mirror, home, capsys):
    code, _, err = download(capsys, "vgg16", "--offline")
    assert code == 1 and str(torch_folder(home)) in err and not mirror.requests
    assert download(capsys, "vgg16", "--dir", home / "plain")[0] == 0
    assert (home / "plain" / VGG16.weights.filename).read_bytes() == mirror.mirrored[VGG16.weights.filename]
    assert networks.downloaded("vgg16") is None
    code, _, err = download(capsys, "vgg61")
    assert code == 2 and "did you mean vgg16" in err
    code, _, err = download(capsys, "vgg16", "--revision", "main")
    assert code == 2 and "no use for --revision with 'vgg16'" in err


def test_networks_are_listed_shown_and_verified(mirror, capsys):
    download(capsys, "vgg16")
    assert main(["models", "--json"]) == 0
    listed = {each["name"]: each["path"] for each in json.loads(capsys.readouterr().out)["networks"]}
    assert listed.keys() == {card.name for card in networks.NETWORKS} and listed["vgg16"] and not listed["lpips"]
    assert main(["models", "show", "dino-vits16"]) == 0
    assert "none is published" in capsys.readouterr().out
    assert main(["models", "verify", "vgg16"]) == 0
    assert "whole" in capsys.readouterr().out
    networks.downloaded("vgg16").write_bytes(b"damaged")
    assert main(["models", "verify"]) == 1
    assert "avarc download vgg16" in " ".join(capsys.readouterr().err.split())
    assert main(["models", "verify", "lpips"]) == 1
    assert "the network 'lpips' is not on this machine" in " ".join(capsys.readouterr().err.split())
