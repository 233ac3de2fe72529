"""The kernel's way to write sets of CPUs (cpuset(7), "List format")."""

from __future__ import annotations


def parse_cpu_list(text: str) -> list[int] | None:
    """CPU numbers of the kernel's list form `0-3,8`; None if it is empty or not such a list."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return None
        numbers.update(range(int(first), int(last or first) + 1))
    return sorted(numbers)
