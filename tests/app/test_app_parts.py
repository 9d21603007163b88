"""The app's parts: plans that let classes drop out, messages without paths, sessions, and work that is given up."""

import asyncio
import io
import itertools
import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from avarc_cli import load_classifier
from avarc_cli.app import sessions
from avarc_cli.app.answers import problem, staged_plan, without_paths
from avarc_cli.app.jobs import Busy, Lane, Left, stopping
from avarc_cli.app.server import AppState, on_failure
from avarc_cli.app.sessions import Session, Sessions
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.zoo.local_files import ASSETS


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5, 8, 10, 16, 24])
@pytest.mark.parametrize("candidates", [1, 3, 4, 10, 1000])
def test_the_staged_plan_is_one_that_every_model_can_follow(segments, candidates):
    plan = parse_plan(staged_plan(segments, candidates), segments=segments, candidates=candidates, samples=1)
    assert plan.stages[-1].segments == segments
    assert len(plan.stages) == (3 if segments > 2 and candidates > 3 else 1)


def test_messages_have_names_of_files_but_no_paths():
    error = AvarcError("cannot read '/home/someone/bank/bank.json'", "no space in /tmp/x/y", "avarc ... /root/z")
    assert problem(error) == {"what": "cannot read 'bank.json'", "why": "no space in y"}
    spaced = AvarcError("'/home/John Smith/my bank' is no bank", "in '~/a b/'")
    assert problem(spaced) == {"what": "'my bank' is no bank", "why": "in 'a b'"}
    for text in ("it has 1/2 of them", "and/or", "3:3,5:1", "the class 'and/or'", "http://127.0.0.1:80/x"):
        assert without_paths(text) == text


def test_a_class_goes_to_the_shared_bank_or_to_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr("avarc_cli.incremental.examples.DEFAULT_VARIANTS", 1)
    monkeypatch.setattr("avarc_cli.incremental.examples.MIN_EXAMPLES", 1)
    main, lessons = load_classifier("digits-0-4"), []

    def learn(lesson, check, report):
        lessons.append(lesson)
        quick = {"method": "embedding", "steps": 1, "offset": False}
        main.add_class(lesson.name, Image.open(io.BytesIO(lesson.images[0])), bank=lesson.bank, **quick)

    monkeypatch.setattr("avarc_cli.app.server.learn", learn)
    for bank in (None, tmp_path / "bank"):
        state, one, other = AppState(main, None, bank), Session("one"), Session("other")
        job = SimpleNamespace(check=None, report=None)
        for name in ("five", "six"):
            state.add_class(one, job, name, [state.image(one, "example-5")])
        assert state.classifier(one).model.classes.names[5:] == ("five", "six")
        assert state.classifier(other).model.classes.names[5:] == (() if bank is None else ("five", "six"))
        assert lessons[-1].bank == (bank or one.bank_folder())
        with pytest.raises(UsageError, match="exists already"):  # before a process is started
            state.add_class(one, job, "six", [])
        one.close()
    assert len(lessons) == 4


def test_a_session_keeps_the_last_images_only():
    session = Session("key")
    keys = [session.keep(bytes([number])) for number in range(sessions.MAX_IMAGES + 1)]
    assert session.image(keys[-1]) == bytes([sessions.MAX_IMAGES])
    with pytest.raises(UsageError, match="not here any more"):
        session.image(keys[0])


def test_idle_sessions_are_forgotten_with_their_banks_and_busy_ones_are_not(monkeypatch):
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    every = Sessions()
    first, second = every.find(None), every.find("made up")
    assert first.key != second.key and every.find(first.key) is first
    folder = second.bank_folder().parent
    third = every.find(None)  # in the place of the second, which was idle for longer
    assert not folder.exists() and every.find(third.key) is third
    for busy in (first, third):
        busy.jobs.append(None)
    with pytest.raises(UsageError, match="too many people"):
        every.find(None)
    assert every.find(first.key) is first
    folder = third.bank_folder().parent
    every.close()
    assert not folder.exists()


def test_images_of_the_longest_idle_session_make_room_for_others(monkeypatch):
    monkeypatch.setattr(sessions, "MAX_BYTES", 10)
    every = Sessions()
    idle, other = every.find(None), every.find(None)
    lost, also = every.keep(idle, bytes(5)), every.keep(idle, bytes(4))
    first, second = every.keep(other, bytes(5)), every.keep(other, bytes(5))
    assert list(other.images) == [first, second] and lost not in idle.images and also not in idle.images
    last = every.keep(other, bytes(9))
    assert list(other.images) == [last]


