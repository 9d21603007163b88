"""The app's parts: plans that let classes drop out, messages without paths, sessions, and work that is given up."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from avarc_cli.app import sessions
from avarc_cli.app.answers import problem, staged_plan, without_paths
from avarc_cli.app.jobs import Job, Jobs, Left
from avarc_cli.app.server import AppState
from avarc_cli.app.sessions import Session, Sessions
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.scoring.plan import parse_plan


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5, 8, 10, 16, 24])
@pytest.mark.parametrize("candidates", [1, 3, 4, 10, 1000])
def test_the_staged_plan_is_one_that_every_model_can_follow(segments, candidates):
    plan = parse_plan(staged_plan(segments, candidates), segments=segments, candidates=candidates, samples=1)
    assert plan.stages[-1].segments == segments
    assert len(plan.stages) == (3 if segments > 2 and candidates > 3 else 1)


def test_messages_have_names_of_files_but_no_paths():
    error = AvarcError("cannot read '/home/someone/bank/bank.json'", "no space in /tmp/x/y", "avarc ... /root/z")
    assert problem(error) == {"what": "cannot read 'bank.json'", "why": "no space in y"}
    for text in ("it has 1/2 of them", "and/or", "3:3,5:1", "http://127.0.0.1:80/x"):
        assert without_paths(text) == text


class StubClassifier:
    """Knows what it was asked to learn."""

    def __init__(self, *learned):
        self.learned, self.model = learned, SimpleNamespace(name="stub", file="stub.safetensors")

    def add_class(self, name, images, *, bank, progress):
        return StubClassifier(*self.learned, (name, bank))


def test_a_class_goes_to_the_shared_bank_or_to_the_users_own(tmp_path):
    one, other = Session("one"), Session("other")
    for bank, shared in ((None, False), (tmp_path, True)):
        state = AppState(StubClassifier(), None, bank)
        state.add_class(one, Job(one), "five", [])
        state.add_class(one, Job(one), "six", [])
        assert [name for name, _ in state.classifier(one).learned] == ["five", "six"]
        assert bool(state.classifier(other).learned) == shared
        assert {folder for _, folder in state.classifier(one).learned} == {bank or one.bank_folder()}
        one.close()
        one = Session("one")


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
    third.busy = first.busy = 1
    with pytest.raises(UsageError, match="too many people"):
        every.find(None)
    assert every.find(first.key) is first
    folder = third.bank_folder().parent
    every.close()
    assert not folder.exists()


def test_work_ends_at_its_next_step_when_the_user_leaves_and_waiting_work_does_not_begin():
    began, steps = threading.Event(), []

    def endless(job):
        with job.bar("learning", 10) as bar:
            began.set()
            while True:
                steps.append(session.progress)
                bar.update(3)

    async def gone():
        return began.is_set()

    async def both():
        return await asyncio.gather(
            jobs.run(session, endless, gone), jobs.run(session, steps.clear, gone), return_exceptions=True
        )

    jobs, session = Jobs(), Session("key")
    assert [type(each) for each in asyncio.run(both())] == [Left, Left]
    assert "learning: 3 of 10" in steps and session.busy == 0 and session.progress == ""
    jobs.close()


def test_more_work_than_can_wait_is_refused(monkeypatch):
    monkeypatch.setattr("avarc_cli.app.jobs.MAX_WAITING", 0)

    async def here():
        return False

    with pytest.raises(UsageError, match="busy"):
        asyncio.run(Jobs().run(Session("key"), lambda job: None, here))
