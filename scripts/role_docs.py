"""`scripts/role_docs.py [--check]`: each role's README.md, from what Ansible itself reads of the role.

Purpose from meta/main.yml, entry points and variables from meta/argument_specs.yml, defaults and the comments
above them from defaults/main.yml. Refuses a role whose files disagree. `--check` writes nothing and shows
a diff.
Standard library and PyYAML only.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parent.parent / "playbooks" / "roles"
HEADER = "<!-- Written by scripts/role_docs.py from meta/ and defaults/; changes made here are lost. -->"
_MARKUP = re.compile(r"\b[A-Z]\(([^()]*)\)")  # Ansible's C(code), V(value), O(option), …


@dataclass(frozen=True)
class Role:
    """What a role says of itself."""

    name: str
    purpose: str
    entry_points: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    defaults_text: str
    task_files: frozenset[str]


def read_role(directory: Path) -> Role:
    """Reads meta, defaults and the names of the task files."""
    defaults_text = _text(directory / "defaults" / "main.yml")
    meta = yaml.safe_load(_text(directory / "meta" / "main.yml")) or {}
    specs = yaml.safe_load(_text(directory / "meta" / "argument_specs.yml")) or {}
    return Role(
        name=directory.name,
        purpose=str((meta.get("galaxy_info") or {}).get("description") or ""),
        entry_points=specs.get("argument_specs") or {},
        defaults=yaml.safe_load(defaults_text) or {},
        defaults_text=defaults_text,
        task_files=frozenset(path.stem for path in (directory / "tasks").glob("*.yml")),
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


# --- what does not agree ---


def problems(role: Role) -> list[str]:
    """Where meta, defaults and tasks contradict each other: a sentence each."""
    found = []
    if not role.purpose:
        found.append("meta/main.yml has no galaxy_info.description")
    if "main" not in role.entry_points:
        found.append("meta/argument_specs.yml has no entry point main")
    for name, entry in role.entry_points.items():
        if name not in role.task_files:
            found.append(f"entry point {name} has no tasks/{name}.yml")
        if not entry.get("short_description"):
            found.append(f"entry point {name} has no short_description")
        for variable, option in _options(entry).items():
            found += [f"{name}: {variable} {text}" for text in _option_problems(role, variable, option)]
    listed = {variable for entry in role.entry_points.values() for variable in _options(entry)}
    found += [
        f"{variable} of defaults/main.yml is not in meta/argument_specs.yml"
        for variable in role.defaults
        if variable not in listed
    ]
    return [f"{role.name}: {text}" for text in found]


def _option_problems(role: Role, variable: str, option: Mapping[str, Any]) -> list[str]:
    found = []
    if not variable.startswith(f"{role.name}_"):
        found.append(f"does not begin with {role.name}_")
    if not option.get("type"):
        found.append("has no type")
    if not option.get("description"):
        found.append("has no description")
    in_defaults = variable in role.defaults
    if option.get("required"):
        if in_defaults:
            found.append("is required and has a default in defaults/main.yml")
    elif not in_defaults:
        found.append(
            "is neither required nor in defaults/main.yml: Ansible sets no default from a specification"
        )
    elif "default" not in option or option["default"] != role.defaults[variable]:
        shown = _value(option["default"]) if "default" in option else "none"
        found.append(f"has the default {shown}, in defaults/main.yml {_value(role.defaults[variable])}")
    return found


def _options(entry: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return entry.get("options") or {}


# --- the page ---


def page(role: Role) -> str:
    """The README of a role. Pure."""
    lines = [f"# {role.name}", "", HEADER, "", _sentence(role.purpose), ""]
    for name, entry in role.entry_points.items():
        lines += _entry_point(name, entry)
    if role.defaults:
        lines += [
            "## Defaults",
            "",
            "```yaml",
            *role.defaults_text.strip().removeprefix("---").strip().splitlines(),
        ]
        lines += ["```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _entry_point(name: str, entry: Mapping[str, Any]) -> list[str]:
    lines = [f"## Entry point `{name}`", "", _sentence(_plain(entry.get("short_description"))), ""]
    if description := _plain(entry.get("description")):
        lines += [description, ""]
    if options := _options(entry):
        lines += ["| variable | type | default | what it is |", "|---|---|---|---|"]
        lines += [_row(variable, option) for variable, option in options.items()]
    else:
        lines.append("No variables.")
    return [*lines, ""]


def _row(variable: str, option: Mapping[str, Any]) -> str:
    kind = str(option.get("type", "str"))
    if option.get("elements"):
        kind += f" of {option['elements']}"
    if option.get("choices"):
        kind += ": " + ", ".join(_value(choice) for choice in option["choices"])
    default = "required" if option.get("required") else f"`{_value(option.get('default'))}`"
    cells = [f"`{variable}`", kind, default, _plain(option.get("description"))]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str | Sequence[str] | None) -> str:
    """A description, which may be a list of paragraphs, on one line and with Markdown's code marks."""
    parts = [text] if isinstance(text, str) else list(text or ())
    return _MARKUP.sub(r"`\1`", " ".join(" ".join(str(part).split()) for part in parts)).replace("<", "&lt;")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


# --- the command ---


def main(argv: Sequence[str] | None = None, roles: Path = ROLES) -> int:
    """Writes what is out of date, or with `--check` shows it; 1 if something disagrees or is out of date."""
    parser = argparse.ArgumentParser(prog="scripts/role_docs.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; show a diff")
    check = parser.parse_args(argv).check
    wrong: list[str] = []
    out_of_date = 0
    for directory in sorted(path.parent.parent for path in roles.glob("*/meta/main.yml")):
        role = read_role(directory)
        wrong += problems(role)
        path = directory / "README.md"
        before, after = _text(path), page(role)
        if before == after:
            continue
        out_of_date += 1
        if check:
            _show_difference(path, before, after)
        else:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path}")
    for text in wrong:
        print(text)
    if check and out_of_date:
        print(f"{out_of_date} out of date. Write them: python scripts/role_docs.py")
    return 1 if wrong or (check and out_of_date) else 0


def _show_difference(path: Path, before: str, after: str) -> None:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), str(path), "what the role says", lineterm=""
    )
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