@pytest.fixture
def lane():
    made = Lane("test", most=4, most_of_one=3)
    yield made
    made.close()


async def here():
    return False


def test_users_take_turns(lane):
    one, other, begun, go_on = Session("one"), Session("other"), [], threading.Event()

    def work(name):
        def record(job):
            begun.append(name)
            go_on.wait(60)

        return record

    async def all_of_them():
        asked = [(one, "a"), (one, "b"), (one, "c"), (other, "d")]
        running = [asyncio.ensure_future(lane.run(user, work(name), here)) for user, name in asked]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(*running)

    asyncio.run(all_of_them())
    assert begun == ["a", "d", "b", "c"] and not one.jobs and not other.jobs


def test_work_ends_at_its_next_step_when_the_user_leaves_and_waiting_work_does_not_begin(lane):
    began, steps, session = threading.Event(), [], Session("key")

    def endless(job):
        while True:
            began.set()
            job.report(f"step {len(steps)}")
            steps.append(session.progress)
            job.check()

    async def gone():
        return began.is_set()

    async def both():
        asked = lane.run(session, endless, gone), lane.run(session, lambda job: steps.clear(), gone)
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(each) for each in asyncio.run(both())] == [Left, Left]
    assert "step 1" in steps and not session.jobs and session.progress == ""


def test_more_work_than_can_wait_is_refused_and_work_that_was_left_does_not_count(lane):
    users, go_on, held, gone = [Session(str(number)) for number in range(3)], threading.Event(), [], False

    async def is_gone():
        return gone

    async def ask(number, is_gone=here):
        return await lane.run(users[number], lambda job: go_on.wait(60), is_gone)

    async def too_many():
        nonlocal gone
        held.extend(asyncio.ensure_future(ask(0, is_gone)) for _ in range(3))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="your last request"):
            await ask(0)
        held.append(asyncio.ensure_future(ask(1)))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="the app is busy"):
            await ask(2)
        gone = True
        while users[0].jobs[1:]:  # what waited has ended; what runs is left
            await asyncio.sleep(0.01)
        while not users[0].jobs[0].is_left:
            await asyncio.sleep(0.01)
        held.append(asyncio.ensure_future(ask(0)))
        await asyncio.sleep(0)
        assert not held[-1].done()
        go_on.set()
        return await asyncio.gather(*held, return_exceptions=True)

    first, second, third, other, last = asyncio.run(too_many())
    assert (other, last) == (True, True) and isinstance(second, Left) and isinstance(third, Left)
    assert first is True or isinstance(first, Left)


def test_the_end_of_the_app_gives_everything_up(lane):
    session = Session("key")

    def endless(job):
        while True:
            job.check()

    async def ended():
        asked = [asyncio.ensure_future(lane.run(session, endless, here)) for _ in range(2)]
        await asyncio.sleep(0)
        lane.close()
        return await asyncio.gather(*asked, lane.run(session, endless, here), return_exceptions=True)

    assert [type(each) for each in asyncio.run(ended())] == [Left] * 3


def test_work_of_a_model_ends_at_the_next_layer_and_leaves_the_model_as_it_was():
    classifier, layers = load_classifier("digits"), itertools.count()

    def leave_in(number):
        def check():
            if next(layers) == number:
                raise Left

        return check

    image = sorted((ASSETS / "digits" / "test" / "5").iterdir())[0]
    before = classifier.classify(image).ranking
    with stopping(leave_in(10**9)):
        classifier.classify(image)
    total = next(layers)
    assert total > 20
    layers = itertools.count()
    for ask in (lambda: classifier.classify(image), lambda: classifier.explain(image), lambda: classifier.sample("5")):
        layers = itertools.count()
        with pytest.raises(Left), stopping(leave_in(total // 2)):
            ask()
        assert next(layers) == total // 2 + 1
    assert classifier.classify(image).ranking == before
    with stopping(leave_in(0)):  # another thread's
        thread = threading.Thread(target=lambda: torch.nn.Identity()(torch.zeros(1)))
        thread.start()
        thread.join()
    assert next(layers) == total // 2 + 2


def test_what_fails_for_an_unknown_reason_is_said_without_its_words():
    answers = [asyncio.run(on_failure(None, error)).body for error in (OSError("/home/x/y is full"), MemoryError())]
    assert b"home" not in answers[0] and b"not enough memory" in answers[1]
