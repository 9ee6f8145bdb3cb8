from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from limner.nn.memory import keep_freed_memory

FAULTS = """
import resource, torch
from limner.nn.memory import keep_freed_memory
x = torch.zeros(2**24)  # 64 MB, above what malloc reuses by itself
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        x * 2
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
assert keep_freed_memory()
faults()  # the heap grows once
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_freed_memory_is_used_again():
    # In a process of its own: the setting cannot be taken back.
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True, text=True)
    plain, kept = map(int, done.stdout.split())
    assert kept * 4 < plain


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
