"""Children stop and continue their parent, the command, as often as they can."""

import contextlib
import os
import signal
import time

command = os.getpid()
for _ in range(2):
    if os.fork() == 0:
        with contextlib.suppress(ProcessLookupError):  # killed first: they follow
            while True:
                os.kill(command, signal.SIGSTOP)
                os.kill(command, signal.SIGCONT)
        os._exit(0)
while True:
    time.sleep(1000)
