"""The app's web server: routes, limits, and what separates one user from another (`guard`: who is answered at all)."""

from __future__ import annotations

import contextlib
import io
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from avarc_cli import bank as banks
from avarc_cli.app import answers
from avarc_cli.app.guard import HEADERS, Guard
from avarc_cli.app.jobs import Busy, Job, Jobs, Left, stopping
from avarc_cli.app.learning import NewClass, learn
from avarc_cli.app.sessions import MAX_IMAGES, Session, Sessions
from avarc_cli.classifier import Classifier
from avarc_cli.data.preprocess import read_rgb
from avarc_cli.errors import AvarcError, UnreadableImage, UsageError, lacks_memory
from avarc_cli.incremental.editing import Existing, check_names, open_or_new
from avarc_cli.loading import with_bank
from avarc_cli.sampling import Sampling
from avarc_cli.zoo.local_files import ASSETS

MAX_BYTES = 8 * 2**20  # of an upload
MAX_PIXELS = 2**25  # of an image: 100 MB in RGB
MAX_REQUEST = 2**16  # bytes of any other request
MAX_PICTURES = 8  # drawn at once
MAX_NAME = 60  # characters of a class
MAX_SEED = 2**31
COOKIE = "avarc-app-{port}"  # browsers do not separate cookies by port
PAGE = files("avarc_cli.app") / "page"
TYPES = {"index.html": "text/html", "app.css": "text/css", "app.js": "text/javascript"}


class AppState:
    """The models that are shown, and their users."""

    def __init__(self, main: Classifier, other: Classifier | None, bank: Path | None) -> None:
        self.main, self.other, self.bank = main, other, bank
        self.sessions, self.jobs = Sessions(), Jobs()
        self.examples = _examples(main)

    def classifier(self, session: Session, name: str | None = None) -> Classifier:
        """The classifier of this name as the user has it. Raises: UsageError for a name that is not shown."""
        main = session.classifier or self.main
        if name in (None, main.model.name):
            return main
        if self.other is not None and name == self.other.model.name:
            return self.other
        raise UsageError(f"there is no model '{name}' here")

    def add_class(self, session: Session, job: Job[Any], name: str, images: Sequence[bytes]) -> None:
        """Add a class: to the bank that all users share, or to the user's own."""
        present, bank = self.classifier(session), self.bank or session.bank_folder()
        base = present.model.base or present.model
        check_names([name], base.classes, open_or_new(bank, base.as_base()), Existing())
        learn(NewClass(name, images, bank, base.loader(), base.device), job.check, job.report)
        added = Classifier(with_bank(base, banks.read(bank)), present.options)
        if self.bank is None:
            session.classifier = added
        else:
            self.main = added

    def image(self, session: Session, key: str) -> bytes:
        """The file of an example, or of an uploaded image."""
        return self.examples[key].read_bytes() if key in self.examples else session.image(key)


def _examples(main: Classifier) -> dict[str, Path]:
    """Images to begin with, by id: digits, for a model of digits that is included in avarc; none for any other."""
    if not main.model.name.startswith("digits") or not Path(main.model.file).is_relative_to(str(ASSETS)):
        return {}
    folders = sorted(path for path in (ASSETS / "digits" / "test").iterdir() if path.is_dir())
    return {f"example-{folder.name}": sorted(folder.iterdir())[0] for folder in folders}


def _decoded(data: bytes) -> Image.Image:
    return read_rgb(lambda: io.BytesIO(data), "the image", max_pixels=MAX_PIXELS)


Handler = Callable[[AppState, Session, Request], Awaitable[Any]]


def _route(state: AppState, path: str, handler: Handler, method: str) -> Route:
    """A route that gives JSON, to our own page only."""

    async def answer(request: Request) -> Response:
        cookie = COOKIE.format(port=request.url.port or 80)
        session = state.sessions.find(request.cookies.get(cookie))
        response = JSONResponse(await handler(state, session, request), headers=HEADERS)
        response.set_cookie(cookie, session.key, httponly=True, samesite="strict")
        return response

    return Route(path, answer, methods=[method])


