"""Hosts from Ansible's inventory. Few tests ask Ansible itself (0.6 s each); the rest reads listings."""

# ruff: noqa: E501 - a table of messages is read line by line

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from raytools.config import ClusterConfig, load_config
from raytools.errors import ConfigError
from raytools.inventory import Inventory, host_configs, load_inventory, parse_inventory

ROOT = Path(__file__).parents[2]
FIXED_FORM = re.compile(r"[^\n]+:\d+: [^\n]+: found [^\n]+, expected [^\n]+")


def listing(head=("n1",), workers=(), **variables):
    """What `ansible-inventory --list` prints for these hosts."""
    return {
        "_meta": {"hostvars": {name.replace("_", "-"): values for name, values in variables.items()}},
        "all": {"children": ["ungrouped", "head", "workers"]},
        "head": {"hosts": list(head)},
        "workers": {"hosts": list(workers)},
    }


def parsed(**hosts) -> Inventory:
    return parse_inventory(Path("/project/inventory/hosts.yml"), listing(**hosts))


def problem(**hosts) -> str:
    with pytest.raises(ConfigError) as error:
        parsed(**hosts)
    text = str(error.value)
    assert FIXED_FORM.fullmatch(text)
    return text.removeprefix("/project/inventory/hosts.yml:1: ")


# ---------------------------------------------------------------------------------------- through Ansible


def test_the_shipped_inventory_is_this_machine_without_ssh_below_the_checkout():
    inventory = load_inventory(ROOT / "inventory" / "hosts.yml")
    assert [host.name for host in inventory.hosts] == ["localhost"]
    head = inventory.head
    assert (head.role, head.connection, head.become) == ("head", "local", False)
    assert head.root == str(ROOT / ".raytools")
    assert head.python == sys.executable
    assert inventory.workers == ()


@pytest.mark.parametrize("name", ["three-vms-nfs", "gpus", "no-root"])
def test_every_example_is_an_inventory_that_goes_with_the_shipped_configuration(name):
    inventory = load_inventory(ROOT / "inventory" / "examples" / f"{name}.yml")
    assert inventory.head.connection == "ssh"
    assert len(inventory.workers) >= 1
    assert set(host_configs(load_config(ROOT / "cluster.yaml"), inventory)) == {
        host.name for host in inventory.hosts
    }


def test_group_variables_and_other_formats_are_ansibles_to_read(tmp_path):
    directory = tmp_path / "inventory"
    (directory / "group_vars").mkdir(parents=True)
    (directory / "hosts.ini").write_text("[head]\nn1 ansible_host=192.0.2.1\n[workers]\nn[2:3]\n")
    (directory / "group_vars" / "workers.yml").write_text(
        "ansible_port: 2222\nraytools: {slots: {per_node: 3}}\n"
    )
    inventory = load_inventory(directory)
    assert [host.name for host in inventory.workers] == ["n2", "n3"]
    assert inventory.host("n3").port == 2222
    configs = host_configs(ClusterConfig.model_validate({}), inventory)
    assert {name: config.slots.per_node for name, config in configs.items()} == {"n1": 1, "n2": 3, "n3": 3}


def test_what_ansible_cannot_read_is_one_line_with_its_reason(tmp_path):
    path = tmp_path / "hosts.yml"
    path.write_text("head: [\n")
    with pytest.raises(ConfigError) as error:
        load_inventory(path)
    text = str(error.value)
    assert FIXED_FORM.fullmatch(text)
    assert "found what Ansible refuses (YAML parsing failed" in text


@pytest.mark.parametrize("name", ["nowhere.yml", "x" * 300])
def test_a_missing_inventory_is_one_line(tmp_path, name):
    with pytest.raises(ConfigError) as error:
        load_inventory(tmp_path / name)
    assert FIXED_FORM.fullmatch(str(error.value))


# ------------------------------------------------------------------------------------------------- groups


def test_a_cluster_has_exactly_one_head():
    assert problem(head=()) == "head: found no host, expected exactly one host in group head"
    assert problem(head=("a", "b")) == "head: found 2 hosts (a, b), expected exactly one host in group head"


def test_a_host_is_head_or_worker_not_both():
    assert (
        problem(head=("a",), workers=("a",))
        == "hosts.a: found a host in both groups, expected head or workers"
    )


def test_hosts_of_child_groups_belong_to_the_cluster():
    data = listing()
    data["workers"] = {"children": ["rack1", "rack2"]}
    data["rack1"] = {"hosts": ["a", "b"]}
    data["rack2"] = {"hosts": ["b", "c"]}
    inventory = parse_inventory(Path("/project/inventory/hosts.yml"), data)
    assert [host.name for host in inventory.workers] == ["a", "b", "c"]


def test_a_host_in_neither_group_is_left_out_and_named():
    data = listing()
    data["all"]["children"].append("worker")
    data["worker"] = {"hosts": ["lost"]}
    assert parse_inventory(Path("/project/inventory/hosts.yml"), data).ignored == ("lost",)


def test_asking_for_an_unknown_host_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"hosts\.n9: found no such host, expected one of n1, n2"):
        parsed(workers=("n2",)).host("n9")


# ---------------------------------------------------------------------------------------------- addresses


def test_an_address_in_the_inventory_is_where_other_nodes_reach_the_host():
    assert parsed(n1={"ansible_host": "192.0.2.1"}).head.cluster_address == "192.0.2.1"


