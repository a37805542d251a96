"""Scripts as processes of their own that need not import anything: forks of one that has done it.

Importing JAX, Flax and Orbax takes longer than most of what a test asks of a script. One process
for each worker of the suite imports them, starts no backend, and forks for each script, which then
has its own arguments, environment, output, exit code and signals, as if started from a shell.
"""

import contextlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
_MODULES = (
    *("jaxrec.training", "jaxrec.evaluation", "jaxrec.finetuning", "jaxrec.compression"),
    *("jaxrec.distillation", "jaxrec.export.run", "jaxrec.data.clean", "duckdb"),
    *("optax", "orbax.checkpoint", "pandas", "pyarrow.parquet", "tensorboardX"),
)


class Process:
    """What `subprocess.Popen` offers, of a process that is a child of another one."""

    def __init__(self, pid: int, stdout: int, stderr: int, status: int):
        self.pid, self._status = pid, status
        self._code: int | None = None
        self.stdout: IO[str] = os.fdopen(stdout)
        self.stderr: IO[str] = os.fdopen(stderr)

    @property
    def returncode(self) -> int:
        """The exit code, or minus a signal, of a process that was seen to have ended."""
        assert self._code is not None
        return self._code

    def poll(self) -> int | None:
        """Returns the exit code, or minus a signal; None while the process runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code once there is one."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Returns what is left of stdout and stderr, once the process has ended."""
        found = ["", ""]

        def read(index: int, stream: IO[str]) -> None:
            found[index] = stream.read()

        pairs = enumerate((self.stdout, self.stderr))
        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in pairs]
        end = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if end is None else max(0.0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        self.stdout.close()
        self.stderr.close()
        self.wait(None if end is None else max(0.1, end - time.monotonic()))
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *raised: object) -> None:
        for stream in (self.stdout, self.stderr):
            stream.close()
        self.wait()

    def _ended(self, timeout: float | None) -> int | None:
        if self._code is not None:
            return self._code
        if not select.select([self._status], [], [], timeout)[0]:
            return None
        told = os.read(self._status, 16)
        os.close(self._status)
        assert told, "the process that forks has died"
        self._code = os.waitstatus_to_exitcode(int(told))
        return self._code


class Preloaded:
    """Starts scripts from a process that has imported what they import.

    Args:
      environment: of that process, and so of the scripts.
    """

    def __init__(self, environment: dict[str, str]):
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=environment,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )

    def start(
        self, arguments: Sequence[str], *, kibibytes: int = 0, variables: dict[str, str]
    ) -> Process:
        """Starts a script.

        Args:
          arguments: the script, relative to the repository, and its flags.
          kibibytes: no file that it writes may grow beyond, when above 0.
          variables: further ones of the environment.
        """
        order = {"arguments": list(arguments), "kibibytes": kibibytes, "variables": variables}
        out, err, status = (os.pipe() for _ in range(3))
        given = [out[1], err[1], status[1]]
        socket.send_fds(self._socket, [json.dumps(order).encode()], given)
        for end in given:
            os.close(end)
        pid = int(self._socket.recv(32))
        return Process(pid, out[0], err[0], status[0])

    def close(self) -> None:
        """Ends the process that forks."""
        self._socket.close()
        self._server.kill()
        self._server.wait()


def _serve(orders: socket.socket) -> list[str] | None:
    """Forks for each order; returns None at the end, and in a fork the arguments to run."""
    running: dict[int, int] = {}
    waking, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    while True:
        ready = select.select([orders.fileno(), waking], [], [])[0]
        if waking in ready:
            os.read(waking, 4096)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    told = running.pop(pid)
                    with contextlib.suppress(BrokenPipeError):
                        os.write(told, str(status).encode())
                    os.close(told)
        if orders.fileno() in ready:
            text, given, _, _ = socket.recv_fds(orders, 1 << 20, 3)
            if not text:
                return None
            out, err, told = given
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for unused in (orders.fileno(), waking, wakes, told, *running.values()):
                    os.close(unused)
                orders.detach()
                return _become(json.loads(text), out, err)
            os.close(out)
            os.close(err)
            running[pid] = told
            orders.send(str(pid).encode())


def _become(order: dict[str, Any], out: int, err: int) -> list[str]:
    for descriptor, number in ((out, 1), (err, 2)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if order["kibibytes"]:
        limit = order["kibibytes"] * 1024
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.environ.update(order["variables"])
    arguments: list[str] = order["arguments"]
    return arguments


def _main() -> None:
    import importlib

    orders = socket.socket(fileno=int(sys.argv[1]))
    for name in _MODULES:
        importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks; no backend has started here
        arguments = _serve(orders)
    if arguments is not None:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).parent.absolute())
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _main()
