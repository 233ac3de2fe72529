"""Eight threads pin themselves to all CPUs and compute for half a second; prints the CPUs that were seen."""

import contextlib
import ctypes
import os
import threading
import time

libc = ctypes.CDLL(None)
seen = set()


def work():
    for _ in range(8):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, range(os.cpu_count()))
        seen.update(os.sched_getaffinity(0))
        seen.add(libc.sched_getcpu())
        end = time.monotonic() + 0.01
        while time.monotonic() < end:
            pass


threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for _process in range(2):
    if os.fork() == 0:
        work()
        print(*sorted(seen), flush=True)
        os._exit(0)
for thread in threads:
    thread.join()
for _process in range(2):
    os.wait()
print(*sorted(seen))
