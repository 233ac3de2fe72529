"""Plans on invented machines: what every node gets, and what is refused with its arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytools.config import ClusterConfig
from raytools.errors import PlanError
from raytools.inventory import host_configs, parse_inventory
from raytools.node.ray_temp_dir import temp_dir_of
from raytools.plan import EnvironmentRef, NodePlan, as_set_up, make_plans, systemd_path_name
from raytools.planning import ClusterPlan, check_facts
from raytools.ray_flags import memory_threshold

GIB = 2**30
MIB = 2**20
ENVIRONMENT = EnvironmentRef("automl", "automl-0123456789ab", "0123456789ab" + "0" * 52)


def facts(
    cores=2, threads_per_core=1, numa=1, memory_gib=16.0, shm_gib=None, gpus=0, address="192.0.2.1", **cpu
):
    """The facts of a machine with these parts; siblings are numbered as most kernels do: cores first."""
    count = cores * threads_per_core
    threads = [
        {"cpu": cpu_, "core": cpu_ % cores, "socket": 0, "numa": (cpu_ % cores) * numa // cores}
        for cpu_ in range(count)
    ]
    memory_bytes = int(memory_gib * GIB)
    return {
        "schema": "raytools.facts/1",
        "cpu": {"allowed": list(range(count)), "usable": count, "threads": threads, **cpu},
        "memory": {
            "usable_bytes": memory_bytes,
            "shm_total_bytes": memory_bytes // 2 if shm_gib is None else int(shm_gib * GIB),
        },
        "gpus": [{"index": index} for index in range(gpus)],
        "network": {"primary_address": address},
    }


def plans_of(machines, config=None, overrides=None, environment=ENVIRONMENT) -> dict[str, NodePlan]:
    """Plans for machines n1, n2, … of which the first is the head."""
    names = [f"n{number}" for number in range(1, len(machines) + 1)]
    hostvars = {name: {"raytools": (overrides or {}).get(name, {})} for name in names}
    listing = {
        "_meta": {"hostvars": hostvars},
        "head": {"hosts": names[:1]},
        "workers": {"hosts": names[1:]},
    }
    inventory = parse_inventory(Path("/project/inventory/hosts.yml"), listing)
    configs = host_configs(ClusterConfig.model_validate(config or {}), inventory)
    found = {
        name: {**machine, "network": {"primary_address": f"192.0.2.{number}"}}
        for number, (name, machine) in enumerate(zip(names, machines, strict=True), 1)
    }
    return make_plans(configs, inventory.hosts, found, environment)


def plan_of(machine=None, config=None, **more) -> NodePlan:
    return plans_of([machine or facts()], config, **more)["n1"]


def refusal(machine, config=None) -> str:
    with pytest.raises(PlanError) as error:
        plan_of(machine, config)
    assert error.value.exit_code == 2
    return str(error.value)


# -------------------------------------------------------------------------------------------------- slots


def test_by_default_a_node_is_one_slot_with_all_but_the_systems_share():
    plan = plan_of(facts(cores=4, memory_gib=16))
    (slot,) = plan.slots
    assert slot.cpus == (0, 1, 2, 3)
    # 16 GiB - 2 GiB reserved - 1638 MiB object store = 12698 MiB, rounded down to 256 MiB
    assert slot.memory_bytes == 12544 * MIB
    assert plan.warnings == ()


def test_slots_share_a_node_evenly_and_siblings_stay_together():
    plan = plan_of(facts(cores=4, threads_per_core=2, memory_gib=32), {"slots": {"per_node": 2}})
    assert [slot.cpus for slot in plan.slots] == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert plan.slots[0].memory_bytes == plan.slots[1].memory_bytes


def test_equal_slots_have_the_smallest_share_of_all_nodes():
    plans = plans_of([facts(cores=8, memory_gib=64), facts(cores=4, memory_gib=16)])
    assert {len(plan.slots[0].cpus) for plan in plans.values()} == {4}
    assert {plan.slots[0].memory_bytes for plan in plans.values()} == {12544 * MIB}
    assert plans["n1"].warnings == ("n1: 4 of 8 CPUs are in no slot (all slots of the cluster are equal)",)


def test_unequal_slots_use_what_each_node_has():
    plans = plans_of([facts(cores=8), facts(cores=4)], {"slots": {"equal": False}})
    assert [len(plan.slots[0].cpus) for plan in plans.values()] == [8, 4]


def test_a_host_that_is_not_equal_does_not_set_the_measure():
    machines = [facts(cores=2, memory_gib=8), facts(cores=8), facts(cores=8)]
    plans = plans_of(machines, overrides={"n1": {"slots": {"equal": False}}})
    assert [len(plan.slots[0].cpus) for plan in plans.values()] == [2, 8, 8]


def test_without_smt_siblings_stay_idle_and_nobody_is_warned():
    plan = plan_of(facts(cores=4, threads_per_core=2), {"slots": {"smt": False}})
    assert plan.slots[0].cpus == (0, 1, 2, 3)
    assert plan.logical["CPU"] == 4
    assert plan.warnings == ()


def test_reserved_and_declared_cpus_narrow_the_slots():
    assert len(plan_of(facts(cores=8), {"nodes": {"system_reserved": {"cpus": 2}}}).slots[0].cpus) == 6
    assert len(plan_of(facts(cores=8), {"nodes": {"cpus": 4}}).slots[0].cpus) == 4


def test_a_quota_below_the_affinity_is_what_counts():
    plan = plan_of(facts(cores=8, usable=3))
    assert len(plan.slots[0].cpus) == 3
    assert plan.physical["cpus"] == 3


def test_declared_memory_replaces_the_physical():
    plan = plan_of(facts(memory_gib=64), {"nodes": {"memory": "16GiB"}})
    assert plan.slots[0].memory_bytes == 12544 * MIB
    assert plan.physical["memory_bytes"] == 64 * GIB


def test_gpus_are_shared_out_whole_and_what_is_left_is_said():
    plan = plan_of(facts(cores=4, gpus=3), {"slots": {"per_node": 2}})
    assert [slot.gpus for slot in plan.slots] == [(0,), (1,)]
    assert plan.logical["GPU"] == 2
    assert "n1: 1 of 3 GPUs are in no slot (all slots of the cluster are equal)" in plan.warnings


def test_gpus_that_could_not_be_counted_are_none_and_stay_unknown():
    plan = plan_of({**facts(), "gpus": None})
    assert plan.logical["GPU"] == 0
    assert plan.physical["gpus"] is None


@pytest.mark.parametrize(
    ("memory_gib", "shm_gib", "object_store_mib"),
    [(16, 64, 1638), (1.5, 8, 256), (64, 64, 2048), (16, 1, 512), (4, 0.5, 256)],
)
def test_the_object_store_is_a_tenth_within_bounds_and_half_of_shm(memory_gib, shm_gib, object_store_mib):
    config = {"nodes": {"system_reserved": {"memory": "256MiB"}}}
    plan = plan_of(facts(memory_gib=memory_gib, shm_gib=shm_gib), config)
    assert plan.object_store_bytes == object_store_mib * MIB


# ----------------------------------------------------------------------------------------------- refusals


def test_more_declared_cpus_than_the_kernel_allows_are_refused_with_the_arithmetic():
    assert refusal(facts(cores=4), {"nodes": {"cpus": 8}}) == (
        "n1: nodes.cpus declares 8 CPUs, its kernel lets it use 4 (8 - 4 = 4 too many). "
        "Write nodes.cpus: 4 or auto"
    )


def test_more_declared_memory_than_there_is_is_refused():
    assert refusal(facts(memory_gib=16), {"nodes": {"memory": "32GiB"}}) == (
        "n1: nodes.memory declares 32 GiB, its kernel lets it use 16 GiB (16 GiB too much). "
        "Write nodes.memory: 16384MiB or auto"
    )


def test_more_declared_gpus_than_the_driver_shows_are_refused():
    assert refusal(facts(gpus=3), {"nodes": {"gpus": 4}}).startswith(
        "n1: nodes.gpus declares 4, its driver shows 3 (4 - 3 = 1 missing)"
    )
    assert "could not be counted" in refusal({**facts(), "gpus": None}, {"nodes": {"gpus": 1}})


def test_more_slots_than_cpus_are_refused():
    config = {"slots": {"per_node": 4}, "nodes": {"system_reserved": {"cpus": 1}}}
    assert refusal(facts(cores=4, memory_gib=64), config) == (
        "n1: 4 CPUs - 1 reserved = 3, too few for 4 slots. Lower slots.per_node or nodes.system_reserved.cpus"
    )


def test_a_slot_that_would_share_a_core_is_refused():
    assert refusal(facts(cores=1, threads_per_core=2), {"slots": {"per_node": 2}}).startswith("n1: ")


def test_a_slot_below_the_smallest_memory_is_refused_with_the_arithmetic():
    assert refusal(facts(memory_gib=2.5)) == (
        "n1: 2.5 GiB - 2 GiB reserved - 256 MiB object store = 256 MiB for 1 slot, expected at least "
        "512 MiB for each. Lower slots.per_node or nodes.system_reserved.memory"
    )


def test_a_tiny_shm_is_refused_with_the_command_that_helps():
    assert "mount -o remount,size=1G /dev/shm" in refusal(facts(shm_gib=0.0625))


def test_too_few_worker_ports_for_the_cpus_are_refused():
    config = {"ray": {"ports": {"workers": [20000, 20099]}}}
    assert "has 100 ports for 64 CPUs, expected at least 4 for each (256)" in refusal(facts(cores=64), config)


def test_the_problems_of_all_nodes_are_named_at_once():
    with pytest.raises(PlanError) as error:
        plans_of([facts(cores=2), facts(cores=4)], {"nodes": {"cpus": 8}})
    assert [line.split(":")[0] for line in str(error.value).split("\n")] == ["n1", "n2"]


def test_a_node_without_facts_or_address_is_refused():
    listing = {"head": {"hosts": ["n1"]}}
    inventory = parse_inventory(Path("/project/inventory/hosts.yml"), listing)
    configs = host_configs(ClusterConfig.model_validate({}), inventory)
    with pytest.raises(PlanError, match="n1: there are no facts of this node"):
        make_plans(configs, inventory.hosts, {}, None)
    with pytest.raises(PlanError, match=r"n1: found no address .* Set raytools_address"):
        make_plans(configs, inventory.hosts, {"n1": facts(address=None)}, None)


def test_two_nodes_with_one_address_are_refused():
    names = {"head": {"hosts": ["n1"]}, "workers": {"hosts": ["n2"]}}
    inventory = parse_inventory(Path("/project/inventory/hosts.yml"), names)
    configs = host_configs(ClusterConfig.model_validate({}), inventory)
    with pytest.raises(PlanError, match=r"n2: its address 192\.0\.2\.1 is also that of n1"):
        make_plans(configs, inventory.hosts, {"n1": facts(), "n2": facts()}, None)


# ---------------------------------------------------------------------------------------- what Ray is told


def options(plan: NodePlan) -> dict[str, str]:
    return dict(argument.partition("=")[::2] for argument in plan.ray["start_args"])


def test_ray_is_told_exactly_what_the_slots_have():
    plan = plan_of(facts(cores=4, gpus=2), {"slots": {"per_node": 2}})
    told = options(plan)
    assert told["--num-cpus"] == str(sum(len(slot.cpus) for slot in plan.slots)) == "4"
    assert told["--num-gpus"] == "2"
    assert told["--memory"] == str(sum(slot.memory_bytes for slot in plan.slots))
    assert told["--object-store-memory"] == str(plan.object_store_bytes)
    assert json.loads(told["--resources"]) == {"run_slot": 2}


def test_every_port_of_the_configuration_is_given_to_ray():
    plan = plan_of()
    given_ports = {value for value in [*options(plan).values(), *plan.ray["env"].values()] if value.isdigit()}
    ports = dict(plan.ray["ports"])
    first, last = ports.pop("workers")
    assert {str(port) for port in [*ports.values(), first, last]} <= given_ports


def test_the_head_starts_the_cluster_and_workers_join_it():
    plans = plans_of([facts(), facts()])
    head, worker = options(plans["n1"]), options(plans["n2"])
    assert "--head" in head
    assert head["--port"] == "6379"
    assert head["--dashboard-host"] == "127.0.0.1"
    assert worker["--address"] == plans["n2"].ray["gcs_address"] == "192.0.2.1:6379"
    assert "--head" not in worker
    assert "--include-dashboard" not in worker
    assert (head["--node-ip-address"], worker["--node-ip-address"]) == ("192.0.2.1", "192.0.2.2")
    for told in (head, worker):
        assert {"--block", "--disable-usage-stats"} <= set(told)


def test_the_head_tells_drivers_how_long_they_wait_for_a_node_without_power():
    plans = plans_of([facts(), facts()])
    told = json.loads(options(plans["n1"])["--system-config"])
    assert told == {"grpc_client_keepalive_time_ms": 30_000, "grpc_client_keepalive_timeout_ms": 60_000}
    for name, value in told.items():  # a task that submits tasks has them from its raylet
        assert plans["n2"].ray["env"][f"RAY_{name}"] == str(value)
    assert "--system-config" not in options(plans["n2"])


def test_drivers_are_told_what_ray_env_says():
    env = {"RAY_grpc_client_keepalive_time_ms": "300000", "RAY_grpc_client_keepalive_timeout_ms": "a while"}
    told = options(plan_of(config={"ray": {"env": env}}))
    assert json.loads(told["--system-config"]) == {"grpc_client_keepalive_time_ms": 300_000}


def test_workers_take_the_heads_ports_whatever_their_own_variables_say():
    plans = plans_of(
        [facts(), facts()], overrides={"n2": {"ray": {"ports": {"gcs": 7000, "node_manager": 7001}}}}
    )
    assert plans["n2"].ray["ports"]["gcs"] == 6379
    assert options(plans["n2"])["--node-manager-port"] == "7001"


def test_no_dashboard_means_no_dashboard():
    told = options(plan_of(config={"ray": {"dashboard": {"enabled": False}}}))
    assert told["--include-dashboard"] == "false"
    assert "--dashboard-port" not in told


def test_a_client_server_is_asked_for_only_where_the_environment_can_have_one():
    """Asked for without grpcio, as in ray[tune] alone, `ray start` fails."""
    without = replace(ENVIRONMENT, has_grpcio=False)
    assert options(plan_of())["--ray-client-server-port"] == "10001"
    plan = plan_of(environment=without)
    assert "--ray-client-server-port" not in options(plan)
    assert "client" not in plan.ray["ports"]
    assert "client" in plan_of(environment=None).ray["ports"]  # not locked yet: nobody knows


def test_a_log_monitor_runs_unless_it_is_switched_off():
    assert "--include-log-monitor" not in options(plan_of())
    assert options(plan_of(config={"ray": {"log_to_driver": False}}))["--include-log-monitor"] == "false"


def test_rays_isolation_is_off_unless_asked_for_and_lies_below_the_unit():
    reserved = {"system_reserved": {"cpus": 0, "memory": "3GiB"}}
    assert "--enable-resource-isolation" not in options(plan_of())
    told = options(plan_of(config={"cluster": "c", "ray": {"isolation": True}, "nodes": reserved}))
    assert "--enable-resource-isolation" in told
    assert told["--cgroup-path"] == "/sys/fs/cgroup/raytools.slice/raytools-ray-c.service"
    assert told["--system-reserved-cpu"] == "1", "Ray refuses less"
    assert told["--system-reserved-memory"] == str(3 * 2**30)


def test_an_ipv6_head_is_written_with_brackets():
    inventory = parse_inventory(Path("/project/inventory/hosts.yml"), {"head": {"hosts": ["n1"]}})
    configs = host_configs(ClusterConfig.model_validate({}), inventory)
    plan = make_plans(configs, inventory.hosts, {"n1": facts(address="fd00::2")}, None)["n1"]
    assert plan.ray["gcs_address"] == "[fd00::2]:6379"


def test_authentication_follows_ray_auth_alone():
    plan = plan_of(config={"ray": {"env": {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "/x"}}})
    assert plan.ray["env"]["RAY_AUTH_MODE"] == "token"
    assert plan.ray["env"]["RAY_AUTH_TOKEN_PATH"] == plan.ray["token_path"] == "/opt/raytools/token"
    assert len(plan.warnings) == 2
    off = plan_of(config={"ray": {"auth": "disabled"}})
    assert off.ray["env"]["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN_PATH" not in off.ray["env"]
    assert off.ray["token_path"] is None


def test_flags_of_the_configuration_win_over_the_plans_own():
    plan = plan_of(config={"ray": {"env": {"RAY_task_oom_retries": 3, "MINE": "x"}}})
    assert plan.ray["env"]["RAY_task_oom_retries"] == "3"
    assert plan.ray["env"]["MINE"] == "x"
    assert plan.ray["env"]["OMP_WAIT_POLICY"] == "passive"
    assert plan_of().ray["env"]["RAY_task_oom_retries"] == "0"
    assert plan_of().ray["env"]["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_lower_memory_threshold_is_taken_and_warned_about():
    plan = plan_of(config={"ray": {"env": {"RAY_memory_usage_threshold": "0.5"}}})
    assert plan.ray["env"]["RAY_memory_usage_threshold"] == "0.5"
    assert "Ray may kill runs that are inside their limits" in plan.warnings[0]


def test_the_subreaper_flag_of_older_ray_becomes_process_groups_and_is_named():
    old = "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper"
    plan = plan_of(config={"ray": {"env": {old: "true"}}})
    assert plan.ray["env"]["RAY_process_group_cleanup_enabled"] == "true"
    assert old not in plan.ray["env"]
    assert old in plan.warnings[0]
    both = plan_of(config={"ray": {"env": {old: "true", "RAY_process_group_cleanup_enabled": "false"}}})
    assert both.ray["env"]["RAY_process_group_cleanup_enabled"] == "false"


def test_rays_temp_dir_is_short_and_follows_from_the_root():
    assert temp_dir_of("/opt/raytools") == temp_dir_of("/opt/raytools")
    assert temp_dir_of("/opt/raytools") != temp_dir_of("/opt/other")
    assert len(temp_dir_of("/" + "x" * 200)) == len("/tmp/rt-01234567/ray")


# ---------------------------------------------------------------------------------------------- node.json


def test_node_json_names_the_environment_by_its_digest_path():
    data = plan_of().to_json()
    assert data["schema"] == "raytools.node/1"
    assert data["environment"] == {
        "id": "automl-0123456789ab",
        "prefix": "/opt/raytools/envs/automl-0123456789ab",
        "lock_digest": ENVIRONMENT.lock_digest,
    }
    assert data["python"] == "/opt/raytools/envs/automl-0123456789ab/bin/python"
    assert data["toolkit"].startswith("/opt/raytools/toolkit/")


def test_node_json_of_an_existing_environment_has_its_prefix():
    data = plan_of(environment=EnvironmentRef("mine", "mine", prefix="/conda/envs/mine")).to_json()
    assert data["environment"] == {"id": "mine", "prefix": "/conda/envs/mine", "lock_digest": None}


def test_node_json_without_a_lock_says_so_with_null():
    data = plan_of(environment=None).to_json()
    assert data["environment"] is None
    assert data["python"] is None


def test_storage_of_a_plan_is_a_path_every_node_can_use():
    assert plan_of().to_json()["storage"] == {"type": "local", "path": "/opt/raytools"}
    existing = plan_of(config={"storage": {"type": "existing", "path": "/shared"}}).to_json()["storage"]
    assert existing == {"type": "existing", "path": "/shared"}
    nfs = plans_of([facts(), facts()], {"storage": {"type": "nfs"}})["n2"].to_json()["storage"]
    assert (nfs["path"], nfs["server"], nfs["export"]) == ("/mnt/raytools", "192.0.2.1", "/srv/raytools")
    assert (nfs["serves"], nfs["unit"]) == (False, "mnt-raytools")


@pytest.mark.parametrize(("server", "serving"), [("head", "n1"), ("n1", "n1"), ("n2", "n2"), ("nas", None)])
def test_nfs_is_served_by_the_declared_node_or_by_a_machine_outside(server: str, serving: str | None):
    plans = plans_of([facts(), facts()], {"storage": {"type": "nfs", "server": server}})
    assert [name for name, plan in plans.items() if plan.storage["serves"]] == ([serving] if serving else [])
    addresses = {plan.storage["server"] for plan in plans.values()}
    assert addresses == {plans[serving].address if serving else "nas"}


@pytest.mark.parametrize(
    ("path", "name"),  # as `systemd-escape --path` of systemd 252 has it
    [
        ("/mnt/raytools", "mnt-raytools"),
        ("/", "-"),
        ("/data//shared-1/", "data-shared\\x2d1"),
        ("/.hidden/a.b", "\\x2ehidden-a.b"),
        ("/Bücher", "B\\xc3\\xbccher"),
    ],
)
def test_the_mount_unit_is_named_as_systemd_wants_it(path: str, name: str):
    assert systemd_path_name(path) == name


def test_runs_and_waivers_reach_the_node_in_seconds_and_with_reasons():
    config = {
        "runs": {"time": "90s", "env": {"A": 1}},
        "doctor": {"waive": [{"code": "RT101", "reason": "lab"}]},
    }
    data = plan_of(config=config).to_json()
    assert data["runs"] == {"time_s": 90.0, "grace_s": 0.0, "retries": 1, "env": {"A": "1"}}
    assert data["doctor"] == {"waive": [{"code": "RT101", "reason": "lab"}]}


def test_warnings_are_for_people_and_not_in_node_json():
    plan = plan_of(facts(cores=5), {"slots": {"per_node": 2}})
    assert plan.warnings
    assert "warnings" not in plan.to_json()
    assert ClusterPlan({"n1": plan}, plan.warnings).to_json()["warnings"] == list(plan.warnings)


def test_the_plan_of_the_cluster_is_the_same_every_time():
    machines = [facts(cores=8, gpus=2), facts(cores=4, gpus=2)]
    first = {name: plan.to_json() for name, plan in plans_of(machines).items()}
    assert json.dumps(first) == json.dumps(
        {name: plan.to_json() for name, plan in plans_of(machines).items()}
    )


@pytest.mark.parametrize("data", [None, [], {}, "x", {"n1": 5}, {"n1": {}}, {"n1": {"cpu": {"usable": "2"}}}])
def test_what_are_no_facts_is_refused(data):
    with pytest.raises(PlanError, match=r"facts\.json: "):
        check_facts(data, "facts.json")


def test_facts_are_taken_as_raytools_facts_prints_them():
    assert check_facts({"nodes": {"n1": facts()}}, "facts.json") == {"n1": facts()}


# --------------------------------------------------------------------------------------- any machines at all

_machines = st.lists(
    st.builds(
        facts,
        cores=st.integers(1, 24),
        threads_per_core=st.integers(1, 2),
        numa=st.integers(1, 3),
        memory_gib=st.floats(1, 2048),
        shm_gib=st.floats(0.2, 128),
        gpus=st.integers(0, 8),
    ),
    min_size=1,
    max_size=4,
)
_configs = st.fixed_dictionaries(
    {
        "slots": st.fixed_dictionaries(
            {"per_node": st.integers(1, 6), "equal": st.booleans(), "smt": st.booleans()}
        ),
        "nodes": st.fixed_dictionaries(
            {
                "system_reserved": st.fixed_dictionaries(
                    {"cpus": st.integers(0, 2), "memory": st.integers(0, 4 * GIB)}
                )
            }
        ),
    }
)


@settings(max_examples=200, deadline=None)
@given(_machines, _configs)
def test_on_any_machines_slots_are_disjoint_allowed_and_within_what_there_is(machines, config):
    try:
        plans = plans_of(machines, config)
    except PlanError as error:
        plans, message = {}, str(error)
        assert message.startswith("n")
    for plan, machine in zip(plans.values(), machines, strict=bool(plans)):
        cpus = [cpu for slot in plan.slots for cpu in slot.cpus]
        gpus = [gpu for slot in plan.slots for gpu in slot.gpus]
        assert len(set(cpus)) == len(cpus)
        assert set(cpus) <= set(machine["cpu"]["allowed"])
        assert len(set(gpus)) == len(gpus) <= len(machine["gpus"])
        reserved = config["nodes"]["system_reserved"]
        assert len(cpus) + reserved["cpus"] <= machine["cpu"]["usable"]
        memory_bytes = machine["memory"]["usable_bytes"]
        promised = plan.logical["memory"] + plan.object_store_bytes
        assert promised + reserved["memory"] <= memory_bytes
        assert all(slot.memory_bytes % (256 * MIB) == 0 for slot in plan.slots)
        assert all(slot.memory_bytes >= 512 * MIB and slot.cpus for slot in plan.slots)
        assert plan.object_store_bytes <= machine["memory"]["shm_total_bytes"] / 2
        # all of it in use, and three quarters of the reserve: Ray's monitor still does nothing
        threshold = float(plan.ray["env"]["RAY_memory_usage_threshold"])
        assert promised + 0.75 * reserved["memory"] <= threshold * memory_bytes + 1
        assert len({len(slot.cpus) for slot in plan.slots}) == 1
    if plans and config["slots"]["equal"]:
        shares = {(len(slot.cpus), slot.memory_bytes) for plan in plans.values() for slot in plan.slots}
        assert len(shares) == 1


@pytest.mark.parametrize(
    ("memory_gib", "reserved_gib", "threshold"),
    [(24, 2, "0.9792"), (8, 2, "0.9375"), (1024, 2, "0.9996"), (16, 0, "1.0000"), (2, 8, "0.5000")],
)
def test_the_memory_threshold_leaves_a_quarter_of_the_reserve(memory_gib, reserved_gib, threshold):
    assert memory_threshold(memory_gib * GIB, reserved_gib * GIB) == threshold


def test_a_few_mebibytes_more_or_less_after_a_boot_are_no_other_plan():
    before = plan_of(facts(memory_gib=16)).to_json()
    for change in (-12 * MIB, 12 * MIB):
        booted = facts(memory_gib=16)
        booted["memory"]["usable_bytes"] += change
        assert plan_of(as_set_up(booted, before)).to_json() == before
        assert plan_of(booted).to_json() != before


def test_a_machine_with_other_memory_is_planned_anew():
    before = plan_of(facts(memory_gib=16)).to_json()
    smaller = facts(memory_gib=15)
    assert as_set_up(smaller, before) == smaller
    assert as_set_up(smaller, None) == smaller
    unknown = {**smaller, "memory": {**smaller["memory"], "usable_bytes": None}}
    assert as_set_up(unknown, before) == unknown
