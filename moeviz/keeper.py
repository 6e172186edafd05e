"""Keeps the window's run on disk while it trains, so that a crash does not take it: a trace that is removed when the
window closes. A trace that is still there, with nobody's lock on it and not marked as ended, is of a run that ended
without closing.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PySide6.QtCore import QLockFile

from moeviz.domain.messages import StepLog, UserError
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import Settings

MOST_LEFT = 3  # traces of crashed runs, the newest
MOST_LOGS = 64  # at a time
MOST_BYTES = 256 * 2**20  # of one run; what comes after is not kept


class Keeper:
    """`keep` and `tidy` are called on one thread at a time, `close` after; `left` and `end` take no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path: Path | None = None
        self._lock: QLockFile | None = None
        self._writer: object = None  # None too when no more of this run is kept
        self._run = -1
        self._bytes = 0
        self._rest: list[Path] = []

    def left(self) -> list[Path]:
        """Traces of runs that ended without closing, the newest first, and at most MOST_LEFT."""
        found = sorted(self.folder.glob("*.zarr"), key=lambda path: path.name, reverse=True)
        free = [path for path in found if self._nobodys(path)]
        crashed = [path for path in free if not _mark_of(path).exists()]
        left = [path for path in crashed[:MOST_LEFT] if (path / "zarr.json").is_file()]
        self._rest = [path for path in free if path not in crashed[:MOST_LEFT]]
        return left

    def tidy(self) -> None:
        """Remove what `left` has seen besides: what ended as it should, and older ones."""
        for path in self._rest:
            self.remove(path)

    def keep(
        self,
        run: int,
        settings: Settings,
        snapshot: RoutingSnapshot,
        logs: Sequence[StepLog],
        marks: Sequence[tuple[int, str]],
    ) -> None:
        """Append to the trace of this run; with another `run` the one before is removed. UserError if the disk refuses;
        then nothing more of this run is kept.

        Of many logs only some are kept, evenly: a short one holds a few steps of the run.
        """
        from moeviz.trace.store import TraceWriter

        if run != self._run:
            self.close()
            self._run, self._bytes = run, 0
            path = self.folder / f"{time.strftime('%Y-%m-%d %H-%M-%S')}-{time.time_ns() % 10**9:09}.zarr"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"The run is not kept on disk while it trains: {self.folder} cannot be made ({error.strerror})."
                ) from None
            self._path, self._lock = path, _lock_of(path)
            self._lock.tryLock(0)
            self._writer = TraceWriter.create(path, settings.to_json(), "moeviz window, kept while it ran")
        # put back when all is written: after a failure nothing is appended to half a trace
        writer, self._writer = self._writer, None
        if not isinstance(writer, TraceWriter) or self._bytes > MOST_BYTES:
            return
        writer.append(snapshot)
        for log in logs[:: len(logs) // MOST_LOGS + 1]:
            writer.add_log(log)
        for step, label in marks:
            writer.add_mark(step, label)
        writer.flush()
        self._writer = writer
        self._bytes += sum(layer.num_tokens * (layer.num_experts * 8 + layer.k * 8) for layer in snapshot.layers)

    def end(self) -> None:
        """The run ends as it should. If nobody can remove its trace any more, the next start does."""
        if self._path is not None:
            with suppress(OSError):
                _mark_of(self._path).touch()

    def close(self) -> None:
        """The run ended as it should: nothing of it stays."""
        path, self._path, self._writer, self._run = self._path, None, None, -1
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
            _mark_of(path).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.unlock()
            self._lock = None

    def remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        _lock_of(path).removeStaleLockFile()
        _mark_of(path).unlink(missing_ok=True)

    def _nobodys(self, path: Path) -> bool:
        if path == self._path:
            return False
        lock = _lock_of(path)
        free = lock.tryLock(0)
        lock.unlock()
        return free


def _mark_of(path: Path) -> Path:
    return path.with_suffix(".ended")


def _lock_of(path: Path) -> QLockFile:
    lock = QLockFile(str(path.with_suffix(".lock")))
    lock.setStaleLockTime(0)  # a run may take days; whose process is gone is stale all the same
    return lock
