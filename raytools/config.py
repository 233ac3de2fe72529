"""cluster.yaml as typed, frozen models: the one source of truth, every key with a default.

Every mistake becomes one line `FILE:LINE: KEY: found X, expected Y`, all of them at once. What follows
from the values on real machines is decided in plan.py, not here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from raytools import config_values as kinds
from raytools.errors import ConfigError
from raytools.yaml_source import (
    KeyPath,
    Problem,
    SourceError,
    describe,
    key_text,
    read_source,
)

# what a host's `raytools:` variable may set; all else has to be the same on every node
MERGEABLE = ("nodes", "slots", "runs", "storage", "ray.env", "ray.ports")
FEWEST_WORKER_PORTS = 50

Flag = Annotated[bool, kinds.flag()]
Name = Annotated[
    str, kinds.text(r"[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?", "a name such as demo (a-z, 0-9 and -, at most 32)")
]
Requirement = Annotated[
    str, kinds.text(r"[A-Za-z0-9][^\n\r]*", "a package such as optuna or scikit-learn==1.7.2")
]
AbsolutePath = Annotated[str, kinds.text(r"/[^\n\r]*", "an absolute path")]
HostText = Annotated[str, kinds.text(r"[A-Za-z0-9_.:-]+", "a host name or an address")]
VariableName = Annotated[str, kinds.text(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Variables: TypeAlias = dict[VariableName, Annotated[str, kinds.variable_value()]]
Port = Annotated[int, kinds.number(1, 65535)]
Count = Annotated[int, kinds.number(0, 4096)]


class Section(BaseModel):
    """A mapping of cluster.yaml: only known keys, and nobody changes it after loading."""

    # built once, as parts of ClusterConfig: building each for itself too would double the start-up time
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _a_section_left_out_or_without_keys_has_its_defaults(cls, value: Any) -> Any:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            return value
        mappings = [name for name, field in cls.model_fields.items() if field.default_factory is not None]
        return {**value, **{name: {} for name in mappings if value.get(name) is None}}


class EnvironmentConfig(Section):
    """What is installed on every node, or (`prefix`) which existing environment is used instead."""

    name: Name = "automl"
    python: Annotated[str, kinds.text(r"3\.\d{1,2}(?:\.\d{1,2})?", 'a version in quotes such as "3.11"')] = (
        "3.11"
    )
    channels: tuple[Annotated[str, kinds.text(r"\S+", "a channel's name, URL or path")], ...] = (
        "conda-forge",
    )
    fallback: Annotated[str, kinds.choice("local", "none")] = "local"
    conda: tuple[Requirement, ...] = ("libgomp",)
    pip: tuple[Requirement, ...] = (
        "ray[default,tune]==2.58.1",
        "autogluon.tabular[lightgbm,ray]==1.6.3",
        "optuna",
    )
    prefix: AbsolutePath | None = None


class LocalStorage(Section):
    """Results stay on the node that made them, under its root."""

    type: Annotated[str, kinds.choice("local")] = "local"


class ExistingStorage(Section):
    """A directory that all nodes already share."""

    type: Annotated[str, kinds.choice("existing")] = "existing"
    path: AbsolutePath


class NfsStorage(Section):
    """An NFS export that raytools makes on one node and mounts on all."""

    type: Annotated[str, kinds.choice("nfs")] = "nfs"
    server: HostText = "head"
    export: AbsolutePath = "/srv/raytools"
    mount: AbsolutePath = "/mnt/raytools"
    options: tuple[Annotated[str, kinds.text(r"[^\s,]+", "one mount option")], ...] = (
        "vers=4.2",
        "hard",
        "noatime",
    )


def _storage_type(value: Any) -> str | None:
    """Which kind of storage a mapping describes; None lets pydantic say that it describes none."""
    found = value.get("type", "local") if isinstance(value, Mapping) else getattr(value, "type", "local")
    return found if isinstance(found, str) and found in _STORAGE_TYPES else None


Storage: TypeAlias = Annotated[
    Annotated[LocalStorage, Tag("local")]
    | Annotated[ExistingStorage, Tag("existing")]
    | Annotated[NfsStorage, Tag("nfs")],
    Discriminator(_storage_type),
]


_STORAGE_TYPES: dict[str, type[Section]] = {
    "local": LocalStorage,
    "existing": ExistingStorage,
    "nfs": NfsStorage,
}


class PortsConfig(Section):
    """Every port Ray would otherwise choose at random, below the kernel's range for outgoing connections."""

    gcs: Port = 6379
    dashboard: Port = 8265
    client: Port = 10001
    node_manager: Port = 10101
    object_manager: Port = 10102
    runtime_env_agent: Port = 10103
    dashboard_agent_grpc: Port = 10104
    dashboard_agent_http: Port = 10105
    metrics_export: Port = 10106
    dashboard_metrics: Port = 10107
    autoscaler_metrics: Port = 10108
    workers: Annotated[tuple[int, int], kinds.port_range()] = (20000, 20999)

    def single(self) -> dict[str, int]:
        """All ports but the workers' range, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "workers"}


class DashboardConfig(Section):
    """Ray's dashboard on the head; it has no password, so it listens on the head alone by default."""

    enabled: Flag = True
    host: HostText = "127.0.0.1"


