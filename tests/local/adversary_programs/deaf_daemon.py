"""A daemon by the book, double fork and own session, that ignores and blocks all signals."""

import os
import signal
import sys
import time

read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, range(1, signal.NSIG))
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.write(write, b".")
        while True:
            time.sleep(1000)
    os._exit(0)
os.read(read, 1)
if "stay" in sys.argv:
    time.sleep(1000)
