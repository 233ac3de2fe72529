"""Which nodes are unlike the others. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import TypeVar

Value = TypeVar("Value", bound=Hashable)


def odd_ones(values: Mapping[str, Value]) -> tuple[Value, dict[str, Value]]:
    """What most nodes have, and the nodes that have something else.

    Args:
        values: by node, at least one; among equally frequent values that of the first node counts.
    """
    counts = Counter(values.values())
    most = max(counts, key=lambda value: counts[value])  # the first of equals: they are in order of the nodes
    return most, {name: value for name, value in values.items() if value != most}
