"""`raytools run --check`: proves each limit by small real runs; says what to do where one does not hold."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raytools.errors import RefusedError
from raytools.node import cgroup, launch
from raytools.node.plain import Plain, as_dict
from raytools.node.plan_file import Node, load_node
from raytools.node.record import OK, OOM, REFUSED, TIMEOUT, Record
from raytools.node.request import BEST_EFFORT, STRICT, RunRequest

_MEMORY_BYTES = 256 * 2**20
_WAIT_S = 60.0  # the runs take a slot for a second each; a fit beside them may take long

# what a run would do to leave its slot; each prints one word that the check looks for
_REPIN = """
import os
try:
    os.sched_setaffinity(0, range(os.cpu_count()))
except OSError:
    pass
print(*sorted(os.sched_getaffinity(0)))
"""
_ALLOCATE = f"data = bytearray({2 * _MEMORY_BYTES}); print('survived')"
_ESCAPE = """
import glob
import os
opened = []
for pattern in ('/sys/fs/cgroup/**/cgroup.procs', '/proc/[0-9]*/root/sys/fs/cgroup/*/cgroup.procs'):
    for path in glob.glob(pattern, recursive=True)[:50]:
        try:
            open(path, 'w').close()
            opened.append(path)
        except OSError:
            pass
others = [pid for pid in os.listdir('/proc') if pid.isdigit() and int(pid) not in (1, os.getpid())]
print('opened ' + opened[0] if opened else 'saw ' + str(len(others)) + ' processes' if others else 'confined')
"""
_MULTIPLY = """
import _thread, os, time
_thread.stack_size(65536)
count = 1
try:
    while count < 100000:
        _thread.start_new_thread(time.sleep, (60,))
        count += 1
except RuntimeError:
    pass
print(count, flush=True)
os._exit(0)
"""
_DAEMONS = """
import os, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.fork()
    os.write(write, b'x')
    time.sleep(60)
count = 0
while count < 2:
    count += len(os.read(read, 2))
