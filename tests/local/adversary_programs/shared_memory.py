"""Leaves a System V segment of 100 MB under the key argv[1], its pages used."""

import ctypes
import sys

SIZE = 100_000_000
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(int(sys.argv[1]), SIZE, 0o1600)  # IPC_CREAT
assert segment >= 0, ctypes.get_errno()
ctypes.memset(libc.shmat(segment, None, 0), 1, SIZE)
