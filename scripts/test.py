"""`make test`: linters and the test tiers this machine can run; says which it skipped and why.

Under CI=true a tier that belongs to this version and cannot run is a failure.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from steps import CHECKOUT, VENV, StepError, Steps, guarded, make_venv, require_python, run, say, seconds

BIN = VENV / "bin"
_ON_MACHINES = "two machines with a kernel of their own: cgroup v2, NFS, power failures"
_NOT_LONG = ("-m", "not long")
REASON_CHARS = 160
FAILURE_LINES = 40  # of each failed test, said again at the very end, where a cut-off log still has them


@dataclass(frozen=True)
class Tier:
    """Tests of one directory, and why they cannot run here (None: they can)."""

    name: str
    what: str
    obstacle: str | None = None
    asked_for_only: bool = False
    which: tuple[str, ...] = ()
    """Further arguments of pytest."""

    @property
    def directory(self) -> str:
        return f"tests/{self.name.partition('-')[0]}"

    @property
    def progress(self) -> tuple[str, ...]:
        """How pytest tells it: a test on other hosts can take minutes and has a line of its own."""
        on_hosts = self.directory in ("tests/lab", "tests/vm")
        return ("-v", "-o", "verbosity_assertions=0") if on_hosts else ("-q",)

    @property
    def is_skipped(self) -> bool:
        """In a run of all tiers."""
        return self.asked_for_only or self.obstacle is not None


def main() -> int:
    """Installs the development tools, then runs linters and tiers; all tiers run even if one fails.

    Arguments name tiers: those alone, without the linters; then one that cannot run is a failure.
    """
    require_python()
    for old in (CHECKOUT / ".raytools" / "logs").glob("tests-*.xml"):
        old.unlink()
    wanted = sys.argv[1:]
    tiers = [tier for tier in find_tiers() if not wanted or tier.name in wanted]
    if len(tiers) < len(wanted):
        known = ", ".join(tier.name for tier in find_tiers())
        raise StepError(f"{' '.join(wanted)}: expected some of {known}")
    if wanted:
        return _only(tiers)
    steps = Steps(total=2 + sum(not tier.is_skipped for tier in tiers))
    with steps.step("Install raytools with its development tools into .venv (pip)"):
        if not make_venv("dev"):
            say("      nothing to do: pyproject.toml has not changed")
    outcomes = {"linters": _outcome(steps, "Linters: ruff", _lint)}
    for tier in tiers:
        outcomes[tier.name] = _skipped(tier) if tier.is_skipped else _run_tier(steps, tier)
    _say_failed_tests(tiers)
    say("\n" + "\n".join(f"{name:<10} {text}" for name, (_, text) in outcomes.items()))
    return 0 if all(good for good, _ in outcomes.values()) else 1


def _only(tiers: list[Tier]) -> int:
    """Some tiers that were asked for by name."""
    steps = Steps(total=1 + sum(tier.obstacle is None for tier in tiers))
    with steps.step("Install raytools with its development tools into .venv (pip)"):
        make_venv("dev")
    outcomes = [
        (False, f"FAILED   {tier.obstacle}") if tier.obstacle else _run_tier(steps, tier) for tier in tiers
    ]
    _say_failed_tests(tiers)
    say("\n" + "\n".join(f"{tier.name:<10} {text}" for tier, (_, text) in zip(tiers, outcomes, strict=True)))
    return 0 if all(good for good, _ in outcomes) else 1


def find_tiers() -> list[Tier]:
    """The tiers of the project, the quick ones first."""
    containers, machines = lab_obstacle("containers"), lab_obstacle("machines")
    local = None if platform.system() == "Linux" else f"needs Linux, this is {platform.system()}"
    return [
        Tier("unit", "everywhere: no root, no network", which=("--numprocesses=logical",)),
        Tier("local", "this machine: cgroups, a real Ray", local, which=_NOT_LONG),
        Tier("local-full", "the same, and what takes long", local, True),
        Tier("lab", "three hosts in containers, the playbooks on them", containers, which=_NOT_LONG),
        Tier("lab-full", "the same, and faults that take long", containers, True),
        Tier("vm", _ON_MACHINES, machines, True, _NOT_LONG),
        Tier("vm-full", f"{_ON_MACHINES}; every reboot and adversary", machines, True),
    ]


def lab_obstacle(kind: str) -> str | None:
    """What this machine lacks for a lab, with the command that changes it; None if there is nothing.

    Args:
        kind: `containers` or `machines`.
    """
    if platform.system() != "Linux":
        return f"needs Linux, this is {platform.system()}"
    sys.path.insert(0, str(CHECKOUT))
    from tests.lab.containers import dependencies as containers
    from tests.lab.hosts import LabError
    from tests.lab.machines import dependencies as machines

    try:
        containers.require() if kind == "containers" else machines.require(CHECKOUT)
    except LabError as error:
        return " ".join(str(error).split())
    return None


def _lint() -> None:
    sources = ["raytools", "tests", "scripts", "examples", "benchmarks"]
    present = [name for name in sources if (CHECKOUT / name).exists()]
    run([BIN / "ruff", "check", *present], "Many can be mended by: .venv/bin/ruff check --fix")


def _run_tier(steps: Steps, tier: Tier) -> tuple[bool, str]:
    report = _report_of(tier)

    def tests() -> None:
        run(
            [
                BIN / "python",
                "-m",
                "pytest",
                tier.directory,
                *tier.progress,
                "-rs",
                "--durations=15",
                f"--junitxml={report}",
                *tier.which,
            ],
            f"One test alone: .venv/bin/pytest {tier.directory} -k NAME",
        )

    passed, text = _outcome(steps, f"Tests {tier.name} ({tier.what})", tests)
    return passed, text + _names(tier)


def _report_of(tier: Tier) -> Path:
    return CHECKOUT / ".raytools" / "logs" / f"tests-{tier.name}.xml"


def _say_failed_tests(tiers: list[Tier]) -> None:
    """Each failed test with the end of what it printed."""
    for tier in tiers:
        for test in _failed_tests(tier):
            say(f"\n--- failed: {test.name}")
            say("\n".join(test.text.splitlines()[-FAILURE_LINES:]))


@dataclass(frozen=True)
class FailedTest:
    """One test: what went wrong in a line, and all that pytest says of it."""

    name: str
    reason: str
    text: str


def _failed_tests(tier: Tier) -> list[FailedTest]:
    """From pytest's JUnit report."""
    if not _report_of(tier).exists():
        return []
    return [
        FailedTest(
            f"{case.get('classname')}::{case.get('name')}",
            _reason(failure.get("message") or ""),
            failure.text or "",
        )
        for case in ElementTree.parse(_report_of(tier)).iter("testcase")  # noqa: S314 - pytest wrote it here
        for failure in [*case.iter("failure"), *case.iter("error")]
    ]


