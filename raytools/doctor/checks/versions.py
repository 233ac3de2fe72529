"""RT004: the versions that are declared, or locked, can work together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raytools.doctor.model import Finding, Gathered, Skipped

_LOCK_AGAIN = "raytools env lock"


@dataclass(frozen=True)
class _Release:
    """What a release of AutoGluon says of itself: its Python, and the Ray that its extra `ray` asks for."""

    python: str
    ray: str


# From the metadata of autogluon.core on the package index. A solver sees the range for Ray only where the
# extra `ray` is asked for; AutoGluon itself compares again when it first needs Ray, in the middle of a fit.
AUTOGLUON: Mapping[str, _Release] = {
    "1.1": _Release(">=3.8,<3.12", ">=2.10.0,<2.11"),
    "1.2": _Release(">=3.9,<3.13", ">=2.10.0,<2.40"),
    "1.3": _Release(">=3.9,<3.13", ">=2.10.0,<2.45"),
    "1.4": _Release(">=3.9,<3.13", ">=2.10.0,<2.45"),
    "1.5": _Release(">=3.10,<3.14", ">=2.43.0,<2.53"),
    "1.6": _Release(">=3.10,<3.14", ">=2.55.0,<2.59"),
}
# Requires-Python of Ray; what is not listed is newer than this table
RAY_PYTHON = (("2.10", ">=3.8,<3.12"), ("2.35", ">=3.9,<3.13"), ("2.55", ">=3.10"))


def fit_each_other(cluster: Gathered) -> Iterator[Finding]:
    """RT004: Ray × AutoGluon × Python, as far as versions are pinned or locked."""
    from packaging.specifiers import SpecifierSet

    declared = cluster.config.environment
    if declared.prefix is not None:
        raise Skipped("an existing environment is used: its versions are its maker's")
    locked = cluster.lock.packages if cluster.lock and not cluster.lock.misfits else {}
    pinned = {**locked, **pinned_versions(declared.pip)}
    ray, autogluon, python = pinned.get("ray"), _autogluon(pinned), declared.python
    release = AUTOGLUON.get(".".join(autogluon.split(".")[:2])) if autogluon else None
    if release and ray and not SpecifierSet(release.ray).contains(ray, prereleases=True):
        message = (
            f"autogluon {autogluon} works with ray{release.ray}, ray {ray} is declared: a fit that needs Ray "
            "refuses it"
        )
        fix = f"Pin ray{release.ray} in environment.pip, or another AutoGluon; then: {_LOCK_AGAIN}"
        values = {"declared": f"ray=={ray}", "physical": release.ray}
        yield Finding("RT004", "error", None, message, fix, **values)
    if release and not SpecifierSet(release.python).contains(f"{python}.0"):
        message = f"autogluon {autogluon} needs Python {release.python}, {python} is declared"
        yield Finding("RT004", "error", None, message, _python_fix(release.python), declared=python)
    of_ray = _python_of_ray(ray)
    if of_ray and not SpecifierSet(of_ray).contains(f"{python}.0"):
        message = f"ray {ray} needs Python {of_ray}, {python} is declared"
        yield Finding("RT004", "error", None, message, _python_fix(of_ray), declared=python)


def _python_fix(wanted: str) -> str:
    return f"Set environment.python within {wanted} in cluster.yaml, then: {_LOCK_AGAIN}"


def pinned_versions(requirements: tuple[str, ...]) -> dict[str, str]:
    """Name -> version of each requirement that allows exactly one; names as package indexes write them."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # a path or an option of pip: the lock says what it came to
            continue
        exact = re.fullmatch(r"={2,3}\s*([^=*,]+)", str(requirement.specifier))
        if exact:
            found[canonicalize_name(requirement.name)] = exact[1].strip()
    return found


def _autogluon(pinned: Mapping[str, str]) -> str | None:
    names = ("autogluon-core", "autogluon-tabular", "autogluon")
    return next((pinned[name] for name in names if name in pinned), None)


def _python_of_ray(version: str | None) -> str | None:
    from packaging.version import InvalidVersion, Version

    if version is None:
        return None
    try:
        found = [python for first, python in RAY_PYTHON if Version(first) <= Version(version)]
    except InvalidVersion:
        return None
    return found[-1] if found else None
