"""``cellctl`` as a user runs it, a process for each call, without the second that an interpreter takes to load it: each is
forked from one that has loaded everything, has one thread, and has done nothing else.

``run`` is for tests. The rest is the process that is forked from: it ends with the test's process, which holds its stdin.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import IO

MAX_REQUEST_BYTES = 1 << 20


def run(
    args: list[str], timeout_s: float, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The exit code and what was written. ``env``: beside that of this process. Raises TimeoutError; the process goes on
    then."""
    request = json.dumps({"args": args, "cwd": os.getcwd(), "env": {**os.environ, **(env or {})}}).encode()
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s,
    ):
        s.settimeout(timeout_s)
        s.connect(_address(os.getpid()))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST_BYTES)
        socket.send_fds(s, [request], [out.fileno(), err.fileno()])
        answer = s.recv(64)
        assert answer, "the process that cellctl is forked from has failed; see the test's stderr"
        return subprocess.CompletedProcess(["cellctl", *args], int(answer), _text(out), _text(err))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@functools.cache
def _address(pid: int) -> str:
    """Where the process listens that belongs to this one, ``pid``: started by the first call."""
    folder = tempfile.mkdtemp(prefix="preloaded-")
    path = f"{folder}/sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.preloaded", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(process.kill)
    return path


# --- the process that is forked from --------------------------------------------------------------


def _serve(path: str) -> None:
    import cellctl.main  # noqa: F401  what every child has

    assert threading.active_count() == 1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(64)
        os.write(1, b"ready\n")
        os.dup2(2, 1)
        while True:
            if 0 in select.select([0, listener.fileno()], [], [])[0]:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _wait_for(connection)
            connection.close()


def _wait_for(connection: socket.socket) -> None:
    """Carry out one request in a child, tell its exit code, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        raw, fds, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 2)
        child = os.fork()
        if child == 0:
            connection.close()
            _carry_out(json.loads(raw), *fds)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.send(str(code).encode())
    os._exit(0)


def _carry_out(request: dict[str, object], out: int, err: int) -> None:
    from cellctl.main import run as cellctl

    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(request["env"])  # type: ignore[call-overload]
        os.chdir(str(request["cwd"]))
        code = cellctl(request["args"])  # type: ignore[arg-type]
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
