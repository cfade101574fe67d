"""Output folders that appear whole or not at all.

A folder is built under a hidden sibling name, every file is fsynced, and one rename publishes it.
Killed anywhere, the result is absent (or the former one), never a mixture. A run without an
identity starts afresh, and removes what a killed one left behind. A run with one builds under a
name made from it, behind a lock and beside a journal: the same command finds its work again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from suture.checkpoint.lock import Lock, gone, is_held, owner
from suture.errors import SutureError

CRASH = "SUTURE_CRASH_AT"  # tests: the process dies at the boundary of this name
CRASHED = 86

_SPARE = 1.2  # free space asked for, relative to what will be written
_FOLDER, _LOCK, _JOURNAL, _COMMIT = "folder", "lock", "journal", "commit"


def crash_point(*names: str) -> None:
    """End the process here, as a power cut would, when the environment asks for one of `names`."""
    if os.environ.get(CRASH) in names:
        os._exit(CRASHED)


class Stage:
    """A folder under construction: write into `path`, then `commit` or `discard`.

    `commit` is `seal` and `publish`; whoever has several outputs seals all before the first
    rename, and takes published ones back with `withdraw`. With `identity` (a hash of everything
    that decides the output) the stage outlives a killed process: `resumed` says that it did, and
    `suspend` leaves it for a later run. Without `resume` only what was sealed outlives it, for
    `roll_forward`, and anything less is begun afresh. Raises E124 at once when `out` is a non-empty
    folder or a file (unless `overwrite`), E125 when `need` bytes do not fit on the disk or the
    place cannot be written, E131 when a live run of the same identity is at work.
    """

    def __init__(
        self,
        out: Path | str,
        *,
        overwrite: bool = False,
        need: int = 0,
        identity: str | None = None,
        resume: bool = True,
    ) -> None:
        self.out, self.identity = Path(os.path.abspath(out)), identity
        self._resume = resume and identity is not None
        self._overwrite, self._renaming = overwrite, False
        self._lock: Lock | None = None
        with disk_errors(self.out):
            remove_stale(self.out, keep=identity)
        if not overwrite:
            refuse_existing(self.out)
        with disk_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.home = _home(self.out, identity)
            if identity is None:
                self.home.mkdir()
                self.path, self.resumed = self.home, False
            else:
                self._lock = _enter(self.home)
                self.path = self.home / _FOLDER
                if not resume:
                    _clear(self.home)
                self.resumed = self.path.is_dir() and (self.home / _JOURNAL).is_file()
                self.path.mkdir(exist_ok=True)
            # An owner that is dropped without commit or discard leaves nothing behind either,
            # unless all was sealed: that is for the next run.
            self._over = False
            self._remove = weakref.finalize(self, _remove_home, self.home, self._lock)
            try:
                _require_space(self.out, max(0, need - _used(self.home)))
            except SutureError:
                self.discard()
                raise

    @property
    def journal(self) -> Path:
        """Where a journal goes that is not part of the output."""
        return self.home / _JOURNAL

    def beside(self, name: str) -> Path:
        """A file that is not part of the output and that a resumed run finds again."""
        return self.home / name if self.identity else self.path / f".{name}"

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

    def mark(self, outs: Sequence[Path]) -> None:
        """Note that the outputs `outs` are all sealed: from here on, a later run publishes them."""
        if self.identity is not None:
            with disk_errors(self.out):
                write_mark(self.home / _COMMIT, outs)
            self._remove.detach()

    def publish(self) -> None:
        """Give what was sealed its final name."""
        crash_point("before-rename", f"before-rename:{self.out.name}")
        with disk_errors(self.out):
            if self._overwrite and self.out.exists():
                self._renaming = True
                former = self.out.with_name(f"{self.home.name}-former")
                os.rename(self.out, former)
                os.rename(self.path, self.out)
                shutil.rmtree(former, ignore_errors=True)
            else:
                refuse_existing(self.out)
                self._renaming = True
                _rename(self.path, self.out)
            fsync(self.out.parent)
        crash_point("after-rename", f"after-rename:{self.out.name}")
        self.discard()
        crash_point("after-publish", f"after-publish:{self.out.name}")

    def discard(self) -> None:
        """Remove what was staged; harmless after `commit`, `suspend` or twice."""
        self._remove.detach()
        if not self._over:
            _remove_home(self.home, self._lock)
            self._over = True

    def suspend(self, *, sealed: bool = False) -> None:
        """Leave what was staged to a later run of the same identity; `discard` where none could
        resume it. `sealed`: this and all other outputs of the run are, so that one can."""
        published = self._renaming and not self.path.is_dir()
        if published or not (self._resume or (sealed and self.identity is not None)):
            self.discard()
        self._remove.detach()
        if not self._over and self._lock is not None:
            self._lock.release()
        self._over = True

    def withdraw(self) -> None:
        """Remove the published folder, in one step; harmless when nothing was published. A folder
        that `overwrite` replaced does not come back."""
        if self._renaming and not self.path.is_dir():  # however soon after it an interrupt came
            self._renaming = False
            aside = _home(self.out, None)
            os.rename(self.out, aside)
            shutil.rmtree(aside, ignore_errors=True)


def roll_forward(outs: Sequence[Path | str], identity: str) -> bool:
    """Publish what an earlier run of this identity had sealed when it died; False if there is none.

    All of its outputs were whole by then, so either all have their names afterwards or an error
    says why not (E124 when somebody else has taken one meanwhile, E131 while that run lives).
    """
    wanted = [Path(os.path.abspath(out)) for out in outs]
    homes = {out: _home(out, identity) for out in wanted}
    for out in wanted:
        with disk_errors(out):
            remove_stale(out, keep=identity)
    if not any(read_mark(home / _COMMIT) == set(wanted) for home in homes.values()):
        return False
    for out, home in homes.items():
        if not home.is_dir():
            continue
        lock = _enter(home)
        try:
            with disk_errors(out):
                if (home / _FOLDER).is_dir() and any((home / _FOLDER).iterdir()):
                    refuse_existing(out)
                    _rename(home / _FOLDER, out)
                    fsync(out.parent)
            _remove_home(home, lock)
        finally:
            lock.release()
    return all(out.is_dir() for out in wanted)


def is_sealed(out: Path | str) -> bool:
    """Whether a run died with `out` whole and itself not at its end; see `roll_forward`."""
    out = Path(os.path.abspath(out))
    homes = out.parent.glob(f"{_glob_safe(_prefix(out))}run-*")
    return any(read_mark(home / _COMMIT) is not None for home in homes)


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
            where=os.path.abspath(out),
            why="nothing is overwritten",
            fix="choose another -o, or remove it first",
        )


def refuse_taken(out: Path | str, *others: Path) -> None:
    """`refuse_existing`, for a command that begins: first goes what killed runs left of `out` and
    `others`, also where the last of them died just after publishing."""
    with disk_errors(Path(out)):
        for path in (out, *others):
            remove_stale(Path(os.path.abspath(path)))
    refuse_existing(Path(out))


def refuse_inside(out: Path | str, source: Path) -> None:
    """SutureError E124 when the output would lie inside an input folder."""
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise SutureError(
            "E124",
            f"output '{Path(out).name}' lies inside the input folder '{source.name}'",
            where=os.path.abspath(out),
            why="inputs are never modified",
            fix="choose an -o outside it",
        )


def refuse_shared(outs: Sequence[Path]) -> None:
    """SutureError E124 where one of a run's outputs, `-o` and `--write`, is or holds the other."""
    real = [Path(os.path.realpath(out)) for out in outs]
    for place, other in itertools.permutations(real, 2):
        if place.is_relative_to(other):
            how = "are one folder" if place == other else "lie one inside the other"
            raise SutureError(
                "E124",
                f"-o and --write {how}",
                where=" and ".join(map(str, real)),
                why="the patch and the checkpoint are a folder each",
                fix="give two folders side by side, such as -o OUT.patch --write OUT",
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


def remove_stale(out: Path, *, keep: str | None = None) -> None:
    """Remove stages of `out` whose run is gone: those of runs without an identity by their owner's
    name, those of other identities than `keep` by their lock."""
    kept = _home(out, keep) if keep else None
    for entry in out.parent.glob(f"{_glob_safe(_prefix(out))}*"):
        parts = entry.name.removeprefix(_prefix(out)).split("-")
        if parts[0] == "run":
            if entry != kept and not is_held(entry / _LOCK):
                _remove_home(entry, None)
        elif len(parts) >= 4 and gone(*parts[:3]):
            former = parts[-1] == "former"
            if former and not out.exists():
                os.rename(entry, out)  # killed between the two renames of an overwrite
            else:
                shutil.rmtree(entry, ignore_errors=True)


def write_mark(path: Path, outs: Sequence[Path]) -> None:
    """Write the list of outputs so that a reader sees all of it or nothing."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps([str(out) for out in outs]))
    fsync(draft)
    os.replace(draft, path)
    fsync(path.parent)


def read_mark(path: Path) -> set[Path] | None:
    """The outputs of a sealed run, None where there is no such mark."""
    try:
        return {Path(str(out)) for out in json.loads(path.read_text())}
    except (OSError, ValueError, TypeError):
        return None


def _home(out: Path, identity: str | None) -> Path:
    label = f"{owner()}-{secrets.token_hex(4)}" if identity is None else f"run-{identity[:32]}"
    return out.with_name(_prefix(out) + label)


def _enter(home: Path) -> Lock:
    """Lock a home, made if need be; its last holder may be removing it at this moment."""
    while True:
        home.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return Lock(home / _LOCK)


def _rename(path: Path, out: Path) -> None:
    if os.name == "nt" and out.exists():
        out.rmdir()
    os.rename(path, out)


def _remove_home(home: Path, lock: Lock | None) -> None:
    """Under this process's name first: killed on the way, the rest is anybody's to remove. Then
    the journal: without it nobody believes in what is left."""
    prefix, run, _ = home.name.rpartition("run-")
    if run:
        aside = home.with_name(f"{prefix}{owner()}-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            os.rename(home, aside)
            home = aside
    with contextlib.suppress(OSError):
        (home / _JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(home, ignore_errors=True)
    if lock is not None:
        lock.release()


def _clear(home: Path) -> None:
    """Remove what an earlier run left in a home that is locked, journal first."""
    for entry in (home / _JOURNAL, home / _FOLDER, *home.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink(missing_ok=True)


def _used(home: Path) -> int:
    return sum(
        getattr(stat := file.stat(), "st_blocks", stat.st_size // 512) * 512
        for file in home.rglob("*")
        if file.is_file()
    )


def _require_space(out: Path, need: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if need * _SPARE > free:
        raise SutureError(
            "E125",
            f"not enough disk space: {need * _SPARE / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            where=str(out.parent),
            fix="free some space or write to another disk",
        )


def _prefix(out: Path) -> str:
    return f".{out.name}.staged-"


def _glob_safe(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)
