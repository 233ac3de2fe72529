"""The running cluster whose head is this machine, on which benchmarks compare programs side by side."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import CHECKOUT

from raytools.inventory import load_inventory
from raytools.project import Project, find_project


@dataclass(frozen=True)
class LocalHead:
    """Where the cluster is described, and the plan of its head."""

    project: Project
    node: dict[str, Any]

    @property
    def arguments(self) -> list[str]:
        """Of `raytools`, for this cluster."""
        return ["-c", str(self.project.config_path), "-i", str(self.project.inventory_path)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which cluster; without them that of this checkout."""
    parser.add_argument("-c", "--config", help="cluster.yaml to use")
    parser.add_argument("-i", "--inventory", help="inventory to use")


def local_head(options: argparse.Namespace) -> LocalHead:
    """The cluster that the options name; ends this program if its head is another machine."""
    project = find_project(options.config or CHECKOUT / "cluster.yaml", options.inventory)
    head = load_inventory(project.inventory_path).head
    if head.connection != "local":
        sys.exit(f"the head is {head.name}: this benchmark compares on one machine, which must be this one")
    return LocalHead(project, json.loads(Path(head.root, "node.json").read_text()))
