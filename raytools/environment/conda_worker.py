"""Everything that is done by py-rattler, in a process of its own: request on stdin, answer on stdout.

A process of its own because py-rattler 0.28 leaves threads of its runtime behind that may touch the
interpreter while it ends (PyO3/pyo3-async-runtimes issue 40): one in four processes that had installed
something died of SIGSEGV after the work was done. This one leaves by `os._exit` and never comes there.

Run by `raytools.environment.conda`; errors come back as `{"error": TYPE, "message": TEXT}`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import rattler
from rattler.exceptions import GatewayError, InstallerError, SolverError
from rattler.index import index_fs
from rattler.package import BuildString

_COPY_FILES = "allow-hard-links = false\nallow-ref-links = false"


async def solve(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of the packages that satisfy `specs`, from `channels` in their order."""
    gateway = rattler.Gateway(cache_dir=Path(request["cache"]) / "repodata", client=_client())
    records = await rattler.solve(
        [rattler.Channel(channel) for channel in request["channels"]],
        request["specs"],
        gateway=gateway,
        virtual_packages=rattler.VirtualPackage.detect(),
    )
    return [json.loads(record.to_json()) for record in records]


async def install(request: dict[str, Any]) -> None:
    """Puts the locked packages at `prefix`: files copied, conda's metadata written."""
    await rattler.install(
        [_record(entry) for entry in request["packages"]],
        request["prefix"],
        cache_dir=Path(request["cache"]) / "packages",
        installed_packages=[],
        requested_specs=[rattler.MatchSpec(spec)._match_spec for spec in request["specs"]],
        show_progress=False,
        client=_client(),
        config=rattler.Config.from_toml(_COPY_FILES),
    )


async def index(request: dict[str, Any]) -> None:
    """Writes the channel's repodata."""
    await index_fs(Path(request["directory"]), write_zst=False, write_shards=False, force=True)


def _client() -> rattler.Client:
    return rattler.Client.default_client(user_agent="raytools")


def _record(entry: dict[str, Any]) -> rattler.RepoDataRecord:
    package = rattler.PackageRecord(
        entry["name"],
        entry["version"],
        BuildString(entry["build"]),
        entry["build_number"],
        entry["subdir"],
        noarch=entry.get("noarch"),
        depends=entry.get("depends", []),
        constrains=entry.get("constrains", []),
        sha256=bytes.fromhex(entry["sha256"]),
        md5=bytes.fromhex(entry["md5"]) if entry.get("md5") else None,
        size=entry.get("size"),
        license=entry.get("license"),
        python_site_packages_path=entry.get("python_site_packages_path"),
    )
    if entry.get("timestamp"):
        package.timestamp = datetime.fromtimestamp(entry["timestamp"] / 1000, tz=timezone.utc)
    return rattler.RepoDataRecord(package, entry["url"].rsplit("/", 1)[1], entry["url"], entry["channel"])


_ACTIONS: dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]] = {
    "solve": solve,
    "install": install,
    "index": index,
}


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    try:
        answer = {"result": asyncio.run(_ACTIONS[request["action"]](request))}
    except (GatewayError, InstallerError, SolverError, OSError, ValueError) as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    json.dump(answer, sys.stdout)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
