"""Takes argv[2] MiB: `anonymous`, `children` (10 MiB each), or `tmpfs` (a file argv[3] in /dev/shm)."""

import os
import sys
import time

MIB = 1 << 20
kind, size = sys.argv[1], int(sys.argv[2])
if kind == "anonymous":
    data = bytearray(size * MIB)
elif kind == "children":
    for _ in range(size // 10):
        if os.fork() == 0:
            data = bytearray(10 * MIB)
            time.sleep(1000)
    time.sleep(1000)
elif kind == "tmpfs":
    with open(f"/dev/shm/{sys.argv[3]}", "wb") as file:
        for _ in range(size):
            file.write(bytes(MIB))
print("survived")
