"""Failing hubs and networks: one clear message, no traceback, and no unverified file is installed."""

import gzip
import os
import socket
import time

import pytest
from download_faults import FILE, cut, download, fails, installed, partial, works
from fake_hub import VAR, sha256, use
from huggingface_hub import get_hf_file_metadata

from avarc_cli.zoo import hub as hub_module

pytestmark = pytest.mark.usefixtures("megabyte")


# ---- connections that break


def test_a_broken_connection_is_resumed(hub, home, capsys):
    cut(hub, times=2)
    works(hub, home, capsys)
    ranges = [r.headers.get("Range") for r in hub.seen("GET") if r.path.startswith("/cdn/")]
    assert ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_bytes_from_before_the_hub_failed_are_kept_for_the_next_run(hub, home, capsys):
    cut(hub, times=1)
    hub.rule(lambda request: request.is_blob and request.reply(500))
    fails(hub, home, capsys, "internal error", "is kept")
    assert partial(home).stat().st_size == 300_000
    hub.rules.clear()
    works(hub, home, capsys)
    assert hub.seen("GET")[-1].headers["Range"] == "bytes=300000-"


def test_a_server_that_never_sends_a_byte_is_abandoned(hub, home, capsys):
    cut(hub, times=99, at=0)
    fails(hub, home, capsys, "no connection")
    assert len([r for r in hub.seen("GET") if r.path.startswith("/cdn/")]) == 1 + hub_module.MAX_RETRIES


def test_if_a_server_ignores_the_range_the_download_starts_over(hub, home, capsys):
    cut(hub, times=1)

    @hub.rule
    def whole(request):
        return request.is_blob and "Range" in request.headers and request.reply(200, {}, hub.files[VAR, FILE])

    works(hub, home, capsys)
    assert len([r for r in hub.seen("GET") if r.path.startswith("/cdn/")]) == 2


def test_a_server_that_ignores_the_range_and_always_fails_is_abandoned(hub, home, capsys):
    @hub.rule
    def breaks(request):
        content = hub.files[VAR, FILE]
        return request.is_blob and request.reply(200, {"Content-Length": str(len(content))}, send=content[:1000])

    fails(hub, home, capsys, "no connection")


@pytest.mark.parametrize("span", ["bytes 0-99/100", "bytes 5-1048575/1048576", "bytes 7-", "nonsense", ""])
def test_a_range_that_was_not_requested_is_not_appended(hub, home, capsys, span):
    cut(hub, times=1)

    @hub.rule
    def shifted(request):
        return request.is_blob and "Range" in request.headers and request.reply(206, {"Content-Range": span}, b"x" * 95)

    fails(hub, home, capsys, "cannot download")
    assert partial(home).stat().st_size == 300_000


def test_a_partial_file_longer_than_the_file_is_downloaded_again(hub, home, capsys):
    cut(hub, times=1)
    hub.rule(lambda request: request.is_blob and request.reply(403))
    fails(hub, home, capsys)
    partial(home).write_bytes(b"x" * (2 << 20))
    hub.rules.clear()
    works(hub, home, capsys)


def test_after_an_unsatisfiable_range_the_download_starts_over(hub, home, capsys):
    cut(hub, times=1)
    hub.rule(lambda request: request.is_blob and "Range" in request.headers and request.reply(416))
    works(hub, home, capsys)


def test_a_partial_file_with_other_content_is_deleted(hub, home, capsys):
    cut(hub, times=1)
    hub.rule(lambda request: request.is_blob and request.reply(403))
    fails(hub, home, capsys)
    partial(home).write_bytes(b"x" * 1000)
    hub.rules.clear()
    fails(hub, home, capsys, "is corrupt and has been deleted")
    assert partial(home) is None
    works(hub, home, capsys)


# ---- wrong content


