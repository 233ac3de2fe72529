"""Forks processes that sleep, each in a session of its own, says how many, and sleeps too."""

import json
import os
import sys
import time

count = int(sys.argv[1])
for _ in range(count):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
print(json.dumps({"processes": count}), flush=True)
time.sleep(60)
