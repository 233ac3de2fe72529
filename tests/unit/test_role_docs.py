"""The pages of the roles are what the roles say, and a role whose files disagree is told."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "role_docs.py"

SPECS = {
    "main": {
        "short_description": "A drum is there",
        "options": {
            "drum_plan": {"type": "dict", "required": True, "description": "From the role C(plan)."},
            "drum_size": {
                "type": "str",
                "choices": ["small", "off"],
                "default": "small",
                "description": "a|b",
            },
        },
    }
}


@pytest.fixture(scope="module")
def role_docs() -> ModuleType:
    """The script; scripts/ is no package."""
    spec = importlib.util.spec_from_file_location("role_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["role_docs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    """A directory with one role in which all is right."""
    for name in ("meta", "defaults", "tasks"):
        (tmp_path / "drum" / name).mkdir(parents=True)
    (tmp_path / "drum" / "meta" / "main.yml").write_text("galaxy_info: {description: A drum on a node}\n")
    (tmp_path / "drum" / "defaults" / "main.yml").write_text("---\n# How loud.\ndrum_size: small\n")
    (tmp_path / "drum" / "tasks" / "main.yml").write_text("[]\n")
    write_specs(tmp_path, SPECS)
    return tmp_path


def write_specs(roles: Path, specs: object) -> None:
    (roles / "drum" / "meta" / "argument_specs.yml").write_text(yaml.safe_dump({"argument_specs": specs}))


def test_the_roles_of_this_checkout_agree_with_themselves_and_their_pages(
    role_docs: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert role_docs.main(["--check"]) == 0, capsys.readouterr().out


def test_a_page_has_purpose_variables_and_the_comments_of_the_defaults(
    role_docs: ModuleType, roles: Path
) -> None:
    assert role_docs.main([], roles) == 0
    page = (roles / "drum" / "README.md").read_text()
    assert "A drum on a node." in page
    assert "| `drum_plan` | dict | required | From the role `plan`. |" in page
    assert "| `drum_size` | str: small, off | `small` | a\\|b |" in page
    assert "# How loud.\ndrum_size: small\n```" in page


def test_a_page_that_is_out_of_date_is_shown_and_not_written(
    role_docs: ModuleType, roles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert role_docs.main([], roles) == 0
    assert role_docs.main(["--check"], roles) == 0
    page = roles / "drum" / "README.md"
    page.write_text(page.read_text().replace("A drum on a node.", "A drum."))
    capsys.readouterr()
    assert role_docs.main(["--check"], roles) == 1
    shown = capsys.readouterr().out
    assert "-A drum.\n+A drum on a node." in shown
    assert "scripts/role_docs.py" in shown
    assert "A drum.\n" in page.read_text()


@pytest.mark.parametrize(
    ("defaults", "told"),
    [
        ("drum_size: small\ndrum_loud: 1\n", "drum_loud of defaults/main.yml is not in"),
        ("drum_size: large\n", "drum_size has the default small, in defaults/main.yml large"),
        ("", "drum_size is neither required nor in defaults/main.yml"),
        ("drum_size: small\ndrum_plan: {}\n", "drum_plan is required and has a default"),
    ],
)
def test_a_default_that_is_not_specified_as_it_is_fails(
    role_docs: ModuleType, roles: Path, capsys: pytest.CaptureFixture[str], defaults: str, told: str
) -> None:
    (roles / "drum" / "defaults" / "main.yml").write_text(defaults)
    assert role_docs.main(["--check"], roles) == 1
    assert f"drum: {told}" in capsys.readouterr().out.replace("drum: main: ", "drum: ")


def test_an_entry_point_without_tasks_and_an_option_without_a_description_fail(
    role_docs: ModuleType, roles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = {"type": "str", "required": True}
    write_specs(roles, {**SPECS, "stop": {"short_description": "Ends", "options": {"drum_root": bare}}})
    assert role_docs.main(["--check"], roles) == 1
    shown = capsys.readouterr().out
    assert "entry point stop has no tasks/stop.yml" in shown
    assert "stop: drum_root has no description" in shown
