"""Where a project's files are: cluster.yaml, the inventory, and the controller's local state.

Only paths are decided here; nothing is parsed but one line of ansible.cfg, so that the command line and
the playbooks take the same inventory when none is named.
"""

from __future__ import annotations

import configparser
import os
from dataclasses import dataclass
from pathlib import Path

CONFIG_NAME = "cluster.yaml"
DEFAULT_INVENTORY = "inventory/hosts.yml"
STATE_NAME = ".raytools"


@dataclass(frozen=True)
class Project:
    """The files one command works on; all paths are absolute, and none of them needs to exist."""

    config_path: Path
    inventory_path: Path
    directory: Path
    state_dir: Path


def find_project(config: Path | str | None = None, inventory: Path | str | None = None) -> Project:
    """The project that `-c` and `-i` name, by default the one the working directory is in.

    Without `-c`, cluster.yaml is looked for here and upwards, as git does with its directory. Without
    `-i`, the inventory is the one Ansible would take in the project's directory.

    Args:
        config: path of cluster.yaml, as given on the command line.
        inventory: path of the inventory (file or directory), as given on the command line.
    """
    config_path = Path(config).absolute() if config is not None else _search_upwards(Path.cwd())
    directory = config_path.parent
    inventory_path = Path(inventory).absolute() if inventory is not None else _default_inventory(directory)
    return Project(config_path, inventory_path, directory, directory / STATE_NAME)


def _search_upwards(start: Path) -> Path:
    for directory in (start, *start.parents):
        candidate = directory / CONFIG_NAME
        if candidate.exists():
            return candidate
    return start / CONFIG_NAME


def _default_inventory(directory: Path) -> Path:
    """ANSIBLE_INVENTORY, then ansible.cfg's `inventory`, then inventory/hosts.yml: Ansible's own order."""
    from_environment = os.environ.get("ANSIBLE_INVENTORY")
    if from_environment:
        return Path(from_environment).absolute()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(directory / "ansible.cfg", encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        # Ansible itself names the file's mistake; a command that needs no inventory must not fail on it
        return directory / DEFAULT_INVENTORY
    return directory / settings.get("defaults", "inventory", fallback=DEFAULT_INVENTORY)
