"""What modules share: one small cluster, as starting a Ray for each of them takes ten seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .smoke_cluster import Cluster, started_cluster


@pytest.fixture(scope="session")
def one_node() -> Iterator[Cluster]:
    """A running cluster of one node with one slot, for tests that leave it as it was."""
    with started_cluster() as cluster:
        yield cluster
