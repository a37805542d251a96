"""Downloads from a real server: broken connections, resumes, checksums."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jaxrec.data.transfer import download
from jaxrec.typing import UserError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; breaks off as often as the server's `breaks` says."""

    def do_GET(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        header = self.headers.get("Range") if server.ranges else None
        start = int(header.removeprefix("bytes=").removesuffix("-")) if header else 0
        server.starts.append(start)
        if self.path != "/file" or start >= len(CONTENT):
            self.send_response(404 if self.path != "/file" else 416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if header else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT)
        if server.breaks:
            server.breaks -= 1
            end = start + (end - start) // 2
        self.wfile.write(CONTENT[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    breaks = 0
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.starts: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}/file"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: Server, path: Path, **options) -> Path:
    return download(server.url, path, pause_s=0, **options)


def test_a_broken_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    path = get(server, tmp_path / "new" / "file", md5=MD5)
    assert path.read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.starts == [0, half, half + half // 2]
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.breaks = 1
    with pytest.raises(UserError, match=r"broke at 512,000 of 1,024,000.*Run again"):
        get(server, tmp_path / "file", md5=MD5, attempts=1)
    assert not (tmp_path / "file").exists()
    get(server, tmp_path / "file", md5=MD5, attempts=1)
    assert server.starts == [0, len(CONTENT) // 2]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.breaks, server.ranges = 1, False
    assert get(server, tmp_path / "file", md5=MD5).read_bytes() == CONTENT


def test_a_part_that_is_whole_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "file", md5=MD5).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path / "file", md5=MD5).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"md5 {MD5}, but {'0' * 32} was wanted"):
        get(server, tmp_path / "file", md5="0" * 32)
    assert not list(tmp_path.iterdir())


def test_a_good_copy_is_used_and_a_damaged_one_replaced(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "file", md5=MD5)
    get(server, path, md5=MD5)
    assert len(server.starts) == 1
    path.write_bytes(CONTENT[:-1])
    assert get(server, path, md5=MD5).read_bytes() == CONTENT


def test_without_a_published_checksum_the_first_one_counts(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = get(server, tmp_path / "file")
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert digest in capsys.readouterr().err
    note = tmp_path / "file.sha256"
    assert note.read_text() == f"{digest}  file\n"
    path.unlink()
    note.write_text(f"{'0' * 64}  file\n")
    with pytest.raises(UserError, match="was wanted"):
        get(server, path)


def test_a_file_that_is_not_there_is_said_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="404"):
        download(server.url + "s", tmp_path / "file")
    assert len(server.starts) == 1


def test_no_server_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be downloaded"):
        download("http://127.0.0.1:9/file", tmp_path / "file", attempts=2, pause_s=0)