"""
_SHARED_MEMORY = "open('/dev/shm/raytools-check', 'w').close()"


class Proof(Plain):
    """One limit: whether it held, and by what."""

    limit: str
    holds: bool
    how: str


class BusyError(RefusedError):
    """Other runs have the node: nothing can be proved now, and nothing is wrong either."""


def main(node_file: str | None, as_json: bool = False) -> int:
    """Prints the table and, if something is missing, the one command that changes it; 0 if all is green.

    Raises:
        BusyError: other runs have the node (with `as_json` it is printed as `busy`, exit code 125).
    """
    node = load_node(node_file)
    try:
        proofs, fix = prove(node, node_file)
    except BusyError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "busy": error.found, "fix": None, "limits": []}))
        return error.exit_code
    if as_json:
        green = all(proof.holds for proof in proofs)
        answer = {"ok": green, "busy": None, "fix": fix, "limits": [as_dict(proof) for proof in proofs]}
        print(json.dumps(answer))
    else:
        for line in table(proofs, fix):
            print(line)
    return 0 if all(proof.holds for proof in proofs) else 1


def table(proofs: Sequence[Proof], fix: str | None) -> list[str]:
    """The lines for people."""
    width = max(len(proof.limit) for proof in proofs)
    lines = [f"{'ok  ' if p.holds else 'NO  '} {p.limit:<{width}}  {p.how}" for p in proofs]
    if fix:
        lines.append(f"To enforce what is missing: {fix}")
    return lines


def prove(node: Node, node_file: str | None) -> tuple[list[Proof], str | None]:
    """Real runs, one limit each. Returns the proofs and the command that allows what is missing."""
    enforce, fix = STRICT, None
    first, _ = _run(node_file, STRICT, "")
    if first.outcome == REFUSED:
        enforce, fix, refusal = BEST_EFFORT, cgroup.grant_command(), first.message
    proofs = [
        _cpu(node, node_file, enforce),
        _memory(node_file, enforce),
        _processes(node_file, enforce),
        _time(node_file, enforce),
        _orphans(node_file, enforce),
        _confinement(node_file, enforce),
    ]
    if fix is not None:
        proofs = [
            Proof(p.limit, False, f"{p.how}; {refusal}") if p.limit in ("cpu", "memory", "processes") else p
            for p in proofs
        ]
    return proofs, fix


def _run(
    node_file: str | None,
    enforce: str,
    script: str,
    time_s: float | None = 20.0,
    cpus: int | None = None,
) -> tuple[Record, str]:
    """One small run; returns its record and what it printed."""
    read, write = os.pipe()
    request = RunRequest(
        command=[sys.executable, "-I", "-c", script],
        cwd="/",
        environment=dict(os.environ),
        cpus=cpus,
        memory_bytes=_MEMORY_BYTES,
        time_s=time_s,
        wait_s=_WAIT_S,
        enforce=enforce,
        node_file=node_file,
    )
    run = launch.start(request, stdio=(0, write, 2))
    os.close(write)
    record = run.wait(_on_event)
    with os.fdopen(read) as output:
        return record, output.read().strip()


def _on_event(event: dict[str, Any]) -> None:
    if event["event"] == "notice":
        print(f"raytools run --check: {event['text']}", file=sys.stderr)
    if event["event"] == "busy":
        raise BusyError(event["text"])


def _proof(limit: str, record: Record, holds: bool, how: str | None, otherwise: str) -> Proof:
    if record.outcome == REFUSED:
        return Proof(limit, False, record.message or "refused")
    return Proof(limit, holds, f"{how}" if holds else otherwise)


def _cpu(node: Node, node_file: str | None, enforce: str) -> Proof:
    record, printed = _run(node_file, enforce, _REPIN, cpus=1)
    allowed = " ".join(map(str, (record.limits.cpu_set or [])))
    single = len(node.slots[0].cpus) == 1 and os.cpu_count() == 1
    how = f"{record.enforced.cpu}: re-pinning itself left it on CPU {printed}"
    return _proof("cpu", record, printed == allowed or single, how, f"it could move itself to CPUs {printed}")


def _memory(node_file: str | None, enforce: str) -> Proof:
    record, printed = _run(node_file, enforce, _ALLOCATE)
    holds = record.outcome == OOM and printed != "survived"
    how = f"{record.enforced.memory}: stopped at {_MEMORY_BYTES >> 20} MiB"
    return _proof("memory", record, holds, how, f"allocating twice the limit ended {record.outcome}")


def _processes(node_file: str | None, enforce: str) -> Proof:
    if enforce == BEST_EFFORT:  # thousands of processes that nothing would stop
        return Proof("processes", False, "not limited")
    record, printed = _run(node_file, enforce, _MULTIPLY)
    most = record.limits.pids or 0
    holds = record.outcome == OK and printed.isdigit() and int(printed) <= most
    how = f"{record.enforced.cpu}: no more than {printed} threads and processes"
    return _proof("processes", record, holds, how, f"{printed} of {most} allowed ones, {record.outcome}")


def _time(node_file: str | None, enforce: str) -> Proof:
    record, _ = _run(node_file, enforce, "import time; time.sleep(60)", time_s=0.5)
    how = f"{record.enforced.time}: ended after {record.used.wall_s or 0:.2f} s of 0.5 s"
    return _proof("time", record, record.outcome == TIMEOUT, how, f"a run of 60 s ended {record.outcome}")


def _orphans(node_file: str | None, enforce: str) -> Proof:
    record, _ = _run(node_file, enforce, _DAEMONS)
    swept, left = record.used.processes_swept, record.used.processes_left
    holds = record.outcome == OK and swept == 2 and left == 0
    how = f"{record.enforced.time}: two daemons killed with the run"
    return _proof("orphans", record, holds, how, f"{swept} of 2 daemons killed, {left} left")


def _confinement(node_file: str | None, enforce: str) -> Proof:
    record, printed = _run(node_file, enforce, f"{_ESCAPE}\n{_SHARED_MEMORY}")
    left = Path("/dev/shm/raytools-check")
    stayed = left.exists()
    left.unlink(missing_ok=True)
    holds = record.enforced.confinement is not None and printed == "confined" and not stayed
    missing = next((m for m in record.enforced.missing if m.startswith("confinement")), f"it {printed}")
    how = f"{record.enforced.confinement}: sees its own processes, group and /dev/shm only"
    return _proof("confinement", record, holds, how, missing)
