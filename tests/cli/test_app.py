"""avarc app: what it answers and refuses, for which users, and that it reveals nothing about the machine."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import programs
import pytest
from doc_blocks import avarc_words, command_lines, executed_by
from killing import is_running, until
from PIL import Image

import avarc_cli
from avarc_cli import load_classifier
from avarc_cli.cli import main
from avarc_cli.zoo.local_files import ASSETS

FIVES = sorted((ASSETS / "digits" / "test" / "5").iterdir())[:5]
TIMEOUT = 300  # seconds, where the machine does much else
MODELS = ("--model", "digits-0-4", "--compare", "digits")


def start(*arguments, stderr=None, **variables):
    """The process of an app, and its port."""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(avarc_cli.__file__).parent.parent)]), **variables)
    process = programs.start(
        "serve_app", "--port", "0", *arguments, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    url = process.stdout.readline()
    return process, int(url.rpartition(":")[2])


@pytest.fixture(scope="module")
def hold(tmp_path_factory):
    """A file that holds fits while it exists, in which one that waits writes the id of its process."""
    return tmp_path_factory.mktemp("hold") / "fits"


@pytest.fixture(scope="module")
def port(hold):
    process, port = start(*MODELS, HOLD_FITS=str(hold))
    yield port
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 0
    process.stdout.close()


class User:
    """A user with a browser's cookie."""

    def __init__(self, port):
        self.port, self.cookie = port, ""

    def ask(self, path, body=None, **headers):
        """Status and content of an answer, JSON if it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        data = body if isinstance(body, bytes | type(None)) else json.dumps(body)
        sent = {"X-Avarc": "1", "Cookie": self.cookie} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.request("GET" if body is None else "POST", path, data, {k: v for k, v in sent.items() if v})
        response = connection.getresponse()
        content, self.headers = response.read(), response.headers
        self.cookie = (response.headers["Set-Cookie"] or self.cookie).partition(";")[0]
        connection.close()
        kind = response.headers["Content-Type"] or ""
        return response.status, json.loads(content) if "json" in kind else content

    def begin_class(self, name, images):
        """Ask for a class; returns the connection, on which nothing was answered yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        body = json.dumps({"name": name, "images": images})
        connection.request("POST", "/api/classes", body, {"X-Avarc": "1", "Cookie": self.cookie})
        return connection

    def upload(self, path):
        status, answer = self.ask("/api/images", Path(path).read_bytes())
        assert status == 200
        return answer["id"]


@pytest.fixture
def user(port):
    return User(port)


def test_the_page_is_complete_and_lets_nothing_in_from_elsewhere(user):
    status, page = user.ask("/")
    assert status == 200 and b"app.js" in page and b"http" not in page
    policy = user.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    status, state = user.ask("/api/state")
    assert [each["name"] for each in state["models"]] == ["digits-0-4", "digits"] and len(state["examples"]) == 10
    assert "HttpOnly" in user.headers["Set-Cookie"] and "SameSite=strict" in user.headers["Set-Cookie"]
    assert user.ask("/examples/example-3")[1].startswith(b"\x89PNG")
    assert user.ask("/examples/..%2f..%2fapp.js")[0] == 404 and user.ask("/server.py")[0] == 404


