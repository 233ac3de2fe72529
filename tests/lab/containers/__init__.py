"""A lab: several hosts on this machine, podman containers that boot systemd and sshd at their own addresses.

For a person: `make lab-up`, docs/lab.md. For tests: `running_lab`. One file per subject: `hosts` is what is
asked for, `image` their root filesystem, `network`, `container` one host, `keys`, `files` what is written for
Ansible and raytools, `lab` all of it together.
"""

from tests.lab.containers.hosts import HostSpec
from tests.lab.containers.lab import Lab, running_lab

__all__ = ["HostSpec", "Lab", "running_lab"]