def changed(hub, body, status=200, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    hub.rule(lambda request: request.is_blob and request.reply(status, headers, body(hub.files[VAR, FILE])))


def test_a_file_with_the_wrong_hash_is_deleted(hub, home, capsys):
    changed(hub, lambda content: b"x" + content[1:])
    fails(hub, home, capsys, "is corrupt and has been deleted", sha256(hub.files[VAR, FILE]))
    assert partial(home) is None
    hub.rules.clear()
    works(hub, home, capsys)


@pytest.mark.parametrize("kept", [0, 1, 1000])
def test_truncated_content_with_a_matching_length_is_rejected(hub, home, capsys, kept):
    changed(hub, lambda content: content[:kept])
    fails(hub, home, capsys, f"{kept:,} bytes, but the file has 1,048,576")


def test_truncated_content_without_a_length_is_rejected(hub, home, capsys):
    hub.rule(lambda request: request.is_blob and request.reply(200, {"Content-Length": None}, b"x" * 1000))
    fails(hub, home, capsys, "ended after 1,000 of 1,048,576 bytes")


def test_bytes_beyond_the_size_are_never_written(hub, home, capsys):
    hub.rule(lambda request: request.is_blob and request.reply(200, {"Content-Length": None}, b"x" * (3 << 20)))
    fails(hub, home, capsys, "is corrupt")


def test_a_web_page_instead_of_the_file_does_not_touch_the_partial_file(hub, home, capsys):
    cut(hub, times=1)
    page = {"Content-Type": "text/html; charset=utf-8", "Content-Length": None}
    hub.rule(lambda request: request.is_blob and request.reply(200, page, b"<html>log in</html>"))
    fails(hub, home, capsys, "web page")
    assert partial(home).stat().st_size == 300_000


def test_unrequested_compression_is_decoded(hub, home, capsys):
    changed(hub, gzip.compress, Content_Encoding="gzip")
    works(hub, home, capsys)


def test_invalid_compressed_data_is_rejected(hub, home, capsys):
    changed(hub, lambda content: content, Content_Encoding="gzip")
    fails(hub, home, capsys, "cannot download")


@pytest.mark.parametrize("status", [201, 204, 304])
def test_a_status_without_content_is_rejected(hub, home, capsys, status):
    hub.rule(lambda request: request.is_blob and request.reply(status))
    fails(hub, home, capsys, "cannot download")


# ---- responses about the location of the file


def respond(hub, status=302, drop=(), **change):
    """Respond to requests for the location of the file with other headers."""
    change = {name.replace("_", "-"): value for name, value in change.items()}

    @hub.rule
    def answers(request):
        if request.path.startswith("/cdn/"):
            return False
        content = hub.files[VAR, FILE]
        headers = {
            "X-Repo-Commit": "c" * 40,
            "X-Linked-Etag": f'"{sha256(content)}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{hub.cdn_url}/cdn/{VAR}/{FILE}",
        }
        return request.reply(status, {k: v for k, v in {**headers, **change}.items() if k not in drop})


@pytest.mark.parametrize("etag", ["", '"d41d8cd98f00b204e9800998ecf8427e-12"', "W/nonsense", '"../../../../x"', "é"])
def test_without_a_sha256_nothing_is_downloaded(hub, home, capsys, etag):
    respond(hub, X_Linked_Etag=etag)
    fails(hub, home, capsys, "cannot be verified")
    assert not hub.seen("GET")


def test_the_plain_etag_is_also_accepted(hub, home, capsys):
    respond(hub, drop=("X-Linked-Etag",), ETag=f'"{sha256(hub.files[VAR, FILE])}"')
    works(hub, home, capsys)


@pytest.mark.parametrize("commit", [None, "", "main", "../../../x", "c" * 39])
def test_a_response_without_a_commit_is_not_from_a_hub(hub, home, capsys, commit):
    respond(hub, X_Repo_Commit=commit)
    fails(hub, home, capsys, "does not respond like a Hugging Face hub")


def test_a_server_that_always_returns_a_web_page_is_not_a_hub(hub, home, capsys):
    hub.rule(lambda request: request.reply(200, {"Content-Type": "text/html"}, b"<html>please log in</html>"))
    fails(hub, home, capsys, "does not respond like a Hugging Face hub", "proxy")


@pytest.mark.parametrize("size", [None, "", "many", "-5", "0"])
def test_the_size_may_come_only_with_the_content(hub, home, capsys, size):
    respond(hub, X_Linked_Size=size)
    works(hub, home, capsys)


@pytest.mark.parametrize("size", ["1", "1048575", "1048577"])
def test_a_wrong_size_is_detected(hub, home, capsys, size):
    respond(hub, X_Linked_Size=size)
    fails(hub, home, capsys)


def test_an_unknown_size_is_rejected(hub, home, capsys):
    respond(hub, drop=("X-Linked-Size",))
    changed(hub, lambda content: content, Content_Length=None)
    fails(hub, home, capsys, "how long the file is")


@pytest.mark.parametrize(
    "location",
    ["LOOP", "http://127.0.0.1:9/x", "http://[::1", "ftp://x/y", "http://h:99999/", "//", "\x7f", "http://é/"],
)
def test_invalid_redirects_are_reported(hub, home, capsys, location):
    @hub.rule
    def lost(request):
        return request.reply(302, {"Location": request.path if location == "LOOP" else location})

    fails(hub, home, capsys)


def test_a_redirect_loop_of_the_content_server_ends(hub, home, capsys):
    hub.rule(lambda request: request.is_blob and request.reply(302, {"Location": request.path}))
    fails(hub, home, capsys, "cannot download")


def test_invalid_http_is_reported(hub, home, capsys):
    @hub.rule
    def noise(request):
        request.wfile.write(os.urandom(2000))
        request.close_connection = True
        return True

    fails(hub, home, capsys)


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"null", b'{"error": 5}', b"\xff\xfe", b'{"errors": [1]}'])
def test_an_error_with_an_unusual_body_is_reported(hub, home, capsys, body):
    hub.rule(lambda request: request.reply(418, {"Content-Type": "application/json"}, body))
    fails(hub, home, capsys, "418")


