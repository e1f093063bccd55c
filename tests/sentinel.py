"""A child process that ends a server and removes its files, even if the test run itself is killed.

After `kill -9` a test run cannot stop its servers. So each server has a sentinel: a small process that starts the
server, signals it on request, and reads its own stdin. When stdin ends, the owner is gone for whatever reason. Then the
sentinel ends the server with all its descendants and removes their folder.
"""

import atexit
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE = 10.0  # seconds that a process has to end after a signal


class Ward:
    """The part that runs in the sentinel. One process at a time, with its descendants, runs in one folder."""

    def __init__(self, user: int | None) -> None:
        self.user = user
        self.process: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self.folder = tempfile.mkdtemp(prefix="keyturn-test-")
        if user is not None:
            os.chown(self.folder, user, -1)

    def run(self, command: list[str], environment: dict[str, str] | None, log: str) -> int:
        if self.process and self.process.poll() is None:
            raise ChildProcessError(f"process {self.process.pid} still runs")
        with Path(log).open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **identity(self.user),
            )
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.poll() if self.process else self.exit_code

    def signal(self, number: int) -> None:
        if self.process:
            self.process.send_signal(number)

    def pause(self) -> set[int]:
        # A stopped process starts no child. So all are stopped once a search finds no new one.
        stopped: set[int] = set()
        while fresh := self.family() - stopped:
            send(signal.SIGSTOP, fresh)
            stopped |= fresh
        return stopped

    def resume(self) -> None:
        send(signal.SIGCONT, self.family())

    def kill(self) -> None:
        family = self.pause()
        send(signal.SIGKILL, family)
        if self.process:
            self.exit_code = self.process.wait()
            self.process = None  # from now on, the system may give its id to another process
        deadline = time.monotonic() + GRACE
        while family & {pid for pid, _, _ in processes()}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"still there after SIGKILL: {sorted(family)}")
            time.sleep(0.005)

    def family(self) -> set[int]:
        """The process, its process group and all descendants. (Each backend of PostgreSQL leads its own group.)"""
        if not self.process:
            return set()
        family = {self.process.pid} if self.process.poll() is None else set()
        table = processes()
        while fresh := {pid for pid, parent, group in table if parent in family or group == self.process.pid} - family:
            family |= fresh
        return family

    def end(self) -> None:
        try:
            self.resume()
            self.signal(signal.SIGINT)
            if self.process:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(GRACE)
            self.kill()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def identity(user: int | None) -> dict[str, Any]:
    """The arguments that make subprocess start a process as that user, with none of root's rights."""
    return {} if user is None else {"user": user, "group": pwd.getpwuid(user).pw_gid, "extra_groups": []}


def processes() -> list[tuple[int, int, int]]:
    """(pid, parent, process group) of every process that is not a zombie."""
    rows = []
    if not Path("/proc/self/stat").exists():
        table = subprocess.run(["ps", "-axo", "pid=,ppid=,pgid=,stat="], check=True, capture_output=True, text=True)
        rows = [line.split() for line in table.stdout.splitlines()]
    else:  # Linux, where a slim image has no ps
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # the process has ended meanwhile
                state, parent, group, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
                rows.append([stat.parent.name, parent, group, state])
    return [(int(pid), int(parent), int(group)) for pid, parent, group, state in rows if state[0] not in "ZX"]


def send(number: int, pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def main(user: str) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    ward = Ward(int(user) if user else None)
    try:
        print(json.dumps([ward.folder, None]), flush=True)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            try:
                result = getattr(ward, name)(*arguments)
                answer = [None if isinstance(result, set) else result, None]
            except (OSError, subprocess.SubprocessError) as error:
                answer = [None, str(error)]
            print(json.dumps(answer), flush=True)
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        ward.end()


class Sentinel:
    """The part that runs in the owner. The sentinel starts one process at a time, and cleans up at the end."""

    def __init__(self, user: int | None = None) -> None:
        self._lock = threading.Lock()
        # -I -S: Python starts fast, and no module of the checkout can replace one of the standard library.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, "" if user is None else str(user)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that Ctrl-C at the terminal reaches the owner alone
        )
        atexit.register(self.close)
        self.folder = Path(self._answer())

    def run(
        self,
        command: Sequence[str | Path],
        *,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Starts a process in the folder with its stdout and stderr in `log`, and returns its id."""
        words, variables = [str(word) for word in command], None if environment is None else dict(environment)
        return int(self._ask("run", words, variables, str(log or self.log)))

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def exit_code(self) -> int | None:
        """The exit code (negative: the signal that ended the process), or None while the process runs."""
        code: int | None = self._ask("poll")
        return code

    def signal(self, number: signal.Signals) -> None:
        self._ask("signal", number)

    def pause(self) -> None:
        """Sends SIGSTOP to the process and its descendants."""
        self._ask("pause")

    def resume(self) -> None:
        self._ask("resume")

    def kill(self) -> None:
        """Sends SIGKILL to the process and its descendants, and returns when they are gone."""
        self._ask("kill")

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> int | None:
        """Waits until the process ends (returns its exit code) or `until` holds (returns None). Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            if (code := self.exit_code()) is not None:
                return code
            if until():
                return None
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing happened in {seconds} s")
            time.sleep(0.02)

    def close(self) -> None:
        """Makes the sentinel end the process and remove the folder, and waits until that is done."""
        atexit.unregister(self.close)
        with self._lock:
            if self._process.returncode is None:
                self._process.communicate()

    def _ask(self, name: str, *arguments: object) -> Any:
        with self._lock:
            assert self._process.stdin
            print(json.dumps([name, *arguments]), file=self._process.stdin, flush=True)
            return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        answer, error = json.loads(self._process.stdout.readline())
        if error:
            raise OSError(error)
        return answer


if __name__ == "__main__":
    main(sys.argv[1])
