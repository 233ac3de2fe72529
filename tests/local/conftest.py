"""What modules share: one small cluster, as starting a Ray for each of them takes ten seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .smoke_cluster import Cluster


@pytest.fixture(scope="session")
def one_node() -> Iterator[Cluster]:
    """A running cluster of one node with one slot, for tests that leave it as it was."""
    # not above: the machines of tests/vm run the adversaries without what this needs
    from .smoke_cluster import started_cluster

    with started_cluster() as cluster:
        yield cluster
