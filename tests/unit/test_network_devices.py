"""Which device has an address, and how large its packets may be: this machine, told twice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from raytools.node.network_devices import devices

CHECKOUT = Path(__file__).resolve().parents[2]


def test_loopback_is_there_with_the_kernels_own_size_of_packets() -> None:
    assert devices()["127.0.0.1"] == {
        "device": "lo",
        "mtu_bytes": int(Path("/sys/class/net/lo/mtu").read_text()),
        "speed_mbit": None,
    }


def test_each_devices_first_address_is_told_with_what_psutil_says_of_it() -> None:
    before, stats, found = psutil.net_if_addrs(), psutil.net_if_stats(), devices()
    for name, addresses in psutil.net_if_addrs().items():
        if before.get(name) != addresses or name not in stats:
            continue  # it came or went meanwhile
        of_ipv4 = [one.address for one in addresses if one.family == socket.AF_INET]
        of_ipv6 = [
            one.address
            for one in addresses
            if one.family == socket.AF_INET6 and not one.address.startswith("fe80")
        ]
        for address in of_ipv4[:1] + of_ipv6:
            assert found[address]["device"] == name
            assert found[address]["mtu_bytes"] == stats[name].mtu


def test_an_address_that_is_valid_on_one_link_only_is_left_out() -> None:
    assert not [address for address in devices() if address.startswith("fe80")]


def test_another_size_of_packets_is_told() -> None:
    if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root, ip and unshare, for a network of its own")
    ask = "import json; from raytools.node.network_devices import devices; print(json.dumps(devices()))"
    script = (
        "mount -t sysfs sysfs /sys && ip link set lo mtu 1380 up && ip address add 192.0.2.5/32 dev lo && "
        'exec "$0" -c "$1"'
    )
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script, sys.executable, ask],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"needs a network of its own: {done.stderr.strip()}")
    assert json.loads(done.stdout)["127.0.0.1"] == {"device": "lo", "mtu_bytes": 1380, "speed_mbit": None}
