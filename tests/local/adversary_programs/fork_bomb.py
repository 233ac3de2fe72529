"""Every process forks for ever; whoever meets the limit on processes says so once."""

import os

told = False
while True:
    try:
        os.fork()
    except OSError:
        if not told:
            told = True
            os.write(1, b"limit\n")
