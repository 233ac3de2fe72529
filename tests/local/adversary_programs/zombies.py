"""Leaves a parent that never collects its dead: thousands of zombies."""

import os
import time

read, write = os.pipe()
if os.fork() == 0:
    for _ in range(3000):
        if os.fork() == 0:
            os._exit(0)
    os.write(write, b"3000\n")
    time.sleep(1000)
os.write(1, os.read(read, 100))
