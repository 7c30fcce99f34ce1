"""The reaper: a small process that waits in line for the device, runs the engine, and records how it ended.

It needs nothing but the standard library, so that it starts in tens of milliseconds, stays small and cannot be taken
down by the engine's libraries. It lives in its own session: closing or killing the window does not touch it, and
killing it does not touch the engine, which inherits the run's lock and the device's lease. What the workbench needs
to read the same files (the lock, the line of tickets) is here too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

LOCK_FD_VARIABLE = "TASTEMAKER_LOCK_FD"
LEASE_FD_VARIABLE = "TASTEMAKER_LEASE_FD"
UNQUEUE = "unqueue"
"""A file of this name in the run folder takes a waiting run out of the line."""
POLL_S = 0.1
LOG_LIMIT_BYTES = 20 * 1024 * 1024


# ---- the lock: alive or dead is a flock, never a pid -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LockNote:
    """What the holder of a run's lock says of itself; it outlives the holder and must be read with ``held``."""

    state: str = ""  # "queued" or "running"; "" when nobody ever held it
    since: int = 0  # size of events.jsonl when this attempt began: later bytes are its own
    pid: int = 0  # of the engine
    started: int = 0  # its start time in clock ticks, so that a recycled pid is not taken for it
    ahead: int = 0  # how many wait before it, the one at work included
    lease: str = ""  # the device waited for


def take(path: Path, *, wait_s: float = 1.0) -> int | None:
    """Open and lock a file; return its descriptor, or None when another holds it.

    Waits a moment, since a mere look (:func:`held`) holds it for microseconds.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(handle)
                return None
            time.sleep(0.01)


def held(path: Path) -> bool:
    """Tell whether any living process holds the file's lock."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def write_note(handle: int, note: LockNote) -> None:
    """Replace the note in a held lock file; one write of fixed size, so that a reader never sees half of it."""
    os.pwrite(handle, json.dumps(asdict(note)).encode().ljust(512) + b"\n", 0)


