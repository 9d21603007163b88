"""Which requests the app answers: by the name of the host, and by the page that they come from."""

import asyncio

import pytest

from avarc_cli.app.guard import Guard

OURS = {"x-avarc": "1"}


def status(path="/api/state", listens="127.0.0.1", **headers):
    """Of the answer to a request; 200 where the app itself would answer."""
    sent = []

    async def app(scope, receive, send):
        await send({"status": 200})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    coded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": coded}
    asyncio.run(Guard(app, listens)(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    ("listens", "host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1:7860", 200),
        ("127.0.0.1", "localhost", 200),
        ("127.0.0.1", "LOCALHOST:7860", 200),
        ("::1", "[::1]:7860", 200),
        ("::1", "evil.example", 400),
        ("127.0.0.1", "evil.example:7860", 400),
        ("127.0.0.1", "127.0.0.1.evil.example", 400),
        ("127.0.0.1", "localhost@evil.example", 400),
        ("127.0.0.1", "192.0.2.7:7860", 400),
        ("127.0.0.1", "", 400),
        ("127.0.0.1", "[", 400),
        ("0.0.0.0", "192.0.2.7:7860", 200),
        ("0.0.0.0", "[2001:db8::1]", 200),
        ("0.0.0.0", "evil.example", 400),
        ("lab.example", "lab.example:7860", 200),
    ],
)
def test_a_name_that_others_could_give_this_address_is_not_answered(listens, host, expected):
    assert status(listens=listens, host=host, **OURS) == expected
    assert status("/", listens=listens, host=host) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (OURS, 200),
        ({}, 403),
        (OURS | {"origin": "http://127.0.0.1:7860", "sec_fetch_site": "same-origin"}, 200),
        (OURS | {"origin": "http://127.0.0.1:8000"}, 403),
        (OURS | {"origin": "https://evil.example"}, 403),
        (OURS | {"origin": "null"}, 403),
        (OURS | {"origin": "http://["}, 403),
        (OURS | {"sec_fetch_site": "cross-site"}, 403),
        (OURS | {"sec_fetch_site": "same-site"}, 403),
    ],
)
def test_only_the_apps_own_page_gets_things_done(headers, expected):
    assert (
        status(host="127.0.0.1:7860", **{name.replace("-", "_"): value for name, value in headers.items()}) == expected
    )