async def _body(request: Request, limit: int) -> bytes:
    """The body of a request. Raises: UsageError for a longer one, as soon as that is known."""
    stated, data = request.headers.get("content-length", "0"), bytearray()
    too_long = UsageError("this file is too large", f"at most {limit // 2**20 or 1} MB are read")
    if stated.isdecimal() and int(stated) > limit:
        raise too_long
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise too_long
    return bytes(data)


async def _fields(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(await _body(request, MAX_REQUEST))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UsageError("this request cannot be read")
    return fields


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value or len(value) > 1000 or not value.isprintable():
        raise UsageError(f"this request has no {name} that can be used")
    return value


def _class_of(classifier: Classifier, class_id: str) -> str:
    """The id of a class that the model has. Raises: UsageError; elsewhere, texts may also be names of files."""
    if class_id not in classifier.model.classes.ids:
        raise UsageError(f"'{class_id}' is not a class of {classifier.model.name}", "", "choose another one")
    return class_id


async def _score(state: AppState, session: Session, request: Request, work: Callable[[Job[Any]], Any]) -> Any:
    """The result of work that uses the models; it ends at the next layer when the user leaves."""

    def stoppable(job: Job[Any]) -> Any:
        with stopping(job.check):
            return work(job)

    return await state.jobs.scoring.run(session, stoppable, request.is_disconnected)


async def _state(state: AppState, session: Session, request: Request) -> dict[str, Any]:
    shown = [state.classifier(session)] + ([state.other] if state.other else [])
    return {
        "models": [{"name": each.model.name, "classes": answers.classes(each.model.classes)} for each in shown],
        "examples": [{"id": key, "label": file.parent.name} for key, file in state.examples.items()],
        "shared": state.bank is not None,
        "max_bytes": MAX_BYTES,
        "max_images": MAX_IMAGES,
    }


async def _upload(state: AppState, session: Session, request: Request) -> dict[str, str]:
    data = await _body(request, MAX_BYTES)
    if not data:
        raise UnreadableImage("the image cannot be read", "the file is empty")
    await state.jobs.scoring.run(session, lambda job: _decoded(data), request.is_disconnected)
    return {"id": state.sessions.keep(session, data)}


async def _classify(state: AppState, session: Session, request: Request) -> list[dict[str, Any]]:
    key = _text(await _fields(request), "image")

    def work(job: Job[Any]) -> list[dict[str, Any]]:
        picture, found = _decoded(state.image(session, key)), []
        for classifier in filter(None, (state.classifier(session), state.other)):
            segments = len(classifier.model.likelihood.segment_ends)
            plan = answers.staged_plan(segments, len(classifier.candidates))
            staged = Classifier(classifier.model, replace(classifier.options, plan=plan))
            found.append(answers.prediction(classifier, staged.classify(picture)))
        return found

    found: list[dict[str, Any]] = await _score(state, session, request, work)
    return found


async def _explain(state: AppState, session: Session, request: Request) -> dict[str, Any]:
    fields = await _fields(request)
    key, model, class_, contrast = (_text(fields, name) for name in ("image", "model", "class", "contrast"))

    def work(job: Job[Any]) -> dict[str, Any]:
        classifier = state.classifier(session, model)
        compared = [_class_of(classifier, each) for each in (class_, contrast)]
        return answers.maps(classifier.explain(_decoded(state.image(session, key)), *compared))

    maps: dict[str, Any] = await _score(state, session, request, work)
    return maps


async def _sample(state: AppState, session: Session, request: Request) -> list[str]:
    fields = await _fields(request)
    model, class_, count, seed = (
        _text(fields, "model"),
        _text(fields, "class"),
        fields.get("count"),
        fields.get("seed"),
    )
    if not isinstance(count, int) or not 1 <= count <= MAX_PICTURES:
        raise UsageError(f"from 1 to {MAX_PICTURES} pictures are drawn at once")
    if not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
        raise UsageError(f"a seed is a number from 0 to {MAX_SEED - 1}")

    def work(job: Job[Any]) -> list[str]:
        classifier = state.classifier(session, model)
        return answers.pictures(classifier.sample(_class_of(classifier, class_), count, Sampling(seed=seed)))

    drawn: list[str] = await _score(state, session, request, work)
    return drawn


async def _add(state: AppState, session: Session, request: Request) -> dict[str, Any]:
    fields = await _fields(request)
    name, keys = _text(fields, "name"), fields.get("images")
    if len(name) > MAX_NAME:
        raise UsageError("this name is too long", f"a class has at most {MAX_NAME} characters")
    if not isinstance(keys, list) or not 1 <= len(keys) <= MAX_IMAGES or not all(isinstance(k, str) for k in keys):
        raise UsageError("a class is learned from images", f"give from 1 to {MAX_IMAGES}")

    images = [state.image(session, key) for key in keys]  # now: later uploads may take their places
    await state.jobs.learning.run(
        session, lambda job: state.add_class(session, job, name, images), request.is_disconnected
    )
    return {"classes": answers.classes(state.classifier(session).model.classes)}


async def _progress(state: AppState, session: Session, request: Request) -> dict[str, str]:
    return {"progress": session.progress}


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve_file(request: Request) -> Response:
        return Response((PAGE / name).read_bytes(), media_type=TYPES[name], headers=HEADERS)

    return serve_file


def _example_route(state: AppState) -> Route:
    async def example(request: Request) -> Response:
        file = state.examples.get(request.path_params["key"])
        if file is None:
            return Response(status_code=404, headers=HEADERS)
        return Response(file.read_bytes(), media_type="image/png", headers=HEADERS)

    return Route("/examples/{key}", example)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, AvarcError)
    return JSONResponse(answers.problem(error), 503 if isinstance(error, Busy) else 400, HEADERS)


