"""Leaves a daemon, then sends the process above it, its supervisor or what stands for it, signal argv[1]."""

import os
import signal
import sys
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
if sys.argv[1] == "all":
    numbers = signal.valid_signals() - {signal.SIGSTOP, signal.SIGKILL, signal.SIGCONT}
else:
    numbers = [getattr(signal, sys.argv[1])]
for number in numbers:
    os.kill(os.getppid(), number)
time.sleep(1000)
