"""Uses as much CPU time and memory as it is told and prints what it used itself, as JSON."""

import argparse
import json
import mmap
import os
import resource
import time
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Alone, or through children that hold their memory at the same time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--children", type=int, default=0)
    parser.add_argument("--cpu", type=float, default=0.0, help="CPU seconds of each process")
    parser.add_argument("--memory", type=int, default=0, help="MiB of anonymous memory of each process")
    parser.add_argument("--hold", type=float, default=0.3, help="seconds the memory is kept")
    options = parser.parse_args()
    if options.children:
        anon_bytes = work_through_children(options)
    else:
        with touch(options.memory):
            anon_bytes = own_anon_bytes([os.getpid()])
            time.sleep(options.hold)
            burn(options.cpu)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
    print(json.dumps({"cpu_s": cpu_s, "anon_bytes": anon_bytes}), flush=True)
    os._exit(0)  # the interpreter's own end would be work that nobody here can measure


def work_through_children(options: argparse.Namespace) -> int:
    """Starts them, measures while all hold their memory, and waits for their end."""
    told_read, told_write = os.pipe()
    go_read, go_write = os.pipe()
    pids = []
    for _ in range(options.children):
        pid = os.fork()
        if pid == 0:
            os.close(go_write)
            with touch(options.memory):
                burn(options.cpu)
                os.write(told_write, b"r")
                os.read(go_read, 1)  # ends with the parent's end of the pipe
            os._exit(0)
        pids.append(pid)
    for _ in pids:
        os.read(told_read, 1)
    anon_bytes = own_anon_bytes([os.getpid(), *pids])
    time.sleep(options.hold)
    os.close(go_write)
    for pid in pids:
        os.waitpid(pid, 0)
    return anon_bytes


def touch(mib: int) -> mmap.mmap:
    """Anonymous memory, every page written; given back when its `with` ends."""
    block = mmap.mmap(-1, max(1, mib) << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, mib << 20, PAGE_BYTES):
        block[offset] = 1
    return block


def burn(cpu_s: float) -> None:
    """Computes until this process has used that much CPU time since it was forked."""
    while time.process_time() < cpu_s:
        sum(range(10_000))


def own_anon_bytes(pids: list[int]) -> int:
    """Anonymous memory of these processes, what they share counted once (proc(5), smaps_rollup)."""
    found = 0
    for pid in pids:
        with Path(f"/proc/{pid}/smaps_rollup").open() as lines:
            found += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
    return found


main()
