"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
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
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
