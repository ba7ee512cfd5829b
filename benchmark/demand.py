"""Prints the latency in milliseconds of missing pages: one page of each large file below a directory.

Reads the files from last to first, because the background downloads them from the other end. Pauses
a tenth of a second between reads and stops after a second, before all bytes are present. A page
that takes less than a round trip was present already and is not printed.
"""
import os
import sys
import time

LARGE = 4 << 20
PAUSE = 0.1
LASTS = 1.0
ROUND_TRIP = 0.020


def large_files(folder):
    for path, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(path, name)
            if not os.path.islink(file) and os.path.getsize(file) >= LARGE:
                yield file


def main():
    files = sorted(large_files(sys.argv[1]), reverse=True)
    ends = time.monotonic() + LASTS
    for file in files:
        if time.monotonic() > ends:
            break
        descriptor = os.open(file, os.O_RDONLY)
        middle = os.fstat(descriptor).st_size // 2
        start = time.monotonic()
        page = os.pread(descriptor, 4096, middle // 4096 * 4096)
        took = time.monotonic() - start
        if took > ROUND_TRIP:
            print(f"{took * 1000:.1f}")
        os.close(descriptor)
        assert len(page) == 4096
        time.sleep(PAUSE)


main()
