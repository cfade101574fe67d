"""Output folders that appear whole or not at all.

A folder is built under a hidden sibling name, every file is fsynced, and one rename publishes it.
Killed anywhere, the result is absent (or the former one), never a mixture; the next run for the
same output removes what a killed one left behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suture.errors import SutureError

_SPARE = 1.2  # free space asked for, relative to what will be written


class Stage:
    """A folder under construction: write into `path`, then `commit` or `discard`.

    `commit` is `seal` and `publish`; whoever has several outputs seals all before the first
    rename, and takes published ones back with `withdraw`. Raises E124 at once when `out` is a
    non-empty folder or a file (unless `overwrite`), E125 when `need` bytes do not fit on the disk
    or the place cannot be written.
    """

    def __init__(self, out: Path | str, *, overwrite: bool = False, need: int = 0) -> None:
        self.out = Path(os.path.abspath(out))
        self._overwrite, self._published = overwrite, False
        if not overwrite:
            refuse_existing(self.out)
        with disk_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self.out)
            free = shutil.disk_usage(self.out.parent).free
            if need * _SPARE > free:
                raise SutureError(
                    "E125",
                    f"not enough disk space: {need * _SPARE / 1e9:.2f} GB needed, "
                    f"{free / 1e9:.2f} GB free",
                    where=str(self.out.parent),
                    fix="free some space or write to another disk",
                )
            self.path = self.out.with_name(f"{_prefix(self.out)}{_owner()}-{secrets.token_hex(4)}")
            self.path.mkdir()
        # An owner that is dropped without commit or discard leaves nothing behind either.
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def commit(self) -> None:
        """Fsync everything and publish it under the final name."""
        self.seal()
        self.publish()

    def seal(self) -> None:
        """Make everything staged durable; nothing is visible yet."""
        with disk_errors(self.out):
            for file in sorted(self.path.rglob("*")):
                fsync(file)
            fsync(self.path)

    def publish(self) -> None:
        """Give what was sealed its final name."""
        with disk_errors(self.out):
            if self._overwrite and self.out.exists():
                former = self.out.with_name(f"{self.path.name}-former")
                os.rename(self.out, former)
                os.rename(self.path, self.out)
                shutil.rmtree(former, ignore_errors=True)
            else:
                refuse_existing(self.out)
                if os.name == "nt" and self.out.exists():
                    self.out.rmdir()
                os.rename(self.path, self.out)
            self._published = True
            fsync(self.out.parent)
        self._remove.detach()

    def discard(self) -> None:
        """Remove what was staged; harmless after `commit` or twice."""
        self._remove()

    def withdraw(self) -> None:
        """Remove the published folder, in one step; harmless when nothing was published. A folder
        that `overwrite` replaced does not come back."""
        if self._published:
            self._published = False
            os.rename(self.out, self.path)
            shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def staged_folder(out: Path | str, *, overwrite: bool = False, need: int = 0) -> Iterator[Path]:
    """Write into the yielded folder; it becomes `out` when the block ends without an exception."""
    stage = Stage(out, overwrite=overwrite, need=need)
    try:
        with disk_errors(stage.out):
            yield stage.path
        stage.commit()
    finally:
        stage.discard()


def refuse_existing(out: Path) -> None:
    """SutureError E124 unless `out` is free: absent or an empty folder."""
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise SutureError(
            "E124",
            f"output '{out.name}' exists and is not empty",
            where=str(out),
            why="nothing is overwritten",
            fix="choose another -o, or remove it first",
        )


def refuse_inside(out: Path | str, source: Path) -> None:
    """SutureError E124 when the output would lie inside an input folder."""
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise SutureError(
            "E124",
            f"output '{Path(out).name}' lies inside the input folder '{source.name}'",
            where=str(out),
            why="inputs are never modified",
            fix="choose an -o outside it",
        )


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a read-only place into SutureError E125."""
    try:
        yield
    except OSError as error:
        known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
        if error.errno not in (*known, errno.EFBIG):
            raise
        raise SutureError(
            "E125",
            f"cannot write: {os.strerror(error.errno)}",
            where=str(where),
            why="nothing was left behind and the inputs are as they were",
            fix="free some space or choose a folder you can write to, then run it again",
        ) from error


def fsync(path: Path) -> None:
    """Make a file or a folder's entries durable, where the platform can."""
    if path.is_dir() and os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_stale(out: Path) -> None:
    """Remove stages of `out` whose writer is gone: same host, and another boot or a dead pid."""
    host, boot, _pid = _owner().split("-")
    for entry in out.parent.glob(f"{_glob_safe(_prefix(out))}*"):
        parts = entry.name.removeprefix(_prefix(out)).split("-")
        if len(parts) < 4 or parts[0] != host or not parts[2].isdigit():
            continue
        if parts[1] != boot or not _alive(int(parts[2])):
            former = parts[-1] == "former"
            if former and not out.exists():
                os.rename(entry, out)  # killed between the two renames of an overwrite
            else:
                shutil.rmtree(entry, ignore_errors=True)


def _prefix(out: Path) -> str:
    return f".{out.name}.staged-"


def _glob_safe(text: str) -> str:
    return "".join(f"[{mark}]" if mark in "*?[" else mark for mark in text)


def _owner() -> str:
    """host-boot-pid of this process, so that a later run can tell whether it still lives."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "unknown"
    return f"{_short(socket.gethostname())}-{_short(boot)}-{os.getpid()}"


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 would end the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
