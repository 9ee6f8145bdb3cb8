"""Keep freed memory in the process: large tensors then cost no page faults when they are made."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
KEEP_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell malloc to reuse freed blocks of any size; return whether this C library could be told.

    glibc maps every block above 32 MB anew, and the kernel then clears each of its pages when it is first touched:
    for a 134 MB tensor that is ten times the work of filling it.  Afterwards up to 2 GiB of freed memory stay with
    the process, so only programs call this, never the library by itself.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))
