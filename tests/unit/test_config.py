"""cluster.yaml: what is read, and what a person is told about a mistake."""

# ruff: noqa: E501 - a table of messages is read line by line

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raytools.config import (
    ClusterConfig,
    ExistingStorage,
    LocalStorage,
    NfsStorage,
    json_schema,
    load_config,
    merged,
)
from raytools.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "cluster.yaml"
FIXED_FORM = re.compile(r"[^\n]+:\d+: [^\n]+: found [^\n]+, expected [^\n]+")


def problems(tmp_path: Path, content: str | bytes) -> list[str]:
    """The lines a person sees, without the directory; [] if all is well."""
    path = tmp_path / "cluster.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        load_config(path)
    except ConfigError as caught:
        error = caught
    else:
        return []
    lines = str(error).split("\n")
    assert error.exit_code == 2
    assert all(FIXED_FORM.fullmatch(line) for line in lines), lines
    return [line.removeprefix(f"{tmp_path}/") for line in lines]


def config_of(tmp_path: Path, content: str) -> ClusterConfig:
    path = tmp_path / "cluster.yaml"
    path.write_text(content)
    return load_config(path)


# --------------------------------------------------------------------------------------------- defaults


def test_the_shipped_file_is_right_and_says_what_the_defaults_are():
    assert load_config(SHIPPED) == ClusterConfig.model_validate({})


def test_the_shipped_file_shows_every_key():
    shown = yaml.safe_load(SHIPPED.read_text())
    assert shown == ClusterConfig.model_validate({}).to_data()
    assert "# prefix:" in SHIPPED.read_text()


def test_a_file_with_one_key_has_the_defaults_of_all_others(tmp_path):
    config = config_of(tmp_path, "slots: {per_node: 2}\n")
    assert config.slots.per_node == 2
    assert config.slots.equal
    assert config.runs.time == 3600
    assert config.nodes.cpus is None
    assert config.nodes.system_reserved.memory == 2 * 2**30
    assert config.environment.pip[0] == "ray[default,tune]==2.58.1"


def test_a_section_whose_keys_are_all_commented_out_has_its_defaults(tmp_path):
    config = config_of(tmp_path, "cluster: x\nslots:\n  # per_node: 2\nray:\n  env:\nstorage:\n")
    assert config == ClusterConfig.model_validate({"cluster": "x"})


def test_default_ports_are_free_of_each_other_and_below_the_kernels_own_range():
    ports = ClusterConfig.model_validate({}).ray.ports
    single = list(ports.single().values())
    assert len(set(single)) == len(single)
    assert max(*single, ports.workers[1]) < 32768
    assert not any(ports.workers[0] <= port <= ports.workers[1] for port in single)


def test_setting_one_variable_does_not_take_away_the_default_one(tmp_path):
    assert config_of(tmp_path, "ray: {env: {A: 1}}").ray.env == {"OMP_WAIT_POLICY": "passive", "A": "1"}
    assert config_of(tmp_path, "ray: {env: {OMP_WAIT_POLICY: active}}").ray.env == {
        "OMP_WAIT_POLICY": "active"
    }


def test_nobody_changes_a_configuration_after_loading():
    with pytest.raises(ValueError, match="frozen"):
        ClusterConfig.model_validate({}).cluster = "other"


def test_storage_is_one_of_three_kinds(tmp_path):
    assert isinstance(config_of(tmp_path, "storage: {}").storage, LocalStorage)
    existing = config_of(tmp_path, "storage: {type: existing, path: /shared}").storage
    assert isinstance(existing, ExistingStorage)
    assert existing.path == "/shared"
    assert isinstance(config_of(tmp_path, "storage: {type: nfs}").storage, NfsStorage)


# ------------------------------------------------------------------------------------- mistakes in values


