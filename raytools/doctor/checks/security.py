"""RT9xx: who may talk to Ray, and who may change what runs."""

from __future__ import annotations

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
