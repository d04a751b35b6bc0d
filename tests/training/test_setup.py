"""What a training job sets before jax computes."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from nanocode_core.training.setup import keep_freed_memory

def faults():
    "Pages faulted in by a block of 64 MiB that is freed at once."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert "keep" not in sys.argv or keep_freed_memory()
print(faults(), faults())
"""


def page_faults(*arguments: str) -> tuple[int, int]:
    """Of the first block and of the second, in a process of its own: the setting is the process's."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    return first, second


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_freed_block_serves_the_next_one_without_a_page_fault() -> None:
    first, second = page_faults("keep")
    assert second < first / 8
    first, second = page_faults()  # what glibc does by itself
    assert second > first / 2
