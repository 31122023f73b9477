"""What the tests of remote stores share: servers on loopback, and stores in them."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import Request, urlopen
from xml.sax.saxutils import escape

import pytest

from saeflow.harvest.remote import connect
from saeflow.location import Url

_numbers = count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's S3-compatible server in a thread: where it listens."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line a request on stderr
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket, and an environment that says how to reach it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"bucket-{next(_numbers)}"
    with urlopen(Request(f"{s3_server}/{name}", method="PUT")):
        return f"s3://{name}"


@pytest.fixture(scope="session")
def upload() -> Callable[[Path, str], str]:
    """Copy a store to a URL, file by file, as any tool would; the URL."""

    def upload(folder: Path, url: str) -> str:
        remote = connect(Url(url))
        for path in folder.rglob("*"):
            if path.is_file():
                remote.put(path.relative_to(folder).as_posix(), path)
        return url

    return upload


@pytest.fixture(scope="session")
def objects() -> Callable[[str], dict[str, bytes]]:
    """All that is below a URL, by name."""

    def objects(url: str) -> dict[str, bytes]:
        remote = connect(Url(url))
        return {name: remote.read(name) or b"" for name in remote.names()}

    return objects


@pytest.fixture
def web() -> Iterator["ObjectServer"]:
    """A web server that also answers what GCS's clients ask; empty."""
    with serving() as server:
        yield server


@pytest.fixture
def gs_bucket(web: "ObjectServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket on a server that does what GCS's clients ask for."""
    key = {"gcs_base_url": web.url, "disable_oauth": True}
    account = {**key, "client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    return "gs://bucket"


@dataclass
class ObjectServer:
    """A server that runs in a thread.

    Attributes:
        url: where it listens.
        objects: what it holds, by path without the slash in front.
        generations: how often each of them was written.
        requests: method and path of each, with `bytes=...` behind it if a part was asked for.
        ranges: whether parts can be asked for.
        status: what every request is answered with, if not 0.
        delay: seconds before each answer.
        most_at_once: requests that waited for an answer at the same time.
    """

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: bool = True
    status: int = 0
    delay: float = 0.0
    most_at_once: int = 0
    waiting: int = 0


@contextmanager
def serving() -> Iterator[ObjectServer]:
    """An empty server."""
    server = ObjectServer()

    class Handler(_Handler):
        served = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: ObjectServer

    def do_GET(self) -> None:
        name, content = self._asked()
        query = parse_qs(urlsplit(self.path).query)
        self.served.waiting += 1
        self.served.most_at_once = max(self.served.most_at_once, self.served.waiting)
        time.sleep(self.served.delay)
        self.served.waiting -= 1
        if self.served.status:
            self._answer(self.served.status)
        elif "list-type" in query:
            self._list(name, query.get("prefix", [""])[0])
        elif content is None:
            self._answer(404)
        elif "Range" in self.headers and self.served.ranges:
            begin, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            first, stop = int(begin), min(int(end) + 1, len(content))
            if first >= len(content):
                self._answer(416)
            else:
                told = {"Content-Range": f"bytes {first}-{stop - 1}/{len(content)}"}
                self._answer(206, content[first:stop], **told)
        else:
            self._answer(200, content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        name, there = self._asked()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        generation = 0 if there is None else self.served.generations.get(name, 1)
        wanted = self.headers.get("x-goog-if-generation-match", str(generation))
        if wanted != str(generation):
            return self._answer(412)
        self.served.objects[name] = content
        self.served.generations[name] = self.served.generations.get(name, 0) + 1
        return self._answer(200)

    def do_DELETE(self) -> None:
        name, content = self._asked()
        self.served.objects.pop(name, None)
        self._answer(404 if content is None else 204)

    def _asked(self) -> tuple[str, bytes | None]:
        name = self._name()
        part = self.headers.get("Range", "")
        self.served.requests.append(f"{self.command} {name} {part}".strip())
        return name, self.served.objects.get(name)

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/")

    def _list(self, bucket: str, prefix: str) -> None:
        found = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(content)}</Size>"
            f"<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for name, content in sorted(self._below(f"{bucket}/").items())
            if name.startswith(prefix)
        )
        body = f"<ListBucketResult>{found}<IsTruncated>false</IsTruncated></ListBucketResult>"
        self._answer(200, body.encode())

    def _below(self, folder: str) -> dict[str, bytes]:
        objects = self.served.objects
        return {n.removeprefix(folder): objects[n] for n in objects if n.startswith(folder)}

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        tag = md5(body, usedforsecurity=False).hexdigest()
        for name, value in {
            "Content-Length": str(len(body)),
            "ETag": f'"{tag}"',
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "x-goog-generation": str(self.served.generations.get(self._name(), 1)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