class RayConfig(Section):
    """How Ray is started, the same on every node."""

    ports: PortsConfig = Field(default_factory=PortsConfig)
    dashboard: DashboardConfig = Field(default_factory=DashboardConfig)
    auth: Annotated[str, kinds.choice("token", "disabled")] = "token"
    isolation: Flag = False
    log_to_driver: Flag = True
    env: Variables = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _idle_openmp_threads_sleep_unless_the_file_says_otherwise(cls, value: Any) -> Any:
        """Spinning ones cost a fit 5 to 15 times its time; setting another variable must not undo this."""
        if not isinstance(value, Mapping) or not isinstance(value.get("env", {}), Mapping | None):
            return value
        return {**value, "env": {"OMP_WAIT_POLICY": "passive", **(value.get("env") or {})}}


class ReservedConfig(Section):
    """What no run gets: the share of the system and of Ray's own processes."""

    cpus: Count = 0
    memory: Annotated[int, kinds.size()] = 2 * 2**30


class NodesConfig(Section):
    """What a node has to offer; `auto` (None) takes what its kernel lets it use."""

    cpus: Annotated[int | None, kinds.auto_or(kinds.number(1, 4096))] = None
    memory: Annotated[int | None, kinds.auto_or(kinds.size("512MiB"))] = None
    gpus: Annotated[int | None, kinds.auto_or(kinds.number(0, 64))] = None
    system_reserved: ReservedConfig = Field(default_factory=ReservedConfig)


class SlotsConfig(Section):
    """How a node is cut into exclusive shares."""

    per_node: Annotated[int, kinds.number(1, 1024)] = 1
    equal: Flag = True
    smt: Flag = True


class RunsConfig(Section):
    """What a run gets unless it asks for something else."""

    time: Annotated[float, kinds.duration(0.001)] = 3600.0
    grace: Annotated[float, kinds.duration()] = 0.0
    retries: Annotated[int, kinds.number(0, 100)] = 1
    env: Variables = Field(default_factory=dict)


class Waiver(Section):
    """A doctor's code that is accepted, and why."""

    code: Annotated[str, kinds.text(r"RT\d{3}", "a code such as RT202")]
    reason: Annotated[str, kinds.text(r"\s*\S[\s\S]*", "a reason in words")]


class DoctorConfig(Section):
    """What the doctor does not hold against this cluster."""

    waive: tuple[Waiver, ...] = ()


class ClusterConfig(Section):
    """The whole of cluster.yaml."""

    cluster: Name = "demo"
    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    storage: Storage = Field(default_factory=LocalStorage)
    ray: RayConfig = Field(default_factory=lambda: RayConfig.model_validate({}))
    nodes: NodesConfig = Field(default_factory=NodesConfig)
    slots: SlotsConfig = Field(default_factory=SlotsConfig)
    runs: RunsConfig = Field(default_factory=RunsConfig)
    doctor: DoctorConfig = Field(default_factory=DoctorConfig)

    def to_data(self) -> dict[str, Any]:
        """Plain data that could stand in cluster.yaml and means exactly this."""
        data = self.model_dump(mode="json")
        if data["environment"]["prefix"] is None:
            del data["environment"]["prefix"]
        return data


