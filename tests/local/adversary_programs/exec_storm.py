"""Relays of processes: each starts its successor by vfork and exec, and ends. No process id stays."""

import os
import sys
import time

ARGUMENTS = [sys.executable, "-S", "-E", __file__, "relay"]
if sys.argv[1:] == ["relay"]:
    os.posix_spawn(sys.executable, ARGUMENTS, os.environ, setsid=True)
    os._exit(0)
for _ in range(20):
    os.posix_spawn(sys.executable, ARGUMENTS, os.environ)
while True:
    os.posix_spawn("/bin/true", ["true"], os.environ)
    time.sleep(0)
