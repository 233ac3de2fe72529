"""RT5xx: the place for results, and room for it, for the environment and for Ray's spilled objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raytools.doctor.model import Finding, Gathered, NodeReport, Severity, Skipped
from raytools.units import format_size

# an environment with its archive takes 3 GiB; Ray stops spilling to a disk that is 95 % full
_BUILD_BYTES = 4 * 2**30
_ERROR_BYTES = 2**30
_WARNING_BYTES = 5 * 2**30
_WARNING_SHARE = 0.05
_WARNING_INODES = 100_000
_ERROR_INODES = 10_000
_NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.glusterfs", "ceph", "lustre")


def space(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT501: free bytes and inodes where raytools, Ray and the results write."""
    del cluster
    disk = dict(node.need_facts()["disk"])
    storage = (node.inspection or {}).get("storage")
    if storage and "problem" not in storage and not storage["stalled"]:
        disk["storage"] = storage
    least = _ERROR_BYTES if node.installed else _BUILD_BYTES
    seen: set[tuple[Any, ...]] = set()
    for name, found in disk.items():
        same_disk = (found["total_bytes"], found["available_bytes"], found["inodes_available"])
        if same_disk in seen:
            continue
        seen.add(same_disk)
        yield from _bytes(node, found, least if name == "root" else _ERROR_BYTES)
        yield from _inodes(node, found)


def shared(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT502: shared storage is mounted as declared, and answers."""
    del cluster
    declared, found = node.need_installed()["storage"], node.need("storage")
    path = declared["path"]
    if found["stalled"]:
        message = f"storage: {path} does not answer; whoever uses it waits"
        fix = f"Look at the server {declared.get('server', 'that it is mounted from')}, and at the way to it"
        yield Finding("RT502", "error", node.name, message, fix, declared="an answer", physical=None)
    elif declared["type"] == "nfs" and not _is_mounted(declared, found):
        source = _source(declared)
        message = f"storage: expected {source} at {path}, {found['source'] or 'nothing'} is mounted there"
        fix = "Mount it: ansible-playbook playbooks/storage.yml"
        yield Finding("RT502", "error", node.name, message, fix, declared=source, physical=found["source"])
    elif declared["type"] == "existing" and not found["directory"]:
        message = f"storage: {path} is not there"
        fix = "Mount it on this node, or correct storage.path in cluster.yaml"
        yield Finding("RT502", "error", node.name, message, fix, declared=path, physical=None)


def _source(declared: Mapping[str, Any]) -> str:
    server = declared["server"]
    return f"[{server}]:{declared['export']}" if ":" in server else f"{server}:{declared['export']}"


def _is_mounted(declared: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """The server itself mounts its directory without NFS; the kernel then names the disk as the source."""
    if declared["serves"]:
        return bool(found["mounted"])
    return bool(found["source"] == _source(declared))


def _bytes(node: NodeReport, disk: Mapping[str, Any], least_bytes: int) -> Iterator[Finding]:
    available, total = disk["available_bytes"], disk["total_bytes"]
    if available is None or not total:
        return
    said = f"disk: {format_size(available)} of {format_size(total)} are free at {disk['path']}"
    values = {"declared": least_bytes, "physical": available}
    if available < least_bytes:
        message = f"{said}, less than {format_size(least_bytes)}"
        yield Finding("RT501", "error", node.name, message, f"Free space at {disk['path']}", **values)
    elif available < _WARNING_BYTES or available < total * _WARNING_SHARE:
        message = f"{said}. Ray does not spill objects to a disk that is 95 % full"
        if available >= total * _WARNING_SHARE:
            message = f"{said}, less than {format_size(_WARNING_BYTES)}: another environment may not fit"
        yield Finding("RT501", "warning", node.name, message, f"Free space at {disk['path']}", **values)


def _inodes(node: NodeReport, disk: Mapping[str, Any]) -> Iterator[Finding]:
    inodes = disk["inodes_available"]
    if inodes is None or inodes >= _WARNING_INODES:
        return
    message = f"disk: {inodes} inodes are free at {disk['path']}; one environment takes about 30,000"
    severity: Severity = "error" if inodes < _ERROR_INODES else "warning"
    fix = f"Delete small files on the file system of {disk['path']} (df -i)"
    yield Finding("RT501", severity, node.name, message, fix, declared=_WARNING_INODES, physical=inodes)


def local_environment(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT503: the environment is on a disk of the node's own."""
    del cluster
    prefix = node.need_installed()["environment"]["prefix"]
    found = node.need("places")["prefix_filesystem"]
    if found in _NETWORK_FILESYSTEMS:
        message = (
            f"the environment {prefix} is on {found}: each import goes over the network, and waits with it"
        )
        fix = "Set raytools_root to a local disk, or use a local copy of the environment"
        yield Finding("RT503", "warning", node.name, message, fix, declared="a local disk", physical=found)


def is_shared(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT504: what Ray's user writes on each node, it reads on all."""
    del cluster
    if node.need_installed()["storage"]["type"] == "local":
        raise Skipped("the storage is each node's own")
    if node.shared is None:
        raise Skipped("it was not tried")
    if node.shared:
        fix = "Compare mounts and uids; what raytools serves: ansible-playbook playbooks/storage.yml"
        yield Finding("RT504", "error", node.name, f"storage: {node.shared}", fix)
