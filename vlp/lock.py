"""One run a folder: its lock, and that it can be written to, before anything is trained."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from vlp.checkpoint import CheckpointError
from vlp.room import nearest_there

NAME = "lock.json"


class Lock:
    """Holds a folder for this process, from its making to `release`.

    The file is locked with the system (fcntl), so of two starts at the same moment one is refused, and whatever ends
    the process ends the lock; children do not inherit it. The file says who holds it: process, when that was started
    (a number is given again to other programs), host. Where a file system has no locks that alone decides.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        refuse_unwritable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._handle = self._opened()
        try:
            held = self._locked()
            text = os.pread(self._handle, 4096, 0)
            if (holder := self._holder(text)) or not held:
                raise CheckpointError(
                    f"{folder} is in use by process {holder or 'just started'}; wait for it, stop it, or give this run "
                    "another name"
                )
            mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(mine).encode(), 0)
        except BaseException:
            os.close(self._handle)
            raise

    def _opened(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)

    def _locked(self) -> bool:
        """Whether this process has the lock of the file that is at the path now."""
        while True:
            try:
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return False
            except OSError:  # a file system without locks: what the file says has to do
                return True
            if self.path.exists() and os.path.samestat(os.fstat(self._handle), self.path.stat()):
                return True
            os.close(self._handle)  # its holder left and took it along between our opening and locking it
            self._handle = self._opened()

    def _holder(self, text: bytes) -> str:
        """Who holds the folder by the file's own words; nobody if that process is gone, or the words are torn."""
        try:
            held: dict[str, Any] = json.loads(text)
            pid, host = int(held["pid"]), str(held["host"])
        except (ValueError, KeyError, TypeError):
            return ""
        if host != socket.gethostname():
            return f"{pid} on {host} (remove {self.path} if that one is gone)"
        if pid == os.getpid() or not _lives(pid, str(held.get("started", ""))):
            return ""
        return str(pid)

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._handle)


def refuse_unwritable(folder: Path) -> None:
    """CheckpointError unless files can be made in the folder and in its checkpoints, or where these will be made."""
    for place in (folder, folder / "checkpoints"):
        probe = nearest_there(place) / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"1")
            probe.unlink()
        except OSError as error:
            raise CheckpointError(f"cannot write into {place}: {error}; choose another out=") from error


def _lives(pid: int, started: str) -> bool:
    """Whether the process is there, and is the one that was started then, as far as both are known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is somebody else's
        pass
    now = _started(pid)
    return not (started and now) or started == now


def _started(pid: int) -> str:
    """When a process was started, in ticks since the machine was; empty where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
