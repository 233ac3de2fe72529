"""Which environments the nodes have, and which may go: one call per node. Decides and prints nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytools.environment.spec import EnvironmentSpec
from raytools.errors import TransportError
from raytools.inventory import Host
from raytools.transport import Answer, NodeCommand, call

LIST_SCHEMA = "raytools.env-list/1"
_LIST_TIME_S = 60.0
_PRUNE_TIME_S = 600.0


@dataclass(frozen=True)
class Answers:
    """What the nodes answered, and why some did not; both by name."""

    found: dict[str, Any]
    errors: dict[str, str]


def list_on_nodes(hosts: Sequence[Host], state_dir: Path) -> Answers:
    """Each node's `environment list`."""
    return _ask(hosts, lambda _: ["list"], _LIST_TIME_S, state_dir)


def prune_on_nodes(
    hosts: Sequence[Host],
    keep: Mapping[str, Sequence[str]],
    state_dir: Path,
    *,
    dry_run: bool,
    ignore_unseen: bool,
) -> Answers:
    """Each node's `environment prune`.

    Args:
        hosts: the nodes.
        keep: by node, the ids that stay in any case; nodes without an entry are left alone.
        state_dir: as for `transport.call`.
        dry_run: only what would be removed.
        ignore_unseen: remove also if processes of other users cannot be looked into.
    """

    def arguments(host: Host) -> list[str]:
        kept = [argument for identifier in keep[host.name] for argument in ("--keep", identifier)]
        options = ["--dry-run"] * dry_run + ["--ignore-unseen"] * ignore_unseen
        return ["prune", *kept, *options]

    return _ask([host for host in hosts if host.name in keep], arguments, _PRUNE_TIME_S, state_dir)


def to_keep(environments: Sequence[Mapping[str, Any]], declared: str | None, former: int) -> list[str]:
    """What stays on a node beside what is in use: what is declared or current, and so many former ones.

    Args:
        environments: of one node, as it lists them: the one installed last first.
        declared: the id that cluster.yaml and its lock stand for.
        former: how many others stay, the ones installed last.
    """
    complete = [one for one in environments if one["complete"]]
    kept = [one["id"] for one in complete if one["current"] or one["id"] == declared]
    others = [one["id"] for one in complete if one["id"] not in kept]
    return kept + others[:former]


def by_environment(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each environment on which nodes it is complete, and whether its content is equal there."""
    answer: dict[str, dict[str, Any]] = {}
    for name, node in found.items():
        for one in node["environments"]:
            if one["complete"]:
                entry = answer.setdefault(one["id"], {"nodes": [], "content_digests": []})
                entry["nodes"].append(name)
                if one["content_digest"] not in entry["content_digests"]:
                    entry["content_digests"].append(one["content_digest"])
    for entry in answer.values():
        entry["equal"] = len(entry["content_digests"]) == 1
    return answer


def declared_id(project: Any, spec: EnvironmentSpec) -> str | None:
    """What cluster.yaml and its lock stand for; None if it is not locked, or was changed since."""
    from raytools.environment.lock import misfits, read_current_lock

    if spec.prefix is not None:
        return spec.name
    lock = read_current_lock(project, spec)
    return lock.environment_id if lock is not None and not misfits(lock, spec) else None


def _ask(
    hosts: Sequence[Host], arguments: Callable[[Host], list[str]], timeout_s: float, state_dir: Path
) -> Answers:
    commands = {
        host.name: NodeCommand(["environment", *arguments(host), "--root", host.root]) for host in hosts
    }
    answers = Answers({}, {})
    for name, answer in call(hosts, commands, timeout_s, state_dir=state_dir).items():
        try:
            answers.found[name] = answer.json()
        except TransportError as error:
            answers.errors[name] = _reason(name, answer, str(error))
    return answers


def _reason(name: str, answer: Answer, error: str) -> str:
    """The node's own message, if that is what failed."""
    own = [line for line in answer.stderr.splitlines() if line.startswith("environment: ")]
    text = own[-1].removeprefix("environment: ") if own and answer.exit_code == 1 else error
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"