def test_an_image_is_classified_by_both_models_with_the_stages_between(user):
    status, found = user.ask("/api/classify", {"image": "example-3"})
    assert status == 200 and [each["name"] for each in found] == ["3", "3"]
    first, second = found
    assert [stage["candidates"] for stage in second["stages"]] == [10, 3, 2]
    assert [stage["kept_count"] for stage in second["stages"]] == [3, 2, 1]
    assert len(first["stages"][0]["kept"]) + len(first["stages"][0]["dropped"]) == 5
    assert second["tokens_scored"] < second["tokens_in_all"] == 1030
    probabilities = [each["probability"] for each in second["ranking"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_maps_add_up_and_samples_are_pictures(user):
    image = user.upload(FIVES[0])
    asked = {"image": image, "model": "digits", "class": "5", "contrast": "8"}
    status, why = user.ask("/api/explain", asked)
    assert status == 200 and (why["name"], why["contrast"]) == ("5", "8") and len(why["maps"]) == 5
    assert why["maps"][-1]["sum"] == pytest.approx(why["ratio"])
    status, drawn = user.ask("/api/sample", {"model": "digits", "class": "5", "count": 2, "seed": 0})
    assert status == 200 and len(drawn) == 2 and all(each.startswith("data:image/png;base64,") for each in drawn)


def png(width, height):
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_of_an_animation_the_first_picture_is_read(user, tmp_path):
    frames = [Image.open(FIVES[0]), *(Image.new("L", (16, 16), value) for value in (0, 255))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.png")
    first, still = (user.upload(tmp_path / name) for name in ("moving.gif", "still.png"))
    assert user.ask("/api/classify", {"image": first}) == user.ask("/api/classify", {"image": still})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"no image", "not an image of a known format"),
        (FIVES[0].read_bytes()[:60], "cannot read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (png(9000, 9000), "more than"),
        (bytes(8 * 2**20 + 1), "too large"),
    ],
    ids=["empty", "text", "truncated", "svg", "eps", "many-pixels", "large"],
)
def test_uploads_that_cannot_be_read_are_refused(user, data, message):
    status, answer = user.ask("/api/images", data)
    assert status == 400 and message in json.dumps(answer), answer


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("classify", {"image": "unknown"}, "not here any more"),
        ("classify", {}, "no image"),
        ("classify", b"[", "cannot be read"),
        ("classify", bytes(2**17), "too large"),
        ("classify", b"[" * 60_000, "cannot be read"),
        ("explain", {"image": "example-3", "model": "digits", "class": "3", "contrast": "99"}, "not a class of"),
        ("sample", {"model": "digits", "class": "3", "count": 1, "seed": 10**400}, "a seed is"),
        ("explain", {"image": "example-3", "model": "var-d16", "class": "3", "contrast": "5"}, "no model"),
        ("sample", {"model": "digits", "class": "3", "count": 999, "seed": 0}, "at once"),
        ("sample", {"model": "digits", "class": "3", "count": 1}, "a seed is"),
        ("sample", {"model": "digits", "class": "all", "count": 1, "seed": 0}, "not a class of"),
        ("sample", {"model": "digits", "class": "\ud800", "count": 1, "seed": 0}, "no class"),
        ("classes", {"name": "3", "images": ["example-5"]}, "exists already"),
        ("classes", {"name": "a,b", "images": ["example-5"]}, "cannot be a class name"),
        ("classes", {"name": "five", "images": []}, "learned from images"),
        ("classes", {"name": "x" * 100, "images": ["example-5"]}, "too long"),
    ],
)
def test_wrong_requests_are_answered_without_a_path_of_this_machine(user, path, body, message):
    status, answer = user.ask(f"/api/{path}", body)
    assert status == 400 and message in json.dumps(answer), answer
    assert "/" not in json.dumps(answer).replace("1/", "")


def test_a_class_is_no_file_of_this_machine(user, tmp_path):
    (tmp_path / "list.txt").write_text("a secret\n")
    for path, more in (("sample", {"count": 1, "seed": 0}), ("explain", {"image": "example-3", "contrast": "5"})):
        asked = {"model": "digits", "class": str(tmp_path / "list.txt")} | more
        status, answer = user.ask(f"/api/{path}", asked)
        assert status == 400 and "secret" not in json.dumps(answer) and str(tmp_path) not in json.dumps(answer)


def test_other_sites_get_nothing_done(user):
    assert user.ask("/api/classify", {"image": "example-3"}, X_Avarc="")[0] == 403
    assert user.ask("/api/state", X_Avarc="")[0] == 403 and "Set-Cookie" not in user.headers
    assert user.ask("/api/classify", {"image": "example-3"}, Origin="https://evil.example")[0] == 403
    assert user.ask("/api/state", Host="evil.example")[0] == 400
    assert user.ask("/api/classify")[0] == 405


def test_a_user_has_images_and_classes_of_their_own(user, port):
    images = [user.upload(path) for path in FIVES]
    status, answer = user.ask("/api/classes", {"name": "five", "images": images[:4]})
    assert status == 200 and answer["classes"][-1] == {"id": "five", "name": "five"}
    assert user.ask("/api/classify", {"image": images[4]})[1][0]["name"] == "five"
    other = User(port)
    assert len(other.ask("/api/state")[1]["models"][0]["classes"]) == 5
    assert "not here any more" in other.ask("/api/classify", {"image": images[0]})[1]["what"]
    assert other.ask("/api/classify", {"image": "example-5"})[1][0]["name"] != "five"


