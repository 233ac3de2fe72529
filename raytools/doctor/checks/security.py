"""RT9xx: who may talk to Ray, and who may change what runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped

_OTHERS_WRITE = 0o002
_OTHERS_AT_ALL = 0o077
_STICKY = 0o1000  # as /tmp has: everybody may add, nobody may replace what is another's


def token_and_listeners(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT901: the token is its owner's alone and in force; nothing listens more widely than declared."""
    del cluster
    installed = node.need_installed()
    ray, listening = installed["ray"], node.need("listening")
    if ray["auth"] == "disabled":
        wide = [one for one in listening.get("gcs", []) if not _is_loopback(one)]
        if wide:
            message = (
                f"Ray runs without a token and its GCS listens on {', '.join(wide)}: "
                "whoever reaches it runs code"
            )
            fix = f"Set ray.auth: token in cluster.yaml, then: {PROVISION}"
            yield Finding("RT901", "warning", node.name, message, fix, declared="disabled", physical=wide)
    else:
        yield from _token(node, ray)
    yield from _dashboard(node, ray, listening.get("dashboard", []))


def _token(node: NodeReport, ray: Mapping[str, Any]) -> Iterator[Finding]:
    path, paths = ray["token_path"], node.need("paths")
    if "token" not in paths:
        raise Skipped(f"Ray's token {path} cannot be seen by this user")
    found = paths["token"]
    if found is None:
        message = f"Ray's token {path} does not exist: nothing can join or connect"
        yield Finding("RT901", "error", node.name, message, PROVISION, declared=path)
        return
    if found["mode"] & _OTHERS_AT_ALL:
        message = (
            f"Ray's token {path} has mode {found['mode']:04o}: others can read it and run code as Ray's user"
        )
        fix = f"chmod 0600 {path}, then make a new one: rm {path} && {PROVISION}"
        yield Finding(
            "RT901", "error", node.name, message, fix, declared="0600", physical=f"{found['mode']:04o}"
        )
    if found["size_bytes"] == 0:
        yield Finding(
            "RT901", "error", node.name, f"Ray's token {path} is empty", f"rm {path} && {PROVISION}"
        )
    ours = node.need("rays")["ours"]
    if ours and ours[0]["user"] != found["user"]:
        message = f"Ray's token {path} belongs to {found['user']}, Ray runs as {ours[0]['user']}"
        fix = f"chown {ours[0]['user']} {path}"
        yield Finding(
            "RT901", "error", node.name, message, fix, declared=ours[0]["user"], physical=found["user"]
        )


def _dashboard(node: NodeReport, ray: Mapping[str, Any], listening: list[str]) -> Iterator[Finding]:
    if node.role != "head":
        return
    declared = ray["dashboard"]["host"]
    wide = [one for one in listening if not _is_loopback(one)]
    if wide and _is_loopback(declared):
        message = f"the dashboard listens on {', '.join(wide)}, declared is {declared}"
        fix = "ansible-playbook playbooks/ray.yml"
        yield Finding("RT901", "error", node.name, message, fix, declared=declared, physical=wide)
    elif wide:
        message = (
            f"the dashboard listens on {', '.join(wide)}, as declared: it shows jobs and logs to the network"
        )
        fix = "Set ray.dashboard.host: 127.0.0.1 in cluster.yaml and use an ssh tunnel"
        yield Finding("RT901", "warning", node.name, message, fix, declared=declared, physical=wide)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "localhost")


