"""Tests on virtual machines: what needs a kernel of its own (NFS, cgroup v2, reboots)."""
