"""The command line as people and scripts see it: output, exit codes, and how little is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raytools import cli
from raytools.cli import main
from raytools.errors import ConfigError, RaytoolsError, RefusedError
from raytools.project import find_project

ROOT = Path(__file__).parents[2]
FACTS = {
    "localhost": {
        "cpu": {
            "usable": 4,
            "allowed": [0, 1, 2, 3],
            "threads": [{"cpu": cpu, "core": cpu, "socket": 0, "numa": 0} for cpu in range(4)],
        },
        "memory": {"usable_bytes": 16 * 2**30, "shm_total_bytes": 8 * 2**30},
        "gpus": [],
        "network": {"primary_address": "192.0.2.9"},
    }
}


def raytools(*arguments: str, **more) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "raytools", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **more)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project directory that is the working directory."""
    (tmp_path / "inventory").mkdir()
    (tmp_path / "cluster.yaml").write_text("cluster: mine\n")
    (tmp_path / "inventory" / "hosts.yml").write_text((ROOT / "inventory" / "hosts.yml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANSIBLE_INVENTORY", raising=False)
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    return tmp_path


# --------------------------------------------------------------------------------------------------- root


def test_help_lists_every_command_with_examples(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("config", "plan", "facts", "env", "doctor", "smoke", "run", "slots", "grant"):
        assert f"\n  {name} " in text
    assert "Examples:" in text
    assert "raytools doctor" in text


def test_no_command_is_a_usage_error_that_shows_the_help(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("raytools ")


def test_an_unknown_command_comes_with_the_nearest_one(capsys):
    assert main(["docter"]) == 2
    assert "There is no command 'docter'. Did you mean 'doctor'?" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error(capsys):
    assert main(["config", "check", "--colour"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_a_command_that_is_not_there_breaks_no_other(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "doctor", ("raytools.cli.nowhere", "Not there."))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("raytools: this raytools")
    assert main(["--help"]) == 0


def _fail_with(monkeypatch, error):
    def check(*_):
        raise error

    monkeypatch.setattr("raytools.cli.config.load_config", check)


def test_an_error_is_one_line_on_stderr_and_its_own_exit_code(monkeypatch, capsys):
    _fail_with(monkeypatch, RefusedError("slot 0 is busy", expected="a free slot", fix="Wait: --wait 10m"))
    assert main(["config", "check"]) == 125
    printed = capsys.readouterr()
    assert printed.err == "raytools: slot 0 is busy, expected a free slot. Wait: --wait 10m\n"
    assert printed.out == ""


def test_configuration_errors_are_printed_as_they_are(monkeypatch, capsys):
    _fail_with(monkeypatch, ConfigError("cluster.yaml:1: cluster: found 5, expected a name"))
    assert main(["config", "check"]) == 2
    assert capsys.readouterr().err == "cluster.yaml:1: cluster: found 5, expected a name\n"


def test_ctrl_c_is_130(monkeypatch):
    _fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["config", "check"]) == 130


def test_an_error_of_our_own_making_is_not_hidden(monkeypatch):
    _fail_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["config", "check"])
    assert not issubclass(ZeroDivisionError, RaytoolsError)


def test_a_reader_that_leaves_early_causes_no_traceback():
    program = f"{sys.executable} -m raytools config schema | head -c 1"
    done = subprocess.run(
        ["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "{"
    assert done.stderr == ""


def test_a_terminal_that_cannot_show_a_character_causes_no_traceback(project):
    (project / "cluster.yaml").write_text("doctor: {waive: [{code: RT101, reason: größer}]}\n")
    done = raytools("config", "show", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "reason: gr" in done.stdout


# ------------------------------------------------------------------------------------- what start-up costs


def imported_by(*arguments: str) -> set[str]:
    program = (
        "import sys; sys.argv[1:] = sys.argv[1:]; from raytools.cli import main; main(); "
        "print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return set(done.stderr.split())


def test_help_imports_no_command_and_nothing_heavy():
    imported = imported_by("--help")
    assert not {"rich", "pydantic", "yaml", "ansible", "fabric", "ray", "raytools.config"} & imported
    assert not any(name.startswith("raytools.cli.") and name != "raytools.cli.options" for name in imported)


def test_checking_a_configuration_imports_nothing_it_does_not_need():
    imported = imported_by("config", "check")
    assert "raytools.config" in imported
    heavy = {
        "rich",
        "ansible",
        "fabric",
        "ray",
        "jinja2",
        "raytools.inventory",
        "raytools.transport",
    }
    assert not heavy & imported


# ------------------------------------------------------------------------------------------------- config


def test_check_says_in_one_line_what_the_file_describes(project, capsys):
    assert main(["config", "check"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("cluster.yaml: ok: cluster mine, environment automl (Python 3.11, ")
    assert printed.out.count("\n") == 1
    assert printed.err == ""


@pytest.mark.parametrize("how", [["other.yaml"], ["-c", "other.yaml"], ["--config", "other.yaml"]])
def test_check_takes_the_file_as_an_argument_or_an_option(project, capsys, how):
    (project / "other.yaml").write_text("slots: {per_node: two}\n")
    assert main(["config", "check", *how]) == 2
    printed = capsys.readouterr()
    assert (
        printed.err == "other.yaml:1: slots.per_node: found 'two', expected a whole number from 1 to 1024\n"
    )
    assert printed.out == ""


def test_check_takes_one_file_not_two(project, capsys):
    assert main(["config", "check", "a.yaml", "-c", "b.yaml"]) == 2
    assert "found both FILE and -c" in capsys.readouterr().err


def test_a_missing_file_is_exit_code_2_in_the_fixed_form():
    done = raytools("config", "check", "/nowhere/cluster.yaml")
    assert done.returncode == 2
    assert done.stderr == "/nowhere/cluster.yaml:1: (file): found no such file, expected a YAML file\n"


def test_show_prints_what_can_be_written_to_cluster_yaml(project, capsys):
    (project / "cluster.yaml").write_text("nodes: {memory: 20GiB}\nruns: {time: 90s}\n")
    assert main(["config", "show"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["nodes"]["memory"] == "20GiB"
    (project / "cluster.yaml").write_text(shown)
    assert main(["config", "show"]) == 0
    assert capsys.readouterr().out == shown


def test_show_prints_json_alone(project, capsys):
    assert main(["config", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cluster"] == "mine"


def test_schema_prints_a_json_schema(capsys):
    assert main(["config", "schema"]) == 0
    assert "environment" in json.loads(capsys.readouterr().out)["properties"]


# --------------------------------------------------------------------------------------------------- plan


def test_plan_prints_node_json_of_every_node(project, capsys):
    (project / "facts.json").write_text(json.dumps(FACTS))
    assert main(["plan", "--json", "--facts", "facts.json"]) == 0
    printed = capsys.readouterr()
    plan = json.loads(printed.out)
    assert plan["schema"] == "raytools.plan/1"
    assert plan["nodes"]["localhost"]["schema"] == "raytools.node/1"
    assert plan["nodes"]["localhost"]["root"] == str(project / ".raytools")
    assert plan["nodes"]["localhost"]["environment"] is None
    assert any("not locked yet" in warning for warning in plan["warnings"])
    assert "not locked yet" in printed.err


def test_plan_prints_a_table_for_people(project, capsys):
    (project / "facts.json").write_text(json.dumps({"nodes": FACTS}))
    (project / "cluster.yaml").write_text("slots: {per_node: 2}\nenvironment: {prefix: /conda/envs/mine}\n")
    assert main(["plan", "--facts", "facts.json"]) == 0
    text = capsys.readouterr().out
    assert "localhost (head)" in text
    assert "2: 0-1" in text
    assert "2: 2-3" in text
    assert "Ray at 192.0.2.9:6379, environment /conda/envs/mine" in text


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"localhost": 5}', "[" * 100_000])
def test_facts_that_are_none_are_one_line(project, capsys, content):
    if content is not None:
        (project / "facts.json").write_text(content)
    assert main(["plan", "--facts", "facts.json"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("raytools: facts.json: ")
    assert error.count("\n") == 1


def test_a_plan_that_does_not_fit_is_exit_code_2_with_the_arithmetic(project, capsys):
    (project / "facts.json").write_text(json.dumps(FACTS))
    (project / "cluster.yaml").write_text("nodes: {cpus: 8}\n")
    assert main(["plan", "--facts", "facts.json"]) == 2
    assert (
        "nodes.cpus declares 8 CPUs, its kernel lets it use 4 (8 - 4 = 4 too many)" in capsys.readouterr().err
    )


def test_an_override_in_the_inventory_changes_the_plan(project, capsys):
    (project / "facts.json").write_text(json.dumps(FACTS))
    path = project / "inventory" / "hosts.yml"
    path.write_text(
        path.read_text().replace("raytools_root:", "raytools: {slots: {per_node: 2}}\n      raytools_root:")
    )
    assert main(["plan", "--json", "--facts", "facts.json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["nodes"]["localhost"]["slots"]) == 2


def test_plan_asks_this_machine_for_its_facts(project, capsys):
    (project / "cluster.yaml").write_text("nodes: {system_reserved: {memory: 256MiB}}\n")
    assert main(["plan", "--json"]) == 0
    node = json.loads(capsys.readouterr().out)["nodes"]["localhost"]
    usable = len(os.sched_getaffinity(0))
    assert 1 <= node["physical"]["cpus"] <= usable
    assert set(node["slots"][0]["cpus"]) <= os.sched_getaffinity(0)


# ------------------------------------------------------------------------------------------------ project


def test_the_project_is_found_from_below(project):
    (project / "a" / "b").mkdir(parents=True)
    os.chdir(project / "a" / "b")
    found = find_project()
    assert found.config_path == project / "cluster.yaml"
    assert found.inventory_path == project / "inventory" / "hosts.yml"
    assert found.state_dir == project / ".raytools"


def test_the_inventory_is_the_one_ansible_would_take(project, monkeypatch):
    (project / "ansible.cfg").write_text("[defaults]\ninventory = lab/hosts.yml\n")
    assert find_project().inventory_path == project / "lab" / "hosts.yml"
    monkeypatch.setenv("ANSIBLE_INVENTORY", "from-environment.yml")
    assert find_project().inventory_path == project / "from-environment.yml"
    assert find_project(inventory="named.yml").inventory_path == project / "named.yml"


def test_a_broken_ansible_cfg_does_not_break_commands_that_need_no_inventory(project):
    (project / "ansible.cfg").write_bytes(b"inventory = \xff\n")
    assert find_project().inventory_path == project / "inventory" / "hosts.yml"


@pytest.mark.parametrize("content", ["cluster: mine\n", "slots: {per_node: none}\n"])
def test_config_check_says_the_same_with_and_without_its_quick_way(tmp_path: Path, content: str) -> None:
    (tmp_path / "cluster.yaml").write_text(content)
    plain, with_option = (
        subprocess.run(
            [sys.executable, "-m", "raytools", "config", "check", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )
        for arguments in (["cluster.yaml"], ["-c", "cluster.yaml"])
    )  # fmt: skip
    assert (plain.returncode, plain.stdout, plain.stderr) == (
        *(with_option.returncode, with_option.stdout, with_option.stderr),
    )
    assert plain.stdout + plain.stderr != ""


def test_a_reader_that_left_early_causes_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("cluster: mine\n")
    command = f"PYTHONUNBUFFERED=1 {sys.executable} -m raytools config check cluster.yaml"
    done = subprocess.run(
        ["bash", "-c", f"exec 3> >(exec true); sleep 0.2; {command} >&3"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
