"""`links.py` with a server of this machine in the place of other sites."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tools.links import PAGES, links, problem


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/here" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_links_to_other_sites_are_opened(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](https://x.org/a#part) <https://x.org/b> [c](other.md) `http://127.0.0.1:1`\n")
    assert links([page]) == {"https://x.org/a": ["page.md"], "https://x.org/b": ["page.md"]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    assert problem(f"{address}/here") is None and "404" in str(problem(f"{address}/gone"))
    server.shutdown()
    server.server_close()
    assert "refused" in str(problem(f"{address}/here"))


def test_the_documentation_has_links_to_other_sites():
    assert len(links(PAGES)) > 10
