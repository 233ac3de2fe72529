"""RT8xx: nothing else works on the nodes, nothing hangs, and Ray's files leave room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raytools.doctor.model import Finding, Gathered, NodeReport, Severity, Skipped
from raytools.node.inspect_files import DEFAULT_TEMP_DIR
from raytools.node.inspect_load import BUSY_CPUS
from raytools.units import format_size

_MANY_ZOMBIES = 100  # each holds a process number; a worker that ends leaves one for a moment
_MANY_BYTES = 2 * 2**30
_MANY_SESSIONS = 10  # after a clean stop three are kept
_WARNING_PROCESSES = 4096  # a worker has 30 threads or so, before it computes
_SHOWN = 3


def hanging(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT804: no process waits for a device or a server for ever, and none forgets its dead children."""
    del cluster
    load = node.need("load")
    if load["stuck"]:
        message = (
            f"waiting for a device or a server without an end (state D, unchanged for a second): "
            f"{_people(load['stuck'])}"
        )
        fix = "Look at the storage: dmesg | tail; raytools doctor --only RT502. If nothing helps, reboot"
        yield Finding("RT804", "warning", node.name, message, fix, declared=0, physical=len(load["stuck"]))
    zombies = load["zombie_count"]
    if zombies >= _MANY_ZOMBIES:
        parents = ", ".join(f"{one['count']} of {_person(one)}" for one in load["zombies"][:_SHOWN])
        message = f"{zombies} processes have ended and are not collected by their parents: {parents}"
        parent = load["zombies"][0]["pid"]
        fix = f"End or repair the parent: kill {parent}"
        if parent == 1:
            fix = "Run an init that collects them as PID 1 (containers: docker run --init), or reboot"
        yield Finding("RT804", "warning", node.name, message, fix, declared=_MANY_ZOMBIES, physical=zombies)


def foreign(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT805: what is not this cluster's leaves the CPUs and the memory that were promised to runs."""
    del cluster
    load = node.need("load")
    reserved = node.config.nodes.system_reserved
    cpus, cpus_left = load["foreign_cpus"], reserved.cpus + BUSY_CPUS
    if cpus >= cpus_left:
        users = _people(load["users"]["cpu"])
        message = (
            f"{cpus:g} CPUs are used by what is not this cluster's: {users}. Runs that share these CPUs "
            "take longer than elsewhere"
        )
        fix = _fix_of_foreign(load["users"]["cpu"])
        yield Finding("RT805", "warning", node.name, message, fix, declared=cpus_left, physical=cpus)
    held = load["foreign_memory_bytes"]
    if held > reserved.memory:
        message = (
            f"{format_size(held)} of memory are held by what is not this cluster's: "
            f"{_people(load['users']['memory'])}. nodes.system_reserved.memory is "
            f"{format_size(reserved.memory)}: runs may not get what they were promised"
        )
        fix = _fix_of_foreign(load["users"]["memory"], "nodes.system_reserved.memory")
        yield Finding("RT805", "warning", node.name, message, fix, declared=reserved.memory, physical=held)


def _fix_of_foreign(users: list[Mapping[str, Any]], key: str = "nodes.system_reserved.cpus") -> str:
    end = f"End it (kill {users[0]['pid']}), or " if users else ""
    return f"{end}{'r' if end else 'R'}aise {key} in cluster.yaml"


def _people(found: list[Mapping[str, Any]]) -> str:
    shown = ", ".join(_person(one) for one in found[:_SHOWN])
    return shown + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def _person(one: Mapping[str, Any]) -> str:
    return f"{one['name']} (pid {one['pid']}, {one['user']})"


def files(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT806: what dead sessions and logs of Ray take."""
    del cluster
    node.need_installed()
    found = node.need("files")
    at_least = "" if found["complete"] else "at least "
    sessions, size = found["sessions"], sum(one["bytes"] for one in found["sessions"])
    if len(sessions) >= _MANY_SESSIONS or size >= _MANY_BYTES:
        paths = [str(one["path"]) for one in sessions]
        message = (
            f"{len(sessions)} sessions of Ray that are over take {at_least}{format_size(size)} "
            f"below {paths[0].rpartition('/')[0]}: Ray was not stopped, it crashed"
        )
        fix = "raytools doctor --fix (it keeps the last ones), or remove what is not needed by hand"
        yield Finding("RT806", "warning", node.name, message, fix, declared=_MANY_BYTES, physical=size)
    restart = "Restart Ray when nothing runs: ansible-playbook playbooks/ray.yml"
    remove = f"Remove old ones below {node.root}/logs"
    for what, taken, fix in (
        ("the files of this session of Ray", found["session_bytes"], restart),
        (f"the logs below {node.root}/logs", found["log_bytes"], remove),
    ):
        if taken is not None and taken >= _MANY_BYTES:
            message = f"{what} take {at_least}{format_size(taken)}"
            yield Finding("RT806", "warning", node.name, message, fix, declared=_MANY_BYTES, physical=taken)


def processes(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT807: Ray may have enough processes and threads."""
    del cluster
    most = node.need_raylet().get("processes_max")
    if most is None or most >= _WARNING_PROCESSES:
        return
    message = f"Ray's processes and threads may be {most} in all, {_WARNING_PROCESSES} are recommended"
    fix = "TasksMax=infinity in its unit, or `* - nproc 65536` in /etc/security/limits.d/raytools.conf"
    severity: Severity = "error" if most < _WARNING_PROCESSES // 4 else "warning"
    yield Finding("RT807", severity, node.name, message, fix, declared=_WARNING_PROCESSES, physical=most)


def default_temp_dir(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT706: a Ray that somebody starts without options, as AutoGluon's, can write where it will."""
    del cluster
    if not node.reachable:
        raise Skipped("the node did not answer")
    found = (node.inspection or {}).get("default_temp_dir")
    if found is None:
        return  # nothing is there
    if "problem" in found:
        raise Skipped(f"{DEFAULT_TEMP_DIR} could not be looked at: {found['problem']}")
    if found["usable"]:
        return
    kind = (
        f"belongs to {found['user']} with mode {found['mode']:04o}"
        if found["directory"]
        else "is no directory"
    )
    message = (
        f"{DEFAULT_TEMP_DIR} {kind}: a ray.init() without options that another user starts here fails. "
        "Limited runs have places of their own"
    )
    fix = f"If nobody needs it: rm -rf {DEFAULT_TEMP_DIR} (or chmod 1777 {DEFAULT_TEMP_DIR})"
    yield Finding("RT706", "warning", node.name, message, fix, physical=found["user"])
