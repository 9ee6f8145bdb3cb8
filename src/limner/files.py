"""Files that appear whole or not at all, and folders that can take them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Give an empty file beside ``path`` that takes its place when the block ends well, and else disappears.

    It has the permissions of any new file (the process's umask decides), and a name of its own, so that two processes
    may write the same ``path``: the last one wins.

    Args:
        path: the file to write or replace; its folder exists.
        sync: wait until the disk has the contents, for what took hours to make.

    Raises:
        OSError: as the file system says, mostly before the block begins.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    permissions = _create(temporary)
    try:
        yield temporary
        # Some writers put a file of their own here, readable by nobody else: safetensors from 0.8.
        if stat.S_IMODE(temporary.stat().st_mode) != permissions:
            temporary.chmod(permissions)
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise, before long work, the error that writing ``path`` would end in; missing folders are not made.

    Args:
        path: the file to write or replace.

    Raises:
        OSError: it is a folder, or no file can be made in its folder or in the nearest one above that exists.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, expected a folder", str(path))
    probe = folder / f".{secrets.token_hex(8)}.part"
    try:
        _create(probe)
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _create(path: Path) -> int:
    """Create an empty file and return the permissions that it got."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