@pytest.mark.parametrize(
    ("content", "expected_line"),
    [
        ("cluster: Demo", "cluster.yaml:1: cluster: found 'Demo', expected a name such as demo (a-z, 0-9 and -, at most 32)"),
        ("cluster: 5", "cluster.yaml:1: cluster: found 5, expected a name such as demo (a-z, 0-9 and -, at most 32)"),
        ("environment: {python: 3.10}", 'cluster.yaml:1: environment.python: found 3.10, expected a version in quotes such as "3.11"'),
        ("environment:\n  pip: optuna", "cluster.yaml:2: environment.pip: found 'optuna', expected a list"),
        ("environment:\n  pip:\n    - optuna\n    - 5", "cluster.yaml:4: environment.pip[1]: found 5, expected a package such as optuna or scikit-learn==1.7.2"),
        ("environment: {conda: [-x]}", "cluster.yaml:1: environment.conda[0]: found '-x', expected a package such as optuna or scikit-learn==1.7.2"),
        ("environment: {prefix: rel}", "cluster.yaml:1: environment.prefix: found 'rel', expected an absolute path"),
        ("environment: {fallback: yes}", "cluster.yaml:1: environment.fallback: found yes, expected local or none"),
        ("storage: {type: nfz}", "cluster.yaml:1: storage.type: found 'nfz', expected local, existing or nfs"),
        ("storage: {type: [nfs]}", "cluster.yaml:1: storage.type: found a list, expected local, existing or nfs"),
        ("storage: {type: existing}", "cluster.yaml:1: storage.path: found nothing, expected an absolute path"),
        ("storage: {path: /x}", "cluster.yaml:1: storage.path: found an unknown key, expected one of type"),
        ("storage: 7", "cluster.yaml:1: storage: found 7, expected a mapping"),
        (
            "storage: {type: nfs, export: /x, mount: /x}",
            "cluster.yaml:1: storage.mount: found /x, which is also the export, expected a directory of its own",
        ),
        ("ray: {ports: {gcs: 70000}}", "cluster.yaml:1: ray.ports.gcs: found 70000, expected a whole number from 1 to 65535"),
        ("ray: {ports: {workers: [1, 2, 3]}}", "cluster.yaml:1: ray.ports.workers: found a list, expected the first and the last port, such as [20000, 20999]"),
        ("ray: {ports: {workers: [30000, 20000]}}", "cluster.yaml:1: ray.ports.workers: found a list, expected the first and the last port, such as [20000, 20999]"),
        ("ray: {auth: off}", "cluster.yaml:1: ray.auth: found off, expected token or disabled"),
        ("ray: {env: {A: true}}", "cluster.yaml:1: ray.env.A: found true, expected text in quotes or a whole number"),
        ("ray: {env: {A: 1.10}}", "cluster.yaml:1: ray.env.A: found 1.10, expected text in quotes or a whole number"),
        ("ray: {env: {A B: x}}", "cluster.yaml:1: ray.env.'A B': found the name 'A B', expected the name of an environment variable"),
        ("ray: {dashboard: {enabled: 1}}", "cluster.yaml:1: ray.dashboard.enabled: found 1, expected true or false"),
        ("nodes: {memory: 12XB}", "cluster.yaml:1: nodes.memory: found '12XB', expected auto or a size such as 2GiB or 500MB of at least 512MiB"),
        ("nodes: {memory: 100MB}", "cluster.yaml:1: nodes.memory: found '100MB', expected auto or a size such as 2GiB or 500MB of at least 512MiB"),
        ("nodes: {cpus: 0}", "cluster.yaml:1: nodes.cpus: found 0, expected auto or a whole number from 1 to 4096"),
        ("nodes: {cpus: all}", "cluster.yaml:1: nodes.cpus: found 'all', expected auto or a whole number from 1 to 4096"),
        ("nodes: {system_reserved: [1]}", "cluster.yaml:1: nodes.system_reserved: found a list, expected a mapping"),
        ("slots: {per_node: 1.5}", "cluster.yaml:1: slots.per_node: found 1.5, expected a whole number from 1 to 1024"),
        ("slots: {per_node: 0x10}", "cluster.yaml:1: slots.per_node: found '0x10', expected a whole number from 1 to 1024"),
        ("runs: {time: 1:30}", "cluster.yaml:1: runs.time: found '1:30', expected a duration such as 90s or 1h30m of at least 0.001s"),
        ("runs: {grace: -1s}", "cluster.yaml:1: runs.grace: found '-1s', expected a duration such as 90s or 1h30m"),
        ("runs: {retries: null}", "cluster.yaml:1: runs.retries: found nothing, expected a whole number from 0 to 100"),
        ("doctor: {waive: [{code: RT1, reason: x}]}", "cluster.yaml:1: doctor.waive[0].code: found 'RT1', expected a code such as RT202"),
        ("doctor: {waive: [{code: RT101}]}", "cluster.yaml:1: doctor.waive[0].reason: found nothing, expected a reason in words"),
        ("doctor: {waive: [RT101]}", "cluster.yaml:1: doctor.waive[0]: found 'RT101', expected a mapping"),
        ("- a", "cluster.yaml:1: (file): found a list, expected a mapping"),
        ("just text", "cluster.yaml:1: (file): found 'just text', expected a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_with_its_key_and_what_is_right(tmp_path, content, expected_line):
    assert problems(tmp_path, content) == [expected_line]


def test_every_problem_of_a_file_is_reported_at_once_in_the_order_of_lines(tmp_path):
    content = "runs: {time: soon}\nslots:\n  per_node: none\n  equal: maybe\ncluster: X\n"
    lines = problems(tmp_path, content)
    assert [line.split(": found")[0] for line in lines] == [
        "cluster.yaml:1: runs.time",
        "cluster.yaml:3: slots.per_node",
        "cluster.yaml:4: slots.equal",
        "cluster.yaml:5: cluster",
    ]


# --------------------------------------------------------------------------------------- mistakes in keys


def test_an_unknown_key_comes_with_the_nearest_known_one(tmp_path):
    (line,) = problems(tmp_path, "cluster: x\nslot: {per_node: 2}\n")
    assert line.startswith(
        "cluster.yaml:2: slot: found an unknown key, expected one of cluster, environment, "
    )
    assert line.endswith("(did you mean slots?)")


def test_an_unknown_port_names_the_known_ones(tmp_path):
    (line,) = problems(tmp_path, "ray:\n  ports:\n    gsc: 1\n")
    assert line.startswith(
        "cluster.yaml:3: ray.ports.gsc: found an unknown key, expected one of gcs, dashboard, "
    )
    assert line.endswith("(did you mean gcs?)")


def test_a_duplicate_key_is_an_error_with_its_line(tmp_path):
    lines = problems(tmp_path, "slots:\n  per_node: 1\n  smt: true\n  per_node: 2\n")
    assert lines == [
        "cluster.yaml:4: slots.per_node: found the key twice (first on line 2), expected it once"
    ]


def test_a_key_that_is_no_text_is_an_error(tmp_path):
    assert problems(tmp_path, "? [a, b]\n: 1\n") == [
        "cluster.yaml:1: (file): found a list or a mapping as a key, expected text"
    ]


# ---------------------------------------------------------------------------------- values against values


def test_two_uses_of_one_port_are_an_error(tmp_path):
    (line,) = problems(tmp_path, "ray:\n  ports:\n    gcs: 7000\n    client: 7000\n")
    assert (
        line == "cluster.yaml:4: ray.ports.client: found 7000, which is also gcs, expected a port of its own"
    )


def test_a_port_among_the_workers_is_an_error(tmp_path):
    (line,) = problems(tmp_path, "ray: {ports: {gcs: 20005}}")
    assert line == (
        "cluster.yaml:1: ray.ports.gcs: found 20005, which is among the workers' ports, expected one outside 20000-20999"
    )


def test_too_few_worker_ports_are_an_error(tmp_path):
    (line,) = problems(tmp_path, "ray: {ports: {workers: [20000, 20010]}}")
    assert line == "cluster.yaml:1: ray.ports.workers: found 11 ports, expected at least 50"


def test_reserving_all_that_is_declared_is_an_error(tmp_path):
    lines = problems(tmp_path, "nodes:\n  cpus: 2\n  memory: 2GiB\n  system_reserved: {cpus: 2}\n")
    assert lines == [
        "cluster.yaml:3: nodes.system_reserved.memory: found 2GiB of 2GiB reserved, expected less than 2GiB",
        "cluster.yaml:4: nodes.system_reserved.cpus: found 2 of 2 CPUs reserved, expected fewer than 2",
    ] or lines == [
        "cluster.yaml:4: nodes.system_reserved.cpus: found 2 of 2 CPUs reserved, expected fewer than 2",
        "cluster.yaml:4: nodes.system_reserved.memory: found 2GiB of 2GiB reserved, expected less than 2GiB",
    ]


# ----------------------------------------------------------------------------- files that are no cluster.yaml


@pytest.mark.parametrize(
    ("content", "expected_line"),
    [
        (b"", "cluster.yaml:1: (file): found an empty file, expected at least one key"),
        (b"# nothing yet\n", "cluster.yaml:1: (file): found an empty file, expected at least one key"),
        (b"cluster: x\nruns: \xff\n", "cluster.yaml:2: (file): found byte 0xff, which is not UTF-8, expected text in UTF-8"),
        (b"\x00\x01\x02", "cluster.yaml:1: (file): found a control character (0x0000), expected printable text"),
        (b"cluster: [\n", "cluster.yaml:2: (file): found a YAML error (expected the node content, but found '<stream end>'), expected valid YAML"),
        (b"a: 1\n---\nb: 2\n", "cluster.yaml:2: (file): found a YAML error (but found another document), expected valid YAML"),
        (b"[" * 3000, "cluster.yaml:1: (file): found a YAML error (more than 20 levels), expected valid YAML"),
        (b"a: &a [*a]\n", "cluster.yaml:1: (file): found more than 20 levels or 10000 values behind aliases, expected plain YAML"),
        (b"cluster: !!python/name:os.system x\n", "cluster.yaml:1: cluster: found the tag tag:yaml.org,2002:python/name:os.system, expected plain YAML"),
        (b'cluster: "\\ud800"\n', "cluster.yaml:1: cluster: found characters that are no text, expected text"),
        (b'cluster: "a\\0b"\n', "cluster.yaml:1: cluster: found characters that are no text, expected text"),
        (b"x" * (2**20 + 1), "cluster.yaml:1: (file): found more than 1 MiB, expected a YAML file written by people"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_yaml_is_one_line(tmp_path, content, expected_line):
    assert problems(tmp_path, content) == [expected_line]


def test_a_few_lines_of_aliases_that_mean_millions_of_values_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (line,) = problems(tmp_path, "\n".join(lines))
    assert "values behind aliases" in line


def test_an_alias_that_is_used_with_measure_is_fine(tmp_path):
    config = config_of(tmp_path, "runs: {env: &e {A: x}}\nray: {env: *e}\n")
    assert config.runs.env == {"A": "x"}
    assert config.ray.env["A"] == "x"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("missing.yaml", "no such file"),
        ("dir", "a directory"),
        ("file/x.yaml", "an unreadable file"),
        ("x" * 300, "an unreadable"),
    ],
)
def test_a_path_that_cannot_be_read_is_one_line(tmp_path, name, found):
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / name)
    assert FIXED_FORM.fullmatch(str(error.value))
    assert f": (file): found {found}" in str(error.value)


def test_the_path_is_shown_as_people_would_type_it(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("cluster: X")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^mine\.yaml:1: cluster: found 'X'"):
        load_config("mine.yaml")


# -------------------------------------------------------------------------------------- any file whatsoever

_KEYS = st.sampled_from(
    [
        "cluster",
        "environment",
        "storage",
        "ray",
        "nodes",
        "slots",
        "runs",
        "doctor",
        "name",
        "python",
        "channels",
        "conda",
        "pip",
        "prefix",
        "type",
        "path",
        "server",
        "ports",
        "gcs",
        "workers",
        "dashboard",
        "enabled",
        "host",
        "auth",
        "env",
        "cpus",
        "memory",
        "gpus",
        "system_reserved",
        "per_node",
        "equal",
        "time",
        "waive",
        "code",
        "reason",
        "[key]",
        "local",
        "existing",
        "nfs",
    ]
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "1h", "2GiB", "local", "existing", "nfs", "token", "/x", "RT101"]),
)
_DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
_any_file = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_any_file
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbfcluster: x")
@example(b"%YAML 9.9\n---\na")
@example(b"a: !<tag:x> b")
@example(b"? !!null\n: 1")
@example(b'"\\UFFFFFFFF": 1')
def test_any_bytes_are_a_configuration_or_lines_in_the_fixed_form(tmp_path, content):
    problems(tmp_path, content)


@_any_file
@given(st.text(alphabet="abc:-[]{}&*!|>'\"%@#, \n\t0123456789.", max_size=80))
def test_any_text_that_looks_like_yaml_is_a_configuration_or_lines_in_the_fixed_form(tmp_path, content):
    problems(tmp_path, content)


@_any_file
@given(_DOCUMENTS)
def test_any_yaml_document_is_a_configuration_or_lines_in_the_fixed_form(tmp_path, document):
    problems(tmp_path, yaml.safe_dump(document, allow_unicode=False))


# -------------------------------------------------------------------------------------------- round trips

_sizes = st.integers(0, 2**50)
_variables = st.dictionaries(st.from_regex(r"[A-Z_]{1,6}", fullmatch=True), st.text(st.characters(codec="ascii", min_codepoint=32), max_size=8), max_size=3)  # fmt: skip
_storages = st.one_of(
    st.just({}),
    st.just({"type": "local"}),
    st.builds(lambda path: {"type": "existing", "path": f"/{path}"}, st.sampled_from(["a", "shared/x"])),
    st.just({"type": "nfs", "server": "n1", "options": ["ro"]}),
)
_configurations = st.fixed_dictionaries(
    {},
    optional={
        "cluster": st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True),
        "storage": _storages,
        "nodes": st.fixed_dictionaries(
            {},
            optional={
                "cpus": st.one_of(st.just("auto"), st.integers(65, 4096)),
                "memory": st.one_of(st.just("auto"), st.integers(2**45, 2**50)),
                "system_reserved": st.fixed_dictionaries(
                    {"memory": st.integers(0, 2**44), "cpus": st.integers(0, 64)}
                ),
            },
        ),
        "slots": st.fixed_dictionaries(
            {"per_node": st.integers(1, 1024), "equal": st.booleans(), "smt": st.booleans()}
        ),
        "runs": st.fixed_dictionaries(
            {
                "time": st.integers(1, 10**9).map(lambda ms: f"{ms}ms"),
                "grace": st.one_of(st.just("0s"), st.floats(0, 1e6)),
                "env": _variables,
            }
        ),
        "ray": st.fixed_dictionaries(
            {}, optional={"env": _variables, "auth": st.sampled_from(["token", "disabled"])}
        ),
        "doctor": st.fixed_dictionaries(
            {"waive": st.lists(st.just({"code": "RT101", "reason": "a lab"}), max_size=2)}
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(_configurations)
def test_what_config_show_prints_means_the_same_configuration(data):
    config = ClusterConfig.model_validate(data)
    assert ClusterConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.to_data()))) == config


@settings(max_examples=60, deadline=None)
@given(_configurations)
def test_what_config_show_prints_satisfies_the_schema(data):
    jsonschema.validate(ClusterConfig.model_validate(data).to_data(), json_schema())


def test_the_schema_shows_defaults_as_people_write_them():
    definitions = json_schema()["$defs"]
    assert definitions["NodesConfig"]["properties"]["cpus"]["default"] == "auto"
    assert definitions["ReservedConfig"]["properties"]["memory"]["default"] == "2GiB"
    assert definitions["RunsConfig"]["properties"]["time"]["default"] == "1h"


def test_the_schema_refuses_what_check_refuses():
    for data in (
        {"slot": 1},
        {"slots": {"per_node": 0}},
        {"storage": {"type": "nfz"}},
        {"ray": {"auth": "no"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, json_schema())


# ------------------------------------------------------------------------------------------------ merging


def base(**data: object) -> ClusterConfig:
    return ClusterConfig.model_validate(data)


@settings(max_examples=40, deadline=None)
@given(_configurations)
def test_merging_nothing_changes_nothing(data):
    config = ClusterConfig.model_validate(data)
    assert merged(config, {}) == config


def test_a_hosts_keys_are_merged_one_by_one():
    config = base(
        nodes={"cpus": 8, "system_reserved": {"cpus": 1, "memory": "4GiB"}}, ray={"env": {"A": "1"}}
    )
    host = merged(
        config, {"nodes": {"system_reserved": {"cpus": 2}}, "ray": {"env": {"B": 2}, "ports": {"gcs": 7000}}}
    )
    assert host.nodes.cpus == 8
    assert host.nodes.system_reserved.cpus == 2
    assert host.nodes.system_reserved.memory == 4 * 2**30
    assert host.ray.env == {"OMP_WAIT_POLICY": "passive", "A": "1", "B": "2"}
    assert host.ray.ports.gcs == 7000
    assert host.ray.ports.dashboard == 8265


def test_another_type_of_storage_replaces_all_of_it():
    config = base(storage={"type": "nfs", "server": "n1"})
    assert merged(config, {"storage": {"type": "existing", "path": "/x"}}).storage == ExistingStorage(
        path="/x"
    )
    assert merged(config, {"storage": {"mount": "/y"}}).storage == NfsStorage(server="n1", mount="/y")


@pytest.mark.parametrize("key", ["cluster", "environment", "doctor", "slotz"])
def test_what_has_to_be_the_same_everywhere_is_refused_for_one_host(key):
    with pytest.raises(ConfigError) as error:
        merged(base(), {key: {}}, file="inventory/hosts.yml", key="hosts.n1.raytools")
    assert str(error.value).startswith(
        f"inventory/hosts.yml:1: hosts.n1.raytools.{key}: found a key that has to be the same on all nodes, expected one of nodes,"
    )


@pytest.mark.parametrize("key", ["auth", "dashboard"])
def test_of_ray_only_variables_and_ports_may_differ(key):
    with pytest.raises(ConfigError, match=rf"raytools\.ray\.{key}: found a key that has to be the same"):
        merged(base(), {"ray": {key: {}}})


def test_a_wrong_value_of_a_host_names_the_inventory_and_the_host():
    with pytest.raises(ConfigError) as error:
        merged(
            base(),
            {"slots": {"per_node": "two"}},
            file="inventory/hosts.yml",
            key="hosts.n1.raytools",
            line=lambda _: 7,
        )
    assert str(error.value) == (
        "inventory/hosts.yml:7: hosts.n1.raytools.slots.per_node: found 'two', expected a whole number from 1 to 1024"
    )


def test_a_conflict_between_file_and_host_is_found_after_merging():
    with pytest.raises(ConfigError, match=r"raytools\.ray\.ports\.dashboard: found 8265, which is also gcs"):
        merged(base(), {"ray": {"ports": {"gcs": 8265}}})


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(_KEYS, _DOCUMENTS, max_size=3))
def test_any_override_is_a_configuration_or_lines_in_the_fixed_form(overrides):
    lines = []
    try:
        merged(base(), overrides)
    except ConfigError as error:
        lines = str(error).split("\n")
    assert all(FIXED_FORM.fullmatch(line) for line in lines)
