"""scripts/serve.py as the person meets it who starts it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest


@pytest.fixture(scope="module")
def artefact(scripts: Any, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("served") / "artefact"
    scripts.works("export", f"--workdir={trained}", f"--output={output}", "--k=5", "--nomeasure")
    return output


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"--compile_cache={tmp_path_factory.mktemp('programs')}"


@contextlib.contextmanager
def serving(scripts: Any, *flags: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, and where it listens."""
    with scripts.start("serve", "--port=0", *flags, JAX_DISABLE_MOST_OPTIMIZATIONS="1") as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ready in"):
                    yield process, line.split()[-1]
                    break
            else:
                raise AssertionError(process.stderr.read())
        finally:
            process.kill()


@pytest.mark.slow
def test_a_server_whose_output_nobody_reads_serves_and_ends(
    scripts: Any, artefact: Path, programs: str
) -> None:
    flags = (f"--artifact={artefact}", "--state=memory:", programs, "--drain=0")
    with serving(scripts, *flags) as (process, url):
        assert process.stdout and process.stderr
        process.stdout.close()  # as when who started it was killed
        process.send_signal(signal.SIGHUP)
        assert httpx.get(f"{url}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


@pytest.mark.grid
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_is_exported_served_and_ended(
    scripts: Any, artefact: Path, data: Path, programs: str, tmp_path: Path, number: int
) -> None:
    flags = (f"--artifact={artefact}", f"--state=sqlite:{tmp_path}/events.db", programs)
    with serving(scripts, *flags, f"--histories={data}", "--drain=0.1") as (process, url):
        assert url.startswith("http://127.0.0.1:")
        answer = httpx.post(f"{url}/v1/recommend", json={"user": "7", "k": 5}).json()
        assert len(answer["items"]) == 5 and answer["items"][0]["title"]
        assert "7" in httpx.get(f"{url}/v1/users", params={"query": "7"}).json()["users"]
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert out.splitlines() == ["ending: answering what is here.", "stopped."]
        assert (process.returncode, err) == (0, "")


def test_a_key_is_printed_once_and_opens_the_server(
    scripts: Any, artefact: Path, programs: str, tmp_path: Path
) -> None:
    keys = f"--keys={tmp_path / 'keys.jsonl'}"
    text = scripts.works("serve", keys, "--new_key=shop", "--scopes=serve", "--rate=3").strip()
    assert text not in (tmp_path / "keys.jsonl").read_text()
    assert os.stat(tmp_path / "keys.jsonl").st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "keys.jsonl").read_text())["rate"] == 3
    assert "a key called 'shop' already" in scripts.fails("serve", keys, "--new_key=shop")
    assert "--keys=FILE" in scripts.fails("serve", "--new_key=shop")
    with serving(scripts, f"--artifact={artefact}", "--state=memory:", keys, programs) as (_, url):
        body = {"user": "nobody", "k": 5, "fallback": "popular"}
        assert httpx.post(f"{url}/v1/recommend", json=body).status_code == 401
        headers = {"x-api-key": text}
        answer = httpx.post(f"{url}/v1/recommend", json=body, headers=headers)
        assert answer.status_code == 200 and answer.json()["fallback"]


def test_mistakes_end_in_one_sentence(scripts: Any, artefact: Path, tmp_path: Path) -> None:
    right, none = f"--artifact={artefact}", "--state=memory:"
    assert "--artifact=DIR, or --deployment=FILE" in scripts.fails("serve")
    said = scripts.fails("serve", f"--artifact={tmp_path / 'no'}", none, "--port=0")
    assert "is no artefact (it has no manifest.json)" in said
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = scripts.fails("serve", right, none, f"--port={port}")
        assert f"cannot listen on 127.0.0.1:{port}" in said and "Is another server there?" in said
    (tmp_path / "keys").write_text("{}")
    (tmp_path / "keys").chmod(0o600)
    said = scripts.fails("serve", right, none, "--port=0", f"--keys={tmp_path / 'keys'}")
    assert "keys, line 1: `name` is a text" in said
    (tmp_path / "rules.toml").write_text("[[deny]]\nname = 'x'")
    code, out, err = scripts.run(
        "serve", right, none, "--port=0", f"--rules={tmp_path / 'rules.toml'}"
    )
    assert code == 1 and "ready" not in out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "rules.toml" in err and "say which items are meant in one way" in err


def test_a_port_that_is_taken_while_the_model_loads_is_told_of(
    scripts: Any, artefact: Path, programs: str
) -> None:
    with socket.socket() as other:  # bound as another server's that loads too, and is faster
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        flags = (f"--artifact={artefact}", "--state=memory:", programs)
        port = f"--port={other.getsockname()[1]}"
        quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        with scripts.start("serve", port, *flags, **quick) as process:
            assert "every file is right" in process.stdout.readline()
            other.listen()
            out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "ready" not in out
    assert err.startswith("error: cannot listen on the port") and err.count("\n") == 1


def test_a_server_that_still_compiles_ends_at_once(
    scripts: Any, artefact: Path, tmp_path: Path
) -> None:
    flags = (f"--artifact={artefact}", "--state=memory:", "--port=0")
    with scripts.start("serve", *flags, f"--compile_cache={tmp_path}") as process:
        assert process.stdout is not None
        assert "every file is right" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "ready" not in out and "Traceback" not in err
