"""RT4xx: the environment is what was built, the same everywhere, and the one that Ray runs from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from raytools.doctor.model import PROVISION, Finding, Gathered, NodeReport, Skipped

_BUILD = "ansible-playbook playbooks/environment.yml"
_SHOWN = 5
# packages that load libgomp, and which AutoGluon leaves out with a mere warning if they cannot
_NEEDS_LIBGOMP = re.compile(r"lightgbm|autogluon", re.IGNORECASE)


def content(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT401: no file of the environment was changed, added or deleted since it was built."""
    del cluster
    installed = node.need_installed()
    found = (node.inspection or {}).get("environment")
    if found is None:
        raise Skipped("the environment was not compared")
    identity = installed["environment"]["id"]
    if str(found.get("problem")).startswith("PermissionError"):
        raise Skipped(f"the environment may not be read: {found['problem']}")
    if "problem" in found:
        message = f"environment {identity} cannot be compared with what was built: {found['problem']}"
        yield Finding("RT401", "error", node.name, message, _BUILD)
        return
    differing = found["differences"]
    if differing:
        shown = "; ".join(one["message"] for one in differing[:_SHOWN])
        rest = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        packages = sorted({one["package"] for one in differing if one.get("package")})
        of_packages = f" (packages {', '.join(packages[:_SHOWN])})" if packages else ""
        count = f"{len(differing)} difference{'s' if len(differing) > 1 else ''}"
        message = f"environment {identity} is not what was built, {count}{of_packages}: {shown}{rest}"
        fix = "Restore the files (raytools env verify lists all), or build anew: raytools env build --rebuild"
        yield Finding("RT401", "error", node.name, message, fix)


def same_everywhere(cluster: Gathered) -> Iterator[Finding]:
    """RT404: all nodes name the same environment, built with the same content."""
    found = {}
    for node in cluster.nodes:
        environment = (node.inspection or {}).get("environment") or {}
        if node.installed and environment.get("content_digest"):
            found[node.name] = (node.installed["environment"]["id"], environment["content_digest"])
    if not found:
        raise Skipped("no node has an environment with a manifest")
    reference_name, reference = next(iter(found.items()))
    for name, other in found.items():
        if other != reference:
            message = (
                f"environment {other[0]} (content {other[1][:12]}) differs from {reference[0]} "
                f"(content {reference[1][:12]}) on {reference_name}"
            )
            yield Finding("RT404", "error", name, message, _BUILD, declared=reference[1], physical=other[1])


def libgomp(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT402: without libgomp AutoGluon leaves LightGBM out of its models, with a warning nobody reads."""
    path = node.need_facts()["libraries"]["libgomp.so.1"]
    if path is not None:
        return
    declared = cluster.config.environment
    prefix = declared.prefix is not None
    concerned = prefix or any(_NEEDS_LIBGOMP.search(one) for one in declared.pip)
    provisioned = node.installed is not None
    if not provisioned and "libgomp" in declared.conda and not prefix:
        raise Skipped("the environment, which will bring it, is not built yet")
    message = "libgomp.so.1 is neither in the environment nor in the system: LightGBM cannot be loaded"
    fix = "Set environment.conda: [libgomp] in cluster.yaml and lock again, or: apt-get install libgomp1"
    yield Finding("RT402", "error" if concerned else "info", node.name, message, fix, declared="libgomp.so.1")


def versions(node: NodeReport, cluster: Gathered) -> Iterator[Finding]:
    """RT403: the raylet's Python and Ray are those of the declared environment, as it lies on disk."""
    installed, raylet, on_disk = node.need_installed(), node.need_raylet(), node.need("versions")
    prefix, interpreter = installed["environment"]["prefix"], raylet["interpreter"]
    restart = "ansible-playbook playbooks/ray.yml"
    if interpreter and not interpreter.startswith(f"{prefix}/"):
        message = f"Ray's workers run {interpreter}, the environment is {prefix}"
        yield Finding("RT403", "error", node.name, message, restart, declared=prefix, logical=interpreter)
    if raylet["program_replaced"]:
        message = "the raylet's program was replaced or deleted since it was started"
        yield Finding("RT403", "error", node.name, message, restart)
    running = (cluster.ray or {}).get("versions", {})
    for name in ("python", "ray"):
        if running.get(name) and on_disk.get(name) and running[name] != on_disk[name]:
            message = (
                f"the cluster was started with {name} {running[name]}, the environment has {on_disk[name]}"
            )
            values = {"physical": on_disk[name], "logical": running[name]}
            yield Finding("RT403", "error", node.name, message, restart, **values)
    yield from _against_declared(node, on_disk)


def _against_declared(node: NodeReport, on_disk: Mapping[str, Any]) -> Iterator[Finding]:
    declared = node.config.environment
    if declared.prefix is not None:
        return
    if on_disk["python"] and not f"{on_disk['python']}.".startswith(f"{declared.python}."):
        message = f"python {on_disk['python']} is installed, cluster.yaml declares {declared.python}"
        values = {"declared": declared.python, "physical": on_disk["python"]}
        yield Finding("RT403", "error", node.name, message, PROVISION, **values)
    pinned = declared_ray(declared.pip)
    if pinned and on_disk["ray"] != pinned:
        message = f"ray {on_disk['ray'] or 'nothing'} is installed, cluster.yaml declares {pinned}"
        yield Finding(
            "RT403", "error", node.name, message, PROVISION, declared=pinned, physical=on_disk["ray"]
        )


def declared_ray(requirements: tuple[str, ...]) -> str | None:
    """The version of an exact requirement such as `ray[default]==2.58.1`."""
    for requirement in requirements:
        match = re.fullmatch(r"ray(?:\[[^\]]*\])?\s*==\s*([\w.]+)", requirement.strip())
        if match:
            return match[1]
    return None