async def on_failure(request: Request, error: Exception) -> Response:
    why = "there is not enough memory" if lacks_memory(error) else "its messages in the terminal say more"
    return JSONResponse({"what": "the app could not do this", "why": why}, 500, HEADERS)


async def _on_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # no one is there to read it


def make(state: AppState, host: str) -> Starlette:
    """The application, for a server that listens on this host."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        state.sessions.close()

    return Starlette(
        routes=[
            Route("/", _file("index.html")),
            Route("/app.css", _file("app.css")),
            Route("/app.js", _file("app.js")),
            _example_route(state),
            _route(state, "/api/state", _state, "GET"),
            _route(state, "/api/progress", _progress, "GET"),
            _route(state, "/api/images", _upload, "POST"),
            _route(state, "/api/classify", _classify, "POST"),
            _route(state, "/api/explain", _explain, "POST"),
            _route(state, "/api/sample", _sample, "POST"),
            _route(state, "/api/classes", _add, "POST"),
        ],
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={
            AvarcError: _on_problem,
            Left: _on_left,
            ClientDisconnect: _on_left,
            Exception: on_failure,
        },
        lifespan=lifespan,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that the server will listen on; port 0 for a free one. Raises: UsageError for one in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        why = (error.strerror or str(error)).lower()
        fix = "name another --port; --port 0 takes a free one"
        raise UsageError(f"cannot listen on {host}, port {port}", why, fix) from None
    return listening


class _Server(uvicorn.Server):
    """A server that gives up all work when it is asked to end, and does not wait for it."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs) -> None:
        super().__init__(config)
        self._jobs = jobs

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._jobs.close()
        await super().shutdown(sockets)


def serve(main: Classifier, other: Classifier | None, bank: Path | None, listening: socket.socket, host: str) -> None:
    """Serve the app until the process is asked to end.

    Args:
        main: the model that classes can be added to; with the bank, if there is one.
        other: a model to compare it with. bank: where all users' classes go; None gives each user a bank of their own.
        host: that the socket was opened for.
    """
    state = AppState(main, other, None if bank is None else bank.absolute())
    config = uvicorn.Config(
        make(state, host),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        limit_concurrency=256,
    )
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, state.jobs).run(sockets=[listening])