def json_schema() -> dict[str, Any]:
    """The JSON schema of cluster.yaml, with defaults as people write them (`auto`, `2GiB`, `1h`)."""
    schema = ClusterConfig.model_json_schema()
    sections = {section.__name__: section for section in Section.__subclasses__()}
    for name, described in schema["$defs"].items():
        if "required" not in described:
            for key, default in sections[name]().model_dump(mode="json").items():
                if "default" in described["properties"][key]:
                    described["properties"][key]["default"] = default
    for name in ("ExistingStorage", "NfsStorage"):  # without a type, storage is local
        described = schema["$defs"][name]
        described["required"] = ["type", *described.get("required", [])]
    return schema


# ----------------------------------------------------------------------------------- loading and merging


def load_config(path: Path | str) -> ClusterConfig:
    """Reads and checks cluster.yaml.

    Raises:
        ConfigError: its text has one line `FILE:LINE: KEY: found X, expected Y` per problem.
    """
    try:
        source = read_source(Path(path))
    except SourceError as error:
        raise _config_error(error.problems) from None
    return _validated(
        source.data,
        lambda where, found, expected: Problem(
            source.file, source.line(where), key_text(where), found, expected
        ),
        source.written,
    )


def merged(
    config: ClusterConfig,
    overrides: Mapping[str, Any],
    *,
    file: str = "inventory",
    key: str = "raytools",
    line: Callable[[KeyPath], int] = lambda _: 1,
) -> ClusterConfig:
    """The configuration of one host: its `raytools:` inventory variable over cluster.yaml, key by key.

    A list, and a storage of another type, replace what was there; mappings are merged.

    Args:
        config: what cluster.yaml says.
        overrides: what the inventory says for this host.
        file: the inventory, for messages.
        key: where in the inventory the variable is, for messages.
        line: from a path within `overrides` to its line in the inventory.

    Raises:
        ConfigError: a key that must be the same on all nodes, or a value that is wrong.
    """

    def problem(where: KeyPath, found: str, expected: str) -> Problem:
        name = f"{key}.{key_text(where)}" if where else key
        return Problem(file, line(where), name, found, expected)

    problems = [
        problem(where, "a key that has to be the same on all nodes", f"one of {', '.join(MERGEABLE)}")
        for where in _not_mergeable(overrides)
    ]
    if problems:
        raise _config_error(problems)
    return _validated(_overlaid(config.to_data(), overrides), problem, {})


def _not_mergeable(overrides: Mapping[str, Any]) -> Iterator[KeyPath]:
    for name, value in overrides.items():
        if name == "ray" and isinstance(value, Mapping):
            yield from (("ray", str(inner)) for inner in value if f"ray.{inner}" not in MERGEABLE)
        elif name not in MERGEABLE:
            yield (str(name),)


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping) and not _replaces(key, under, value):
            result[key] = _overlaid(under, value)
        else:
            result[key] = value
    return result