def read_note(path: Path) -> LockNote:
    """Read the note in a lock file; an empty note when there is none."""
    try:
        given = json.loads(path.read_bytes())
        return LockNote(**{one.name: given[one.name] for one in fields(LockNote) if one.name in given})
    except (OSError, ValueError, TypeError):
        return LockNote()


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 when there is none (or no /proc)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def trim_torn_line(path: Path) -> int:
    """Cut what follows the last newline (a line torn by a crash) and return the file's size; 0 for no file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        size = end = os.fstat(handle).st_size
        while end > 0:
            start = max(0, end - 65536)
            cut = os.pread(handle, end - start, start).rfind(b"\n")
            if cut >= 0:
                end = start + cut + 1
                break
            end = start
        if end < size:
            os.ftruncate(handle, end)
        return end
    finally:
        os.close(handle)


# ---- the line: who came first gets the device first ------------------------------------------------------------


@contextlib.contextmanager
def _line(folder: Path) -> Iterator[None]:
    handle = os.open(folder / "line.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def draw_ticket(folder: Path) -> tuple[Path, int]:
    """Stand at the end of the device's line; return the ticket and the descriptor whose flock keeps it valid."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _line(folder):
        last = max((int(one.name[7:]) for one in folder.glob("ticket-*")), default=0)
        ticket = folder / f"ticket-{last + 1:012d}"
        handle = os.open(ticket, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ticket, handle


def tickets_before(folder: Path, ticket: Path) -> int:
    """Count living tickets ahead of ours; those of the dead are swept."""
    ahead = 0
    with _line(folder):
        for other in folder.glob("ticket-*"):
            if other.name < ticket.name:
                if held(other):
                    ahead += 1
                else:
                    other.unlink(missing_ok=True)
    return ahead


def lease_path(folder: Path) -> Path:
    """Where a device's lease is, given the folder of its line."""
    return folder / "lease"


# ---- the process -----------------------------------------------------------------------------------------------


class _Unqueued(Exception):
    """The run was taken out of the line."""


def wait_for_device(folder: Path, unqueue: Path, lock: int, note: LockNote) -> int:
    """Wait for our turn, then hold the device's lease; return its descriptor."""
    ticket, handle = draw_ticket(folder)
    told = -1
    try:
        while True:
            if unqueue.exists():
                raise _Unqueued
            ahead = tickets_before(folder, ticket)
            if ahead == 0:
                lease = take(lease_path(folder), wait_s=0.0)
                if lease is not None:
                    os.ftruncate(lease, 0)
                    os.pwrite(lease, os.fsencode(unqueue.parent), 0)
                    return lease
            if ahead + 1 != told:
                told = ahead + 1
                write_note(lock, LockNote("queued", note.since, ahead=told, lease=note.lease))
            time.sleep(POLL_S)
    finally:
        ticket.unlink(missing_ok=True)
        os.close(handle)


def rotate_log(log: Path) -> None:
    """Set a log aside that has grown past its limit; one old log is kept."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > LOG_LIMIT_BYTES:
            log.replace(log.with_name(log.name + ".1"))


def run_engine(run_dir: Path, argv: list[str], lock: int, lease: int, note: LockNote) -> dict[str, object]:
    """Start the engine in its own session, wait for it, and return what exit.json says of it."""
    log = run_dir / "engine.log"
    rotate_log(log)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    environment = os.environ | {LOCK_FD_VARIABLE: str(lock), LEASE_FD_VARIABLE: str(lease)}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=(lock, lease),
            start_new_session=True,
        )
    except OSError as error:
        return {"code": 127, "signal": None, "reason": f"the engine could not be started: {error}"}
    finally:
        os.close(output)
    running = LockNote("running", note.since, process.pid, start_ticks(process.pid), 0, note.lease)
    write_note(lock, running)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # at a shutdown the engine gets its own; we write down its end
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return describe_end(process.returncode, usage.ru_maxrss * 1024)


def describe_end(code: int, peak_rss_bytes: int) -> dict[str, object]:
    """Say in plain words how a process ended; ``code`` is negative for a signal, as subprocess has it."""
    if code >= 0:
        reason = "" if code == 0 else f"the engine ended with code {code}"
        return {"code": code, "signal": None, "peak_rss_bytes": peak_rss_bytes, "reason": reason}
    number = -code
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    causes: dict[int, str] = {
        signal.SIGKILL: "killed (signal 9): most likely the machine ran out of memory, or someone killed it",
        signal.SIGTERM: "asked to end (signal 15)",
        signal.SIGSEGV: "crashed in native code (signal 11, segmentation fault)",
        signal.SIGABRT: "aborted in native code (signal 6)",
        signal.SIGBUS: "crashed on a memory access (signal 7): a file may have been cut while it was in use",
        signal.SIGILL: "crashed on an instruction that this processor lacks (signal 4)",
        signal.SIGXFSZ: "stopped by the limit on file size (signal 25)",
    }
    reason = causes.get(number, f"ended by {name}")
    return {"code": None, "signal": number, "peak_rss_bytes": peak_rss_bytes, "reason": reason}


def write_exit(run_dir: Path, ended: dict[str, object]) -> None:
    """Write exit.json as one act."""
    ended = {**ended, "ended_at": datetime.now(UTC).isoformat(timespec="microseconds")}
    temporary = run_dir / ".exit.json.tmp"
    with temporary.open("w") as out:
        json.dump(ended, out)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(run_dir / "exit.json")


def main(arguments: list[str]) -> int:
    """Run as ``reaper.py LOCK_FD RUN_DIR LINE_FOLDER ENGINE_ARGV...``; the lock is already held by the descriptor.

    Goes on as a grandchild, so that the caller has nothing to wait for.
    """
    if os.fork():
        os._exit(0)
    lock, run_dir, line, argv = int(arguments[0]), Path(arguments[1]), Path(arguments[2]), arguments[3:]
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    unqueue = run_dir / UNQUEUE
    note = LockNote("queued", trim_torn_line(run_dir / "events.jsonl"), lease=line.name)
    (run_dir / "exit.json").unlink(missing_ok=True)
    try:
        lease = wait_for_device(line, unqueue, lock, note)
    except _Unqueued:
        unqueue.unlink(missing_ok=True)
        write_exit(run_dir, {"code": None, "signal": None, "reason": "taken out of the queue before it started"})
        return 0
    ended = run_engine(run_dir, argv, lock, lease, note)
    unqueue.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a full disk: the lock's release still tells that it ended
        write_exit(run_dir, ended)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
