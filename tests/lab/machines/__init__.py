"""A lab of virtual machines on this machine: qemu, a kernel of their own, systemd, a network between them.

For a person: `make vm-up`, docs/lab.md. For tests: `running_lab`. One file per subject: `hosts` is what is
asked for, `image` what they boot from, `acceleration` whether natively, `network`, `qemu` the command line,
`processes` and `qmp` what is done to a running one, `machine` one of them, `lab` all of it together.
"""

from tests.lab.machines.hosts import MachineSpec
from tests.lab.machines.lab import Lab, running_lab
from tests.lab.machines.machine import Machine

__all__ = ["Lab", "Machine", "MachineSpec", "running_lab"]
