"""Threads until there are no more; prints how many there were."""

import _thread
import os
import time

_thread.stack_size(64 << 10)
try:
    while True:
        _thread.start_new_thread(time.sleep, (1000,))
except RuntimeError:
    os.write(1, f"{_thread._count()}\n".encode())
    os._exit(0)
