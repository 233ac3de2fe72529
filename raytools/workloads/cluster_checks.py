"""What workloads of scope `cluster` check alike: names of a list, packages, shared storage, idle nodes.

Standard library only: the controller and the head import this file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence

from raytools.errors import RaytoolsError
from raytools.workloads.base import ClusterContext, ClusterNode, Reason, WorkloadRun, run_name

ALL = "all"
_REQUIREMENTS = {"sklearn": "scikit-learn", "mlflow": "mlflow-skinny"}  # where pip has another name


def named(asked: Sequence[str], known: Sequence[str], kind: str) -> tuple[str, ...]:
    """The asked names, each once, in their order; `all` stands for all that are known.

    Raises:
        RaytoolsError: an unknown name, or none at all.
    """
    unknown = [name for name in asked if name not in (*known, ALL)]
    if unknown or not asked:
        raise RaytoolsError(
            f"there is no {kind} {unknown[0]!r}" if unknown else f"no {kind} was given",
            expected=f"some of {', '.join(known)}, or {ALL}",
        )
    return tuple(known) if ALL in asked else tuple(dict.fromkeys(asked))


def require_modules(needed: Mapping[str, str]) -> None:
    """Checks that this Python has the packages.

    Args:
        needed: names of modules, and what needs each of them.

    Raises:
        RaytoolsError: one is missing; has the line to add.
    """
    for module, what in needed.items():
        if not is_installed(module):
            raise RaytoolsError(
                f"{what} needs the package {module}, which the nodes' environment lacks",
                expected=f"{module} in environment.pip of cluster.yaml",
                fix=f"Add it, pip: [..., {_REQUIREMENTS.get(module, module)}], and run: raytools env lock, "
                "ansible-playbook playbooks/upgrade.yml",
            )


def is_installed(module: str) -> bool:
    """Without importing it, and only for a top-level one: `ray` reads its variables when it is imported."""
    return importlib.util.find_spec(module) is not None


def require_shared(context: ClusterContext, why: str) -> None:
    """Checks that all nodes see the results directory.

    Args:
        context: of the driver.
        why: what several nodes need it for.

    Raises:
        RaytoolsError: there are several nodes, and they do not.
    """
    if not context.shared and len(context.nodes) > 1:
        raise RaytoolsError(
            f"{len(context.nodes)} nodes have no shared storage, and {why}",
            expected="storage of type existing or nfs in cluster.yaml",
            fix="Change it and run: ansible-playbook playbooks/cluster.yml",
        )


def require_ray(error: BaseException | None) -> None:
    """Checks that it was not the end of the driver's own Ray, after which nothing more can be done.

    Args:
        error: what an entry ended with.

    Raises:
        RaytoolsError: Ray of the head is gone, or another one by now.
    """
    from ray.exceptions import LocalRayletDiedError

    while error is not None:
        if isinstance(error, LocalRayletDiedError):
            raise RaytoolsError(
                "Ray of the head ended while the workload ran",
                expected="the Ray that the smoke began with",
                fix="Run: raytools doctor. Then resume the smoke: what it has finished is kept",
            ) from error
        error = error.__cause__ or error.__context__


def judge_nodes(run: WorkloadRun) -> Iterator[Reason]:
    """A smoke of the cluster is one of all its nodes. That one was lost is told: its work was done elsewhere.

    Args:
        run: an entry with the metrics `nodes_unused` and `nodes_lost`, as of `start_together.Nodes`.
    """
    where = run_name(run.record)
    if names := run.metrics.get("nodes_unused"):
        yield Reason(f"{where}: {', '.join(names)} had nothing to do, though there was work for all")
    if names := run.metrics.get("nodes_lost"):
        yield Reason(f"{where}: Ray has lost {', '.join(names)}; the others did its work", fails=False)


def workers_of(nodes: Sequence[ClusterNode], cpus: int, what: str) -> int:
    """How many works of so many CPUs fit on the nodes at a time; the CPUs of one are on one node.

    Args:
        nodes: of the cluster.
        cpus: of each work.
        what: one of them, for the message.

    Raises:
        RaytoolsError: no node has so many.
    """
    found = sum(node.slots * node.cpus // cpus for node in nodes)
    if not found:
        raise RaytoolsError(
            f"{what} is to have {cpus} CPUs",
            expected=f"at most {max(node.slots * node.cpus for node in nodes)}, what the largest node has",
        )
    return found