def _replaces(key: str, under: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Another type of storage has other keys, so nothing of the old one stays."""
    return key == "storage" and value.get("type", under.get("type")) != under.get("type")


# ------------------------------------------------------------------------------------- problems in words

MakeProblem = Callable[[KeyPath, str, str], Problem]


def _validated(data: Any, problem: MakeProblem, written: Mapping[KeyPath, str]) -> ClusterConfig:
    try:
        config = ClusterConfig.model_validate(data)
    except ValidationError as error:
        details: Any = error.errors(include_url=False)
        problems = [_problem_of(detail, problem, written) for detail in details]
        raise _config_error(problems) from None
    conflicts = [problem(*conflict) for conflict in _conflicts(config)]
    if conflicts:
        raise _config_error(conflicts)
    return config


def _config_error(problems: Iterable[Problem]) -> ConfigError:
    in_order = sorted(problems, key=lambda problem: problem.line)
    return ConfigError("\n".join(map(str, in_order)))


def _problem_of(detail: Mapping[str, Any], problem: MakeProblem, written: Mapping[KeyPath, str]) -> Problem:
    """One of pydantic's errors in the project's words."""
    kind, location, value = detail["type"], detail["loc"], detail["input"]
    where = _path_in_file(location)
    if kind == "extra_forbidden":
        unknown = str(location[-1])
        expected = _known_key(unknown, _section_at(location[:-1]))
        return problem((*_path_in_file(location[:-1]), unknown), "an unknown key", expected)
    if kind == "missing":
        field = _section_at(location[:-1]).model_fields[location[-1]]
        return problem(
            where, "nothing", next(v.expected for v in field.metadata if isinstance(v, kinds.Value))
        )
    if kind == "union_tag_not_found":
        where = (*where, "type")
        return problem(where, describe(value.get("type"), written.get(where)), "local, existing or nfs")
    if location[-1:] == ("[key]",):
        return problem(where, f"the name {describe(value)}", detail["ctx"]["expected"])
    expected = detail["ctx"]["expected"] if kind == "expected" else _EXPECTED_SHAPE[kind]
    return problem(where, describe(value, written.get(where)), expected)


_EXPECTED_SHAPE = {"model_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list"}


def _path_in_file(location: tuple[str | int, ...]) -> KeyPath:
    """Pydantic's location without what it adds: the kind of storage, and its mark on a mapping's key."""
    if location[:1] == ("storage",):
        location = ("storage", *location[2:])
    return location[:-1] if location[-1:] == ("[key]",) else location


def _section_at(location: tuple[str | int, ...]) -> type[Section]:
    section: Any = ClusterConfig
    for part in location:
        if part in _STORAGE_TYPES:
            section = _STORAGE_TYPES[str(part)]
        elif isinstance(part, str) and part != "storage":
            annotation = section.model_fields[part].annotation
            section = (get_args(annotation) or (annotation,))[0]
    found: type[Section] = section
    return found


def _known_key(unknown: str, section: type[Section]) -> str:
    known = list(section.model_fields)
    near = difflib.get_close_matches(unknown, known, n=1)
    return f"one of {', '.join(known)}" + (f" (did you mean {near[0]}?)" if near else "")


def _conflicts(config: ClusterConfig) -> Iterator[tuple[KeyPath, str, str]]:
    """Values that are right each for itself and wrong together: (key, found, expected)."""
    first, last = config.ray.ports.workers
    taken: dict[int, str] = {}
    for name, port in config.ray.ports.single().items():
        if port in taken:
            yield ("ray", "ports", name), f"{port}, which is also {taken[port]}", "a port of its own"
        elif first <= port <= last:
            yield (
                ("ray", "ports", name),
                f"{port}, which is among the workers' ports",
                f"one outside {first}-{last}",
            )
        taken.setdefault(port, name)
    if last - first + 1 < FEWEST_WORKER_PORTS:
        yield ("ray", "ports", "workers"), f"{last - first + 1} ports", f"at least {FEWEST_WORKER_PORTS}"
    storage = config.storage
    if isinstance(storage, NfsStorage) and storage.export == storage.mount:
        yield ("storage", "mount"), f"{storage.mount}, which is also the export", "a directory of its own"
    nodes, reserved = config.nodes, config.nodes.system_reserved
    if nodes.cpus is not None and reserved.cpus >= nodes.cpus:
        where: KeyPath = ("nodes", "system_reserved", "cpus")
        yield where, f"{reserved.cpus} of {nodes.cpus} CPUs reserved", f"fewer than {nodes.cpus}"
    if nodes.memory is not None and reserved.memory >= nodes.memory:
        where = ("nodes", "system_reserved", "memory")
        total = kinds.write_size(nodes.memory)
        yield where, f"{kinds.write_size(reserved.memory)} of {total} reserved", f"less than {total}"
