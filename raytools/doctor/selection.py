"""Which checks are made: the level's, narrowed by what a person asks for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from raytools.doctor.checks import CHECKS
from raytools.doctor.model import LEVELS, Check, Level
from raytools.errors import RaytoolsError


def select(level: Level, only: str = "", skip: str = "", checks: Sequence[Check] = CHECKS) -> list[Check]:
    """The checks of a level that are wanted.

    Args:
        level: how far to look.
        only: codes separated by commas or blanks; `RT7` or `RT7xx` stand for all that begin with it. Empty:
            all.
        skip: the same, for what is left out.
        checks: the table.

    Raises:
        RaytoolsError: a code that no check has, one that this level does not reach, or nothing is left.
    """
    wanted = _codes("--only", only, checks) if only.strip() else {check.code for check in checks}
    left_out = _codes("--skip", skip, checks) if skip.strip() else set()
    possible = [check for check in checks if LEVELS.index(check.level) <= LEVELS.index(level)]
    chosen = [check for check in possible if check.code in wanted - left_out]
    if chosen:
        return chosen
    beyond = [check for check in checks if check.code in wanted - left_out and check not in possible]
    if beyond:
        raise RaytoolsError(
            f"--only {only}: level {level} does not include {', '.join(check.code for check in beyond)}",
            expected="a check of this level",
            fix=f"Add: --level {min((check.level for check in beyond), key=LEVELS.index)}",
        )
    raise RaytoolsError(f"--only {only} --skip {skip} leaves no check", expected="at least one")


def _codes(option: str, text: str, checks: Sequence[Check]) -> set[str]:
    found: set[str] = set()
    for word in text.replace(",", " ").split():
        start = word.upper().rstrip("X")
        codes = {check.code for check in checks if check.code.startswith(start)} if len(start) > 2 else set()
        if not codes or not start.startswith("RT"):
            known = ", ".join(check.code for check in checks)
            raise RaytoolsError(f"{option} found {word!r}", expected=f"RT7, RT7xx or one of {known}")
        found |= codes
    return found
