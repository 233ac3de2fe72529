"""RT8xx: nothing of dead Rays or killed runs is left, and Ray may open enough files."""

from __future__ import annotations

from collections.abc import Iterator

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Severity, Skipped

_SHOWN = 5
# `ray start` itself warns below 8192; a worker takes about ten, an object transfer several
_WARNING_FILES = 8192
_ERROR_FILES = 4096


def leftovers(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT801: processes of Rays that are dead hold CPU, memory and GPUs against every run."""
    del cluster
    left = node.need("rays")["leftovers"]
    if not left:
        return
    shown = "; ".join(
        f"pid {one['pid']} of {one['user']}: {one['command']}" + (" (this cluster's)" if one["ours"] else "")
        for one in left[:_SHOWN]
    )
    rest = f"; and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    message = f"{len(left)} processes are left of Rays that are dead: {shown}{rest}"
    fix = "kill " + " ".join(str(one["pid"]) for one in left)
    yield Finding("RT801", "error", node.name, message, fix, declared=0, physical=len(left))


def open_files(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT802: the limit of open files of the running raylet, or of this user where none runs."""
    del cluster
    facts = node.need_facts()
    ours = ((node.inspection or {}).get("rays") or {}).get("ours") or []
    if ours and ours[0]["nofile"] is not None:
        whose, files = "the raylet", ours[0]["nofile"]["soft"]
    elif ours:
        raise Skipped(f"the limits of {ours[0]['user']}'s raylet may not be read")
    else:
        whose, files = f"user {facts['user']['name']} (hard limit)", facts["limits"]["nofile_hard"]
    if files is None or files >= _WARNING_FILES:
        return
    message = (
        f"open files: {whose} may open {files}, {_WARNING_FILES} are recommended "
        f"(less than {_ERROR_FILES} is an error)"
    )
    fix = (
        "LimitNOFILE=65536 in the unit, or `* hard nofile 65536` in /etc/security/limits.d/raytools.conf; "
        f"then: {PROVISION}"
    )
    severity: Severity = "error" if files < _ERROR_FILES else "warning"
    yield Finding("RT802", severity, node.name, message, fix, declared=_WARNING_FILES, physical=files)


def stale_runs(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT803: what a killed supervisor left: a held file, maybe a cgroup with processes."""
    del cluster
    stale = node.need("locks")["stale"]
    for one in stale[:_SHOWN]:
        message = f"left of a killed run, whose processes may still live: {one['text']}"
        fix = "The next `raytools run` of that user sweeps it; at once: raytools run -- true"
        yield Finding("RT803", "warning", node.name, message, fix, physical=one["path"])