# ---- error statuses


@pytest.mark.parametrize("where", ["lookup", "content"])
@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, ["private or gated", "HF_TOKEN"]),
        (401, {"X-Error-Code": "RepoNotFound"}, ["does not exist, or is private", "HF_TOKEN"]),
        (401, {"X-Error-Code": "GatedRepo"}, ["is gated", "ask for access", "HF_TOKEN"]),
        (403, {"X-Error-Code": "GatedRepo"}, ["is gated", "ask for access"]),
        (403, {}, ["may be gated"]),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, ["does not recognize your token"]),
        (404, {"X-Error-Code": "RepoNotFound"}, ["does not exist"]),
        (404, {"X-Error-Code": "EntryNotFound"}, ["no such file"]),
        (404, {"X-Error-Code": "RevisionNotFound"}, ["has no revision 'main'"]),
        (404, {}, ["404"]),
        (403, {"X-Error-Code": "Other", "X-Error-Message": "Access to this resource is disabled."}, ["is disabled"]),
        (451, {}, ["451"]),
    ],
)
def test_a_refusal_is_explained_and_not_retried(hub, home, capsys, where, status, headers, words):
    hub.rule(lambda request: (where == "lookup" or request.is_blob) and request.reply(status, headers))
    fails(hub, home, capsys, *words)
    assert len(hub.requests) <= 3


def test_the_fix_for_a_gated_repository_depends_on_whether_there_is_a_token(hub, home, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.rule(lambda request: request.reply(403, {"X-Error-Code": "GatedRepo"}))
    assert "hf auth login" not in fails(hub, home, capsys, "is gated", "your token must belong to that account")


def test_an_unknown_revision_is_reported_by_name(hub, home, capsys):
    code, err = download(capsys, "--revision", "v7")
    assert code == 1 and "no revision 'v7'" in err


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("where", ["lookup", "content"])
def test_transient_errors_are_retried(hub, home, capsys, status, where):
    times = []

    @hub.rule
    def transient(request):
        if request.is_blob != (where == "content") or len(times) == 2:
            return False
        times.append(1)
        return request.reply(status)

    err = works(hub, home, capsys)
    assert err.count("trying again") == 2


def test_permanent_errors_are_reported(hub, home, capsys):
    hub.rule(lambda request: request.reply(503))
    fails(hub, home, capsys, "is not available", "503")
    assert len(hub.requests) == 1 + hub_module.MAX_RETRIES


@pytest.mark.parametrize("where", ["lookup", "content"])
def test_the_delay_requested_by_the_hub_is_used(hub, home, capsys, monkeypatch, where):
    slept = []
    monkeypatch.setattr("avarc_cli.zoo.hub.time.sleep", slept.append)

    @hub.rule
    def busy(request):
        asked = request.is_blob if where == "content" else True
        return asked and len(slept) < 1 and request.reply(429, {"Retry-After": "7"})

    assert "too many requests; trying again in 7 s" in works(hub, home, capsys)
    assert slept == [7.0]


def test_a_requested_delay_of_hours_is_reported_and_not_waited_for(hub, home, capsys):
    hub.rule(lambda request: request.reply(429, {"Retry-After": "7200"}))
    fails(hub, home, capsys, "too many requests", "7,200 s", "120 min")
    assert len(hub.requests) == 1


def test_every_header_that_requests_a_delay_is_understood():
    delay = hub_module.requested_delay
    assert delay({"retry-after": "3"}) == 3
    assert delay({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < delay({"retry-after": soon}) <= 100
    assert delay({"ratelimit": '"resolvers";r=0;t=55'}) == 55
    for headers in ({}, {"retry-after": ""}, {"retry-after": "-1"}, {"retry-after": "soon"}, {"ratelimit": "r=3;t=9"}):
        assert delay(headers) is None
    assert delay({"retry-after": "9" * 400}) > 1e9


# ---- no network


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://no-such-host.invalid", "https://127.0.0.1:9", "nonsense", ""]
)
def test_no_network_is_one_message_with_the_address(home, capsys, monkeypatch, url):
    use(url, monkeypatch)
    code, err = download(capsys)
    assert code == 1 and f"there is no connection to {url}" in err
    assert not installed(home)


def test_a_server_without_tls_is_reported(hub, home, capsys, monkeypatch):
    use(hub.url.replace("http:", "https:"), monkeypatch)
    fails(hub, home, capsys, "no connection", "SSL")


def test_a_silent_server_times_out(home, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        monkeypatch.setattr(hub_module, "get_hf_file_metadata", lambda url: get_hf_file_metadata(url, timeout=0.2))
        code, err = download(capsys)
    assert code == 1 and "timed out" in err
