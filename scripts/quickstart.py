"""`make quickstart`: from a clone to a checked one-node cluster that has trained models under limits.

Does nothing a person could not type: each step is one command, shown with its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from steps import (
    CHECKOUT,
    VENV,
    StepError,
    Steps,
    environment,
    guarded,
    make_venv,
    require_python,
    run,
    say,
    seconds,
)

ROOT = CHECKOUT / ".raytools"
BIN = VENV / "bin"


@dataclass(frozen=True)
class Enforcement:
    """What `raytools run --check` found: limits that do not hold here, and the command that allows them."""

    missing: tuple[str, ...]
    fix: str | None

    @property
    def options(self) -> list[str]:
        """For `raytools smoke`: strict where every limit holds."""
        return ["--enforce", "best-effort"] if self.missing else []


def main() -> int:
    """All steps, then the summary."""
    require_python()
    steps = Steps(total=5)
    with steps.step("Install raytools into .venv (pip)"):
        if not make_venv():
            say("      nothing to do: pyproject.toml has not changed")
    with steps.step("Build the cluster: ansible-playbook playbooks/cluster.yml"):
        run(
            [BIN / "ansible-playbook", "playbooks/cluster.yml"],
            "The failed task above says why; run `make quickstart` again when it is mended.",
            log=ROOT / "logs" / "environment.log",
        )
    with steps.step("Prove it: raytools doctor"):
        run(
            [BIN / "raytools", "doctor"],
            "Each finding above names its cure; `raytools doctor --explain CODE` tells more.",
        )
    with steps.step("Prove the limits: raytools run --check"):
        enforcement = check_enforcement()
    title = f"Use it: raytools smoke --workload autogluon {' '.join(enforcement.options)}".rstrip()
    with steps.step(title):
        run(
            [BIN / "raytools", "smoke", "--workload", "autogluon", *enforcement.options],
            "The reasons are above; the record of each run is below .raytools/results/.",
        )
    say(summary(steps, enforcement))
    return 0


def check_enforcement() -> Enforcement:
    """Which limits hold on this machine, proved by small real runs.

    Raises:
        StepError: the check itself could not run.
    """
    done = subprocess.run(
        [BIN / "raytools", "run", "--check", "--json"],
        cwd=CHECKOUT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        say(done.stdout + done.stderr)
        raise StepError("`raytools run --check` could not run.") from None
    if answer["busy"]:
        raise StepError(f"Another run has this machine: {answer['busy']}. Wait for it, or end it.")
    for proof in answer["limits"]:
        say(f"      {'ok' if proof['holds'] else 'NO':<3} {proof['limit']:<12} {proof['how']}")
    missing = tuple(proof["limit"] for proof in answer["limits"] if not proof["holds"])
    return Enforcement(missing, answer["fix"])


def summary(steps: Steps, enforcement: Enforcement) -> str:
    """What was built, where, how big, how long, what to type next, how to be rid of it."""
    return "\n".join(["", *_enforced(enforcement), "", *_built(), "", *_times(steps), "", *_next()])


def _enforced(enforcement: Enforcement) -> list[str]:
    """The first line: the promise, or what is missing from it."""
    if not enforcement.missing:
        return ["All limits are enforced: a run gets its CPUs, memory and time, and no more."]
    fix = f": {enforcement.fix}" if enforcement.fix else " (see the table of `raytools run --check` above)"
    return [f"Not enforced for user {_user()}: {', '.join(enforcement.missing)}. To change that{fix}"]


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _built() -> list[str]:
    path = ROOT / "node.json"
    if not path.exists():
        return ["The cluster is where inventory/hosts.yml says."]
    node = json.loads(path.read_text())
    ray, prefix = node["ray"], Path(node["environment"]["prefix"])
    lines = [
        "Built:",
        f"  environment   {prefix}  ({_size(prefix)})",
        f"  Ray           {ray['gcs_address']}, token in {ray['token_path']}",
        f"  slots         {len(node['slots'])}, each {len(node['slots'][0]['cpus'])} CPUs and "
        f"{node['slots'][0]['memory_bytes'] / 2**30:.1f} GiB",
        f"  results       {node['storage']['path']}/results",
        f"  controller    {VENV}  ({_size(VENV)})",
    ]
    if ray["dashboard"]["enabled"]:
        lines.insert(3, f"  dashboard     http://{ray['dashboard']['host']}:{ray['ports']['dashboard']}")
    return lines


def _size(directory: Path) -> str:
    used_bytes = 0
    for parent, _, names in os.walk(directory):
        used_bytes += sum(Path(parent, name).lstat().st_blocks * 512 for name in names)
    return f"{used_bytes / 2**20:,.0f} MiB"


def _times(steps: Steps) -> list[str]:
    lines = [f"Done in {seconds(steps.wall_s)}:"]
    return lines + [f"  {seconds(wall_s):>7}  {title}" for title, wall_s in steps.times_s.items()]


def _next() -> list[str]:
    return [
        "Next:",
        "  . .venv/bin/activate",
        "  raytools run --cpus 1 --memory 2GiB --time 10m -- ./your_program    # one limited run",
        '  eval "$(raytools env activate)"; python examples/one_run_per_vm.py  # many, from one script',
        "  raytools doctor                                                     # is all as it was?",
        "Stop it:    make stop                          (this cluster's Ray and nothing else)",
        "Remove it:  make stop && rm -rf .raytools .venv",
    ]


if __name__ == "__main__":
    sys.exit(guarded(main, "quickstart"))
