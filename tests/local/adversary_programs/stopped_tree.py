"""A parent, its children and their children in sessions of their own, all of which stop themselves."""

import os
import signal

for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        os.fork()
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
print("stopping", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
