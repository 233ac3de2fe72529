"""The table of checks at a glance: how bad a finding can be, what is compared, within which tolerance.

Part of docs/doctor.md; tests hold it against the checks.
"""

from __future__ import annotations

from collections.abc import Mapping

from raytools.doctor.model import Severity

Row = tuple[Severity, str]

WORST_AND_COMPARED: Mapping[str, Row] = {
    "RT001": ("error", "cluster.yaml with the lock, and with what the machines have: exact"),
    "RT002": ("warning", "node.json with the plan of now: exact, but for measured values"),
    "RT003": ("warning", "each waiver with what was found under its code"),
    "RT004": (
        "error",
        "Ray and Python, pinned or locked, with the ranges that AutoGluon's and Ray's releases name: exact",
    ),
    "RT101": ("error", "CPUs declared, usable (affinity, cpuset, quota, online) and in Ray: exact"),
    "RT102": ("error", "CPUs of the slots with those the raylet may run on: exact"),
    "RT103": ("error", "limits of small real runs with what the kernel did"),
    "RT104": (
        "warning",
        "OMP_…, OPENBLAS_…, MKL_…, NUMEXPR_… and POLARS_… of each raylet with most others': exact",
    ),
    "RT105": ("warning", "processor model with most other nodes': exact"),
    "RT106": ("warning", "governor and turbo of the CPUs with most other nodes': exact"),
    "RT107": ("warning", "CPU time that the hypervisor takes away, looked at twice, with 5 %"),
    "RT108": ("warning", "CPUs and cores of each slot with the other slots': exact"),
    "RT201": ("error", "memory declared, usable and in Ray: 1 % below setup, 1 KiB in Ray"),
    "RT202": ("error", "/dev/shm with the object store: exact"),
    "RT203": ("warning", "swap with none"),
    "RT204": ("warning", "memory in Ray of like machines with their median: 2 % and 512 MiB"),
    "RT205": (
        "warning",
        "memory of slots and object store with the threshold of Ray's monitor: exact",
    ),
    "RT206": ("error", "memory of slots, object store and reserve with the node's at setup: 1 %"),
    "RT301": ("error", "GPUs declared, present and in Ray: exact"),
    "RT302": ("warning", "version of the NVIDIA driver with most other nodes': exact"),
    "RT303": ("warning", "processes that compute on GPUs with this cluster's runs"),
    "RT400": ("error", "whether node.json is there"),
    "RT401": (
        "error",
        "each file of the environment with its manifest: size and time, content where they differ",
    ),
    "RT402": ("error", "libgomp in the environment or the system"),
    "RT403": (
        "error",
        "interpreter of the raylet and versions of Python and Ray with the environment's: exact",
    ),
    "RT404": ("error", "content digest with the other nodes': exact"),
    "RT405": ("error", "whether each package that is installed, of a dozen, can be imported"),
    "RT406": (
        "warning",
        "how long `import ray` takes with the median of all nodes: three times and 3 s (of two nodes: info)",
    ),
    "RT501": (
        "error",
        "free space with 1 GiB (4 before the first build), 5 GiB and 5 %; inodes with 10,000 and 100,000",
    ),
    "RT502": ("error", "what is mounted with what is declared: exact; an answer within 5 s"),
    "RT503": ("warning", "file system of the environment with network file systems"),
    "RT504": (
        "error",
        "what Ray's user writes on each node with what it reads on all: content and owner",
    ),
    "RT505": (
        "error",
        "locks, renames and writes of a small file; 100 ms and three times the median for a write (info)",
    ),
    "RT601": ("error", "an answer within --timeout"),
    "RT602": ("error", "the planned address with the node's own; its name with loopback"),
    "RT603": ("warning", "the node's clock with the controller's: 2 s, and the time of the question"),
    "RT604": (
        "error",
        "connections from each node to what Ray listens with on others: an answer within 3 s",
    ),
    "RT605": ("warning", "MTU of the device with the cluster's address with most other nodes': exact"),
    "RT606": (
        "error",
        "a connection to the next node's last worker port within 10 s; a third of the median rate (info)",
    ),
    "RT607": ("warning", "where other nodes' names lead to with their addresses; unknown names are no fault"),
    "RT701": ("error", "nodes alive in Ray with those declared: exact"),
    "RT702": ("error", "flags in the environment of raylet and one worker (warning) with the plan's: exact"),
    "RT703": ("error", "signals the raylet ignores with SIGINT and SIGTERM"),
    "RT704": ("warning", "Rays on the node with ours"),
    "RT705": ("error", "the unit: enabled, delegated; 10 restarts"),
    "RT706": ("warning", "owner and mode of /tmp/ray, where it exists, with writable for all"),
    "RT801": ("error", "processes of Rays with living raylets"),
    "RT802": ("error", "open files with 8192 (warning) and 4096"),
    "RT803": ("warning", "held slots with living holders"),
    "RT804": ("warning", "processes in state D, looked at twice, with none; zombies with 100"),
    "RT805": (
        "warning",
        "CPUs and memory that others use with nodes.system_reserved: half a CPU more, looked at twice",
    ),
    "RT806": (
        "warning",
        "sessions of Ray that are over with 10 and 2 GiB; its living files and logs with 2 GiB",
    ),
    "RT807": ("error", "processes and threads that Ray may have with 4096 (warning) and 1024"),
    "RT901": ("error", "token's owner and mode; addresses of GCS and dashboard with what is declared"),
    "RT902": ("error", "owners and modes of root, toolkit, environment, plan and all directories above"),
    "RT903": ("error", "who may mount the storage with the cluster's nodes; root squash"),
    "RT904": ("warning", "what the inventory and Ansible's environment say of host keys with checking them"),
    "RT905": ("error", "digest of each node's token with the head's: exact"),
    "RT906": (
        "warning",
        "what of Ray the controller reaches by addresses that are not the cluster's: nothing",
    ),
}


def as_markdown(titles: Mapping[str, str], levels: Mapping[str, str]) -> str:
    """The table for the page; each code leads to its section."""
    lines = [
        "| code | check | level | at worst | what is compared, within which tolerance |",
        "|---|---|---|---|---|",
    ]
    for code, (worst, compared) in WORST_AND_COMPARED.items():
        lines.append(f"| {code} | {titles[code]} | {levels[code]} | {worst} | {compared} |")
    return "\n".join(lines)
