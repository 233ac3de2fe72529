"""Which conda channels a lock is made from. Asked once, when locking; the lock keeps the answer."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from raytools.environment.lock import FORCE_VARIABLE, local_is_forced
from raytools.environment.progress import Progress
from raytools.environment.spec import LOCAL_CHANNEL, EnvironmentSpec
from raytools.errors import EnvironmentBuildError

PROBE_TIME_S = 10.0
"""In all, however many channels are declared."""


@dataclass(frozen=True)
class ChannelChoice:
    """Channels to solve from, and why channel `local` is among them if it was not declared."""

    channels: tuple[str, ...]
    reason: str | None


def choose_channels(spec: EnvironmentSpec, directory: Path, progress: Progress) -> ChannelChoice:
    """The declared channels, or `local` if that is forced, or if none answers and `fallback` says so.

    Args:
        spec: what is declared.
        directory: relative paths of channels start here.
        progress: told what is tried.

    Raises:
        EnvironmentBuildError: no channel answers and there is no fallback.
    """
    if local_is_forced():
        forced = None if spec.channels == (LOCAL_CHANNEL,) else f"{FORCE_VARIABLE}={LOCAL_CHANNEL}"
        return ChannelChoice((LOCAL_CHANNEL,), forced)
    channels = tuple(_absolute(channel, directory) for channel in spec.channels)
    declared = [channel for channel in channels if channel != LOCAL_CHANNEL]
    if not declared:
        return ChannelChoice((LOCAL_CHANNEL,), None)
    progress.phase(f"asking {', '.join(declared)} (at most {PROBE_TIME_S:.0f} s)")
    failures = probe(declared)
    if any(failure is None for failure in failures.values()) or LOCAL_CHANNEL in channels:
        dead = {channel for channel, failure in failures.items() if failure is not None}
        if dead:
            raise EnvironmentBuildError(
                f"not every declared channel answers ({_reasons(failures)})",
                fix=f"Remove it from environment.channels, or use what this machine has: "
                f"{FORCE_VARIABLE}={LOCAL_CHANNEL} raytools env lock",
            )
        return ChannelChoice(channels, None)
    if spec.fallback != LOCAL_CHANNEL:
        raise EnvironmentBuildError(
            f"no declared conda channel answers ({_reasons(failures)})",
            fix=f"Declare one that does, or let this machine's own Python stand in: "
            f"environment.fallback: {LOCAL_CHANNEL}",
        )
    reason = f"no declared channel answered ({_reasons(failures)})"
    progress.note(f"{reason}; using channel `{LOCAL_CHANNEL}`, as environment.fallback says")
    return ChannelChoice((LOCAL_CHANNEL,), reason)


def _reasons(failures: dict[str, str | None]) -> str:
    return "; ".join(f"{channel}: {failure}" for channel, failure in failures.items() if failure)


def _absolute(channel: str, directory: Path) -> str:
    """Paths become URLs; names and URLs stay as they are."""
    if channel.startswith(("/", "./", "../", "~")):
        return (directory / Path(channel).expanduser()).resolve().as_uri()
    return channel


def probe(channels: list[str], time_s: float = PROBE_TIME_S) -> dict[str, str | None]:
    """For each channel None if it answers, else what happened. All are asked at once.

    Proxy variables and certificate bundles of the environment apply.
    """
    answers: dict[str, str | None] = {}

    def ask(channel: str) -> None:
        answers[channel] = _failure(channel, time_s)

    # daemons: a name server that never answers cannot be interrupted, and must not keep the process either
    threads = [threading.Thread(target=ask, args=(channel,), daemon=True) for channel in channels]
    deadline = time.monotonic() + time_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {channel: answers.get(channel, f"no answer within {time_s:.0f} s") for channel in channels}


def _failure(channel: str, time_s: float) -> str | None:
    import rattler

    base = rattler.Channel(channel).base_url.rstrip("/")
    answers = []
    # every channel has the sub-directory `noarch`; large ones offer its index in a compressed form only
    for name in ("repodata.json.zst", "repodata.json"):
        request = urllib.request.Request(f"{base}/noarch/{name}", method=_method(base))  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=time_s):  # noqa: S310 - the user's own channels
                return None
        except urllib.error.HTTPError as error:
            answers.append(f"HTTP {error.code}")
        except (OSError, ValueError) as error:
            answers.append(str(getattr(error, "reason", error)) or type(error).__name__)
    return answers[-1]


def _method(url: str) -> str:
    return "GET" if url.startswith("file:") else "HEAD"