def test_others_classify_while_a_class_is_learned_which_ends_when_its_user_leaves(port, hold):
    learner, next_one, other = User(port), User(port), User(port)
    for user in (learner, next_one):
        assert user.ask("/api/state")[0] == 200
    hold.touch()
    learning = learner.begin_class("left", ["example-5"])
    fit = int(until(hold.read_text))
    waiting = next_one.begin_class("left too", ["example-6"])
    until(lambda: next_one.ask("/api/progress")[1]["progress"] == "waiting for other users: 1 before you")
    status, answer = learner.ask("/api/classes", {"name": "another", "images": ["example-5"]})
    assert status == 503 and "still at work" in answer["what"]

    assert other.ask("/api/classify", {"image": "example-3"})[1][1]["name"] == "3"
    assert learner.ask("/api/classify", {"image": "example-3"})[0] == 200  # so may the one who waits
    assert is_running(fit) and learner.ask("/api/progress")[1]["progress"]

    leave(learning)
    until(lambda: not is_running(fit))  # it is held, so it has not ended by itself
    following = int(until(lambda: hold.read_text().replace(str(fit), "")))  # the one who waited
    leave(waiting)
    until(lambda: not is_running(following))
    hold.unlink()
    for user in (learner, next_one, other):
        assert [each["name"] for each in user.ask("/api/state")[1]["models"][0]["classes"]] == [*"01234"]


def leave(connection):
    """As a browser does when its user closes the page."""
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def test_the_classes_of_a_bank_are_those_of_all_users_and_the_end_of_the_app_ends_its_work(tmp_path, monkeypatch, hold):
    monkeypatch.setattr("avarc_cli.incremental.examples.DEFAULT_VARIANTS", 1)
    monkeypatch.setattr("avarc_cli.incremental.examples.MIN_EXAMPLES", 1)
    quick = {"method": "embedding", "steps": 1, "offset": False}
    load_classifier("digits-0-4").add_class("five", FIVES[0], bank=tmp_path / "bank", **quick)
    with (tmp_path / "messages").open("w") as messages:
        bank = ("--bank", str(tmp_path / "bank"))
        process, port = start("--model", "digits-0-4", *bank, stderr=messages, HOLD_FITS=str(hold))
    try:
        for user in (User(port), User(port)):
            _, state = user.ask("/api/state")
            assert [each["name"] for each in state["models"][0]["classes"]] == [*"01234", "five"] and state["shared"]
            assert str(tmp_path) not in json.dumps(state)
        status, answer = user.ask("/api/classes", {"name": "five", "images": ["example-5"]})
        assert status == 400 and str(tmp_path) not in json.dumps(answer)
        hold.touch()
        connection = user.begin_class("six", ["example-6"])
        fit = int(until(hold.read_text))
    finally:
        process.terminate()
        process.wait(TIMEOUT)
        process.stdout.close()
    assert not is_running(fit) and (tmp_path / "messages").read_text() == ""
    hold.unlink()
    connection.close()


# The command


def test_a_port_that_is_in_use_is_reported_before_the_model_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["app", "--port", str(taken.getsockname()[1])]) == 2
    message = capsys.readouterr().err
    assert "in use" in message and "--port 0" in message


DOCUMENTED = [words for block in executed_by("test_app.py") for words in command_lines(block.replaced())]


@pytest.mark.parametrize("words", DOCUMENTED, ids=" ".join)
def test_a_documented_command_listens_with_the_models_that_it_names(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    served = []
    monkeypatch.setattr("avarc_cli.app.server.serve", lambda *arguments: served.append(arguments))
    assert main([*avarc_words(words), "--port", "0"]) == 0
    ((model, other, bank, listening, _),) = served
    with listening:
        assert f"http://127.0.0.1:{listening.getsockname()[1]}" in capsys.readouterr().out
    named = words[words.index("--compare") + 1] if "--compare" in words else None
    assert (model.model.name, other and other.model.name) == ("digits", named)
    assert bank == (Path("animals") if "--bank" in words else None)


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr("avarc_cli.commands.app.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert "pip install 'avarc[app]'" in capsys.readouterr().err


def test_what_is_wrong_with_bank_or_models_ends_the_command(tmp_path, capsys):
    (tmp_path / "file").write_text("no bank")
    assert main(["app", "--bank", str(tmp_path)]) == 2
    assert "is not a class bank" in capsys.readouterr().err
    assert main(["app", "--compare", "nothing-like-it"]) == 2
    assert "nothing-like-it" in capsys.readouterr().err


def test_random_bytes_are_not_a_picture(user):
    status, _ = user.ask("/api/images", np.random.default_rng(0).bytes(5000))
    assert status == 400
