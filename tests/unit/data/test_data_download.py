import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from data_files import md5

from locallearn.data.download import download
from locallearn.errors import DataError

BODY = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


class _Handler(BaseHTTPRequestHandler):
    """Serves BODY; what it does is set on the server."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.path != "/x.tar.gz":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        body = BODY[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.asked, server.ranges, server.length, server.cut = [], True, True, None
    server.url = f"http://127.0.0.1:{server.server_port}/x.tar.gz"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new/x.tar.gz"


def _part(target, data=None):
    part = target.with_name("x.tar.gz.part")
    if data is not None:
        part.parent.mkdir(parents=True)
        part.write_bytes(data)
    return part


def test_whole(server, target, capsys):
    download(server.url, target, md5(BODY))
    assert target.read_bytes() == BODY
    assert server.asked == [None]
    assert [file.name for file in target.parent.iterdir()] == ["x.tar.gz"]
    assert capsys.readouterr().out == ""  # progress goes to standard error


def test_without_a_length(server, target):
    server.length = False
    download(server.url, target, md5(BODY))
    assert target.read_bytes() == BODY


def test_resumed(server, target):
    _part(target, BODY[:123_456])
    download(server.url, target, md5(BODY))
    assert server.asked == ["bytes=123456-"]
    assert target.read_bytes() == BODY


def test_a_server_without_ranges_starts_again(server, target):
    server.ranges = False
    _part(target, BODY[:123_456])
    download(server.url, target, md5(BODY))
    assert server.asked == ["bytes=123456-"]
    assert target.read_bytes() == BODY


def test_a_whole_part_is_only_checked(server, target):
    _part(target, BODY)
    download(server.url, target, md5(BODY))
    assert server.asked == ["bytes=300000-"]
    assert target.read_bytes() == BODY


def test_interrupted_then_continued(server, target):
    server.cut = 100_000
    with pytest.raises(DataError, match="stopped at 100000 of 300000 bytes; run it again to continue"):
        download(server.url, target, md5(BODY))
    assert not target.exists()
    assert _part(target).read_bytes() == BODY[:100_000]
    server.cut = None
    download(server.url, target, md5(BODY))
    assert server.asked == [None, "bytes=100000-"]
    assert target.read_bytes() == BODY
    assert not _part(target).exists()


@pytest.mark.parametrize("start", [None, b"", b"wrong" * 1000, BODY + b"more"])
def test_a_wrong_checksum_keeps_nothing(server, target, start):
    """A damaged part, and a server that has something else."""
    if start is not None:
        _part(target, start)
    expected = md5(BODY) if start else "0" * 32
    with pytest.raises(DataError, match=rf"is damaged: its MD5 is \w+, expected {expected}; it was removed"):
        download(server.url, target, expected)
    assert list(target.parent.iterdir()) == []
    download(server.url, target, md5(BODY))
    assert target.read_bytes() == BODY


def test_not_there(server, target):
    with pytest.raises(DataError, match=r"^cannot fetch http.*/y\.tar\.gz: Not Found$"):
        download(server.url.replace("x.tar", "y.tar"), target, md5(BODY))
    assert not target.exists()


def test_no_network_is_one_line(target):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DataError, match=r"^cannot fetch http://127\.0\.0\.1:\d+/x: .*refused$") as error:
        download(f"http://127.0.0.1:{port}/x", target, md5(BODY))
    assert "\n" not in str(error.value)


def test_an_unknown_host_is_one_line(target):
    with pytest.raises(DataError, match=r"^cannot fetch https://nowhere\.invalid/x: "):
        download("https://nowhere.invalid/x", target, md5(BODY))


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^cannot fetch .*file"):
        download(server.url, tmp_path / "file/x.tar.gz", md5(BODY))
