"""What an environment is asked to be: cluster.yaml's `environment` section, plain and hashable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOCAL_CHANNEL = "local"


@dataclass(frozen=True)
class EnvironmentSpec:
    """What is declared. With `prefix` (an existing environment) nothing else but the name counts."""

    name: str
    python: str
    channels: tuple[str, ...]
    fallback: str | None
    conda: tuple[str, ...]
    pip: tuple[str, ...]
    prefix: Path | None = None

    @classmethod
    def from_config(cls, config: Any) -> EnvironmentSpec:
        """From a ClusterConfig (or its `environment` section)."""
        section = getattr(config, "environment", config)
        prefix = section.prefix
        return cls(
            name=section.name,
            python=section.python,
            channels=tuple(section.channels),
            fallback=section.fallback,
            conda=tuple(section.conda),
            pip=tuple(section.pip),
            prefix=Path(prefix) if prefix else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The keys that a lock answers to; `prefix` never has a lock."""
        fields = asdict(self)
        del fields["prefix"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @property
    def digest(self) -> str:
        """sha256 of what is declared, whatever the file looks like."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def describe_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is different between two declarations, one sentence per key."""
    sentences = []
    for key in after:
        old, new = before.get(key), after[key]
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and set(old) != set(new):
            parts = [f"added {item!r}" for item in new if item not in old]
            parts += [f"removed {item!r}" for item in old if item not in new]
            sentences.append(f"environment.{key}: {', '.join(parts)}")
        else:
            sentences.append(f"environment.{key}: {old!r} became {new!r}")
    return sentences