def owners_and_modes(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT902: no other user can replace the toolkit, the environment, the plan, or a directory above them."""
    del cluster
    node.need_installed()
    paths = node.need("paths")
    found = [one for one in paths.values() if one is not None]
    if not found:
        raise Skipped("nothing is installed")
    for one in [*found, *node.need("above")]:
        if one["mode"] & _OTHERS_WRITE and not one["mode"] & _STICKY:
            message = f"{one['path']} has mode {one['mode']:04o}: every user can change what runs here"
            values = {"declared": "not writable for others", "physical": f"{one['mode']:04o}"}
            yield Finding("RT902", "error", node.name, message, f"chmod o-w {one['path']}", **values)
    owner = _ray_user(node)
    for one in found:
        if one["user"] not in ("root", owner):
            message = f"{one['path']} belongs to {one['user']}, who can change what {owner} runs"
            values = {"declared": owner, "physical": one["user"]}
            yield Finding("RT902", "warning", node.name, message, f"chown -R {owner} {one['path']}", **values)


def _ray_user(node: NodeReport) -> str:
    """Who Ray runs as: its account by the plan, else by its raylet, else the owner of the root."""
    planned = ((node.inspection or {}).get("node") or {}).get("user")
    ours = ((node.inspection or {}).get("rays") or {}).get("ours") or []
    return str(planned or (ours[0]["user"] if ours else node.need("paths")["root"]["user"]))


def exports(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT903: what the server exports of the storage goes to the nodes alone, and root is nobody there."""
    storage = node.need_installed()["storage"]
    if not storage.get("serves"):
        raise Skipped("it serves no storage")
    members = {plan["address"] for one in cluster.nodes if (plan := one.installed or one.plan)}
    for one in node.need("exports"):
        if not f"{storage['export']}/".startswith(one["path"].rstrip("/") + "/"):
            continue
        if one["client"].strip("[]") not in members:
            message = f"{one['path']} is exported to {one['client']}, which is no node of this cluster"
            fix = f"Remove it from /etc/exports or /etc/exports.d on {node.name}, then: exportfs -ra"
            values = {"declared": sorted(members), "physical": one["client"]}
            yield Finding("RT903", "error", node.name, message, fix, **values)
        elif "no_root_squash" in one["options"]:
            message = f"{one['path']}: {one['client']} may be root there (no_root_squash)"
            fix = "ansible-playbook playbooks/storage.yml"
            yield Finding("RT903", "error", node.name, message, fix, declared="root_squash")


def host_keys(cluster: Gathered) -> Iterator[Finding]:
    """RT904: ssh compares the nodes' host keys, also where Ansible calls it."""
    for node in cluster.nodes:
        for variable, value in node.ssh_arguments.items():
            if not _skips_host_keys(value):
                continue
            message = (
                f"{variable} switches off the checking of the host key ({value}): whoever answers at the "
                "node's address gets its token and runs as it"
            )
            fix = f"Remove it from the inventory; learn the key once: ssh-keyscan {node.address or node.name}"
            yield Finding("RT904", "warning", node.name, message, fix, physical=value)
    if cluster.ansible_checks_host_keys is False:
        message = "Ansible is told not to check host keys (ANSIBLE_HOST_KEY_CHECKING)"
        yield Finding("RT904", "warning", None, message, "Unset it; raytools itself checks them always")


def _skips_host_keys(value: str) -> bool:
    lowered = re.sub(r"[\s=\"']", "", value.lower())
    off = any(f"stricthostkeychecking{word}" in lowered for word in ("no", "off", "accept-new"))
    return off or "userknownhostsfile/dev/null" in lowered or lowered == "false"


def same_token(cluster: Gathered) -> Iterator[Finding]:
    """RT905: all nodes have the token of the head, or of the first node whose token may be read."""
    digests = {
        node.name: found["digest"]
        for node in cluster.nodes
        if (found := (node.inspection or {}).get("token")) and found.get("digest")
    }
    if len(digests) < 2:
        raise Skipped("there are no two tokens that may be read")
    first, expected = next(iter(digests.items()))
    for name, found in digests.items():
        if found != expected:
            message = f"Ray's token is not that of {first} (sha256 begins with {found}, not {expected})"
            fix = f"ansible-playbook playbooks/ray.yml, or copy it from {first}"
            yield Finding("RT905", "error", name, message, fix, declared=expected, physical=found)


def closed(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT906: who is no node reaches Ray by no address that is not the cluster's own."""
    del cluster
    plan = node.need_installed()
    if node.outside is None:
        raise Skipped("it was not tried, or the controller is this node")
    if not node.outside:
        raise Skipped("there is no other address, and nothing that is for the node alone")
    open_ports: dict[str, list[str]] = {}
    for one in node.outside:
        if one["problem"] is None:
            open_ports.setdefault(one["address"], []).append(f"{one['port']} ({one['name']})")
    for address, ports in open_ports.items():
        message = (
            f"the controller, which is no node, reaches Ray at {address}, port {', '.join(ports)}; nodes use "
            f"{plan['address']}: only the token keeps strangers out"
        )
        fix = f"Close these ports of {address} for all but the nodes (firewall, security group)"
        yield Finding("RT906", "warning", node.name, message, fix, declared="closed", physical=ports)
