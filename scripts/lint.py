"""`make lint`: ruff, mypy, ansible-lint, yamllint, the roles' pages; all of them, whatever one finds."""

from __future__ import annotations

import sys

from steps import VENV, StepError, Steps, guarded, make_venv, require_python, run, say

BIN = VENV / "bin"
LINTERS = (
    "ruff check .",
    "ruff format --check .",
    "mypy",
    "ansible-lint --offline playbooks",
    "yamllint .",
    "python scripts/role_docs.py --check",
)


def main() -> int:
    """Runs every linter; 1 if one finds something."""
    require_python()
    make_venv("dev")
    steps = Steps(total=len(LINTERS))
    failed = []
    for command in LINTERS:
        program, *arguments = command.split()
        try:
            with steps.step(command):
                run([BIN / program, *arguments], "")
        except StepError:
            failed.append(command)
            steps.times_s.setdefault(command, 0.0)
    say(f"\n{'failed: ' + ', '.join(failed) if failed else 'all clean'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(guarded(main, "lint"))