def test_a_name_or_a_forwarded_port_leaves_the_address_to_the_facts():
    assert parsed(n1={"ansible_host": "n1.example"}).head.cluster_address is None
    assert parsed(n1={"ansible_host": "127.0.0.1", "ansible_port": 2222}).head.cluster_address is None


def test_raytools_address_outranks_ansible_host():
    host = parsed(n1={"ansible_host": "192.0.2.1", "raytools_address": "198.51.100.1"}).head
    assert (host.address, host.cluster_address) == ("192.0.2.1", "198.51.100.1")


def test_two_names_for_one_machine_are_an_error():
    text = problem(workers=("n2",), n1={"ansible_host": "192.0.2.1"}, n2={"ansible_host": "192.0.2.1"})
    assert text == "hosts.n2: found the address of n1 (192.0.2.1 port 22), expected an address of its own"
    text = problem(
        workers=("n2",), n1={"raytools_address": "192.0.2.1"}, n2={"raytools_address": "192.0.2.1"}
    )
    assert text == "hosts.n2: found the address of n1 (192.0.2.1), expected an address of its own"
    assert "hosts.n2: found the address of n1 (local)" in problem(
        workers=("n2",), n1={"ansible_connection": "local"}, n2={"ansible_connection": "local"}
    )


def test_two_forwarded_ports_of_one_address_are_two_machines():
    inventory = parsed(
        workers=("n2",),
        n1={"ansible_host": "127.0.0.1", "ansible_port": 2201},
        n2={"ansible_host": "127.0.0.1", "ansible_port": "2202"},
    )
    assert [host.port for host in inventory.hosts] == [2201, 2202]


# ---------------------------------------------------------------------------------------------- variables


def test_a_relative_root_is_below_the_parent_of_the_inventorys_directory():
    host = parsed(n1={"ansible_connection": "local", "raytools_root": "state/./x"}).head
    assert host.root == "/project/state/x"


def test_the_root_is_opt_raytools_unless_said_otherwise():
    assert parsed().head.root == "/opt/raytools"
    assert parsed(n1={"raytools_root": "/data/rt/"}).head.root == "/data/rt"


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"raytools_root": "rel"}, "hosts.n1.raytools_root: found 'rel', expected an absolute path, the same on every node reached by ssh"),
        ({"ansible_connection": "winrm"}, "hosts.n1.ansible_connection: found 'winrm', expected local or ssh"),
        ({"ansible_port": "ssh"}, "hosts.n1.ansible_port: found 'ssh', expected a port"),
        ({"ansible_port": 0}, "hosts.n1.ansible_port: found 0, expected a port"),
        ({"ansible_host": 5}, "hosts.n1.ansible_host: found 5, expected text"),
        ({"ansible_become": "perhaps"}, "hosts.n1.ansible_become: found 'perhaps', expected true or false"),
        ({"raytools": 5}, "hosts.n1.raytools: found 5, expected a mapping such as {slots: {per_node: 2}}"),
        ({"ansible_host": "{{ ip }}"}, "hosts.n1.ansible_host: found '{{ ip }}', expected a plain value (templates are Ansible's alone)"),
        ({"raytools": {"runs": {"env": {"A": "{{ a }}"}}}}, "hosts.n1.raytools.runs.env.A: found '{{ a }}', expected a plain value (templates are Ansible's alone)"),
    ],
)  # fmt: skip
def test_a_variable_that_cannot_be_used_is_one_line(variables, text):
    assert problem(n1=variables) == text


@pytest.mark.parametrize(
    ("value", "become"), [(True, True), ("yes", True), ("false", False), (None, False), (0, False)]
)
def test_becoming_root_is_as_the_inventory_says(value, become):
    assert parsed(n1={} if value is None else {"ansible_become": value}).head.become is become


def test_passwords_in_variables_are_not_shown_when_a_host_is_printed():
    assert "hunter2" not in repr(parsed(n1={"ansible_password": "hunter2"}))


# ---------------------------------------------------------------------------------- variables over the file


def test_a_wrong_override_names_the_inventory_its_line_the_host_and_the_key(tmp_path):
    path = tmp_path / "inventory" / "hosts.yml"
    path.parent.mkdir()
    path.write_text("head:\n  hosts:\n    n1:\n      raytools:\n        slots:\n          per_node: two\n")
    data = listing(n1={"raytools": {"slots": {"per_node": "two"}}})
    with pytest.raises(ConfigError) as error:
        host_configs(ClusterConfig.model_validate({}), parse_inventory(path, data))
    assert str(error.value) == (
        f"{path}:6: hosts.n1.raytools.slots.per_node: found 'two', expected a whole number from 1 to 1024"
    )


def test_the_mistakes_of_all_hosts_are_reported_at_once():
    inventory = parsed(workers=("n2",), n1={"raytools": {"cluster": "x"}}, n2={"raytools": {"slots": 5}})
    with pytest.raises(ConfigError) as error:
        host_configs(ClusterConfig.model_validate({}), inventory)
    lines = str(error.value).split("\n")
    assert [line.split(": found")[0].split(": ")[1] for line in lines] == [
        "hosts.n1.raytools.cluster",
        "hosts.n2.raytools.slots",
    ]
    assert all(FIXED_FORM.fullmatch(line) for line in lines)


def test_a_host_without_variables_has_the_file_as_it_is():
    config = ClusterConfig.model_validate({"cluster": "x"})
    assert host_configs(config, parsed()) == {"n1": config}