def _reason(message: str) -> str:
    """One line: the first that the doctor or Ansible calls an error in what a test shows, or the first."""
    lines = message.splitlines() or [""]
    telling = (line for line in lines if re.match(r"\s*(error|warning|fatal:|\[ERROR\])", line))
    return next(telling, lines[0]).strip()[:REASON_CHARS]


def _names(tier: Tier) -> str:
    """The failed tests for the very last lines, which a log that was cut in its middle still has."""
    return "".join(f"\n           - {test.name}\n             {test.reason}" for test in _failed_tests(tier))


def _outcome(steps: Steps, title: str, action: object) -> tuple[bool, str]:
    assert callable(action)
    try:
        with steps.step(title):
            action()
    except StepError as error:
        say(f"      {error}")
        steps.times_s.setdefault(title, 0.0)
        return False, f"FAILED   {error}"
    return True, f"passed   in {seconds(steps.times_s[title])}"


def _skipped(tier: Tier) -> tuple[bool, str]:
    if tier.asked_for_only:
        return True, f"skipped  {tier.what}: make test-{tier.name}"
    required = os.environ.get("CI") == "true"
    return not required, f"{'FAILED ' if required else 'skipped'}  {tier.what}: {tier.obstacle}"


if __name__ == "__main__":
    sys.exit(guarded(main, "test"))
