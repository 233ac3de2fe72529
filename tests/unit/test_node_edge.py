"""Node code runs on a bare Python: the edge between raytools.node and everything else is guarded here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

import raytools

ROOT = Path(raytools.__file__).resolve().parents[1]
# the workloads run on the nodes, too; their driver on the controller does not
FOLDERS = ("node", "workloads")
MODULES = sorted(
    f"raytools.{folder}.{path.stem}"
    for folder in FOLDERS
    for path in (ROOT / "raytools" / folder).glob("*.py")
    if path.stem not in ("__main__", "bootstrap")  # bootstrap is sent as text, never imported
)


def import_bare(statement: str) -> subprocess.CompletedProcess[str]:
    """Runs it with no site-packages but psutil."""
    psutil_parent = Path(psutil.__file__).parent
    bootstrap = f"""
import sys, importlib.util
sys.path.insert(0, {str(ROOT)!r})
spec = importlib.util.spec_from_file_location("psutil", {str(psutil_parent / "__init__.py")!r},
                                              submodule_search_locations=[{str(psutil_parent)!r}])
sys.modules["psutil"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
{statement}
"""
    return subprocess.run(
        [sys.executable, "-S", "-I", "-c", bootstrap], capture_output=True, text=True, check=False, timeout=30
    )


def test_node_code_imports_with_the_standard_library_and_psutil_alone() -> None:
    result = import_bare(f"""
import importlib
for name in {MODULES!r}:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(name, repr(error))
""")
    assert (result.stdout, result.stderr) == ("", "")


def test_importing_raytools_imports_none_of_the_heavy_packages() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import sys, raytools; print(*sys.modules)"],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert not {"ray", "ansible", "fabric", "pydantic", "typer"} & set(result.stdout.split())
