"""What a node exports by NFS, as the kernel was told."""

from __future__ import annotations

from pathlib import Path

from raytools.node.inspect import export_facts

ETAB = (
    "/srv/raytools\t192.0.2.11(rw,sync,wdelay,root_squash)\n"
    "/srv/raytools\t*.lab.example(ro,sync,no_root_squash)\n"
    "/home\t[2001:db8::1](rw,root_squash)\n"
)


def test_each_client_of_each_directory_is_an_export_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "etab").write_text(ETAB)
    found = export_facts(str(tmp_path / "etab"))
    assert [(one["path"], one["client"]) for one in found] == [
        ("/srv/raytools", "192.0.2.11"),
        ("/srv/raytools", "*.lab.example"),
        ("/home", "[2001:db8::1]"),
    ]
    assert "no_root_squash" in found[1]["options"]
    assert "root_squash" in found[0]["options"]


def test_a_node_that_serves_nothing_exports_nothing(tmp_path: Path) -> None:
    assert export_facts(str(tmp_path / "etab")) == []
