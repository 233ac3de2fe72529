"""The root filesystem that every lab's hosts begin with: a Debian made from this machine's own apt sources.

A lab adds its packages and what it customizes; the recipe's key names the image made from it, so that another
recipe is another image.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.commands import Report, as_root, last_lines, run
from tests.lab.hosts import LabError

RELEASE = "bookworm"
AUTHORIZED_KEYS = "/etc/ssh/lab_authorized_keys"
PACKAGES = (
    "systemd-sysv", "libpam-systemd", "udev", "dbus", "openssh-server", "sudo", "python3", "rsync",
    "ca-certificates", "iproute2", "procps", "iputils-ping", "util-linux", "tar", "logrotate",
    "libgomp1", "libzstd1",
)  # fmt: skip
# no terminals, nothing to scrub, nobody to update for
IDLE_UNITS = (
    "getty.target", "getty-static.service", "console-getty.service", "apt-daily.timer",
    "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "dpkg-db-backup.timer",
)  # fmt: skip
_ACCOUNTS = f"""#!/bin/sh
set -eu
root="$1"
chroot "$root" useradd --uid 1000 --create-home --shell /bin/bash admin
chroot "$root" useradd --uid 1001 --create-home --shell /bin/bash alice
echo 'admin ALL=(ALL:ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/lab"
chmod 0440 "$root/etc/sudoers.d/lab"
cat >"$root/etc/ssh/sshd_config.d/lab.conf" <<'END'
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile .ssh/authorized_keys {AUTHORIZED_KEYS}
END
"""
_UNITS_AND_IDENTITY = """systemctl --root="$root" mask {masked}
systemctl --root="$root" set-default multi-user.target
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
"""


@dataclass(frozen=True)
class Recipe:
    """A root filesystem.

    Args:
        form: what mmdebstrap makes of it: `tar` or `directory`.
        packages: Debian packages beside the smallest installation.
        masked: systemd units that never run.
        settings: shell lines; `$root` is the filesystem.
        more: the same, after the units are masked and the identity is gone.
        options: further arguments of mmdebstrap.
    """

    form: str
    packages: Sequence[str]
    masked: Sequence[str]
    settings: str = ""
    more: str = ""
    options: Sequence[str] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """mmdebstrap's command line, but for what is this machine's."""
        return (
            "mmdebstrap", "--mode=root", "--variant=minbase", f"--format={self.form}",
            f"--include={','.join(self.packages)}", "--aptopt=Acquire::Languages \"none\"",
            "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*", *self.options,
        )  # fmt: skip

    @property
    def customize(self) -> str:
        """The script that runs when all packages are there."""
        units = _UNITS_AND_IDENTITY.format(masked=" ".join(self.masked))
        return _ACCOUNTS + self.settings + units + self.more

    def key(self, *more: str) -> str:
        """Names what the recipe makes: another recipe, another key.

        Args:
            more: what else shapes the image.
        """
        return digest(*self.argv, RELEASE, self.customize, *more)


def digest(*parts: str) -> str:
    """A short name for texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@contextmanager
def command(recipe: Recipe, target: str) -> Iterator[list[str]]:
    """mmdebstrap's whole command line, good while the block runs.

    Args:
        recipe: what to make.
        target: where; `-` is standard output.
    """
    with tempfile.TemporaryDirectory(prefix="raytools-lab-") as scratch:
        os.chmod(scratch, 0o755)
        directory = Path(scratch)
        hook = directory / "customize"
        hook.write_text(recipe.customize)
        hook.chmod(0o755)
        sources = [str(path) for path in _source_files(directory)]
        yield [
            *recipe.argv, *_apt_options(), f'--customize-hook={hook} "$1"', RELEASE, target, *sources
        ]  # fmt: skip


def build_failed(log: Path) -> LabError:
    """The error that tells why there is no image, from what the programs said."""
    said = last_lines(log.read_text(errors="replace"), 25)
    return LabError(
        f"The image cannot be built:\n{said}", fix="Do this machine's apt sources answer? apt-get update"
    )


def wait_for(processes: Sequence[subprocess.Popen[bytes]], report: Report) -> bool:
    """Waits until the programs of a build have ended, and says so every ten seconds; whether all is well.

    On Ctrl-C they are asked to end and waited for: mmdebstrap then removes its mounts.
    """
    started = time.monotonic()
    try:
        for process in reversed(processes):
            while True:
                try:
                    process.wait(10)
                    break
                except subprocess.TimeoutExpired:
                    report(f"  … {time.monotonic() - started:.0f} s")
    except BaseException:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    return not any(process.returncode for process in processes)


def start(
    argv: Sequence[str], *, messages: object, source: object = subprocess.DEVNULL, output: object = None
) -> subprocess.Popen[bytes]:
    """A program of a build, as root.

    Args:
        argv: the command.
        messages: the file for standard error, and for standard output unless that is named.
        source: standard input.
        output: standard output.
    """
    into = messages if output is None else output
    return subprocess.Popen(as_root(argv), stdin=source, stdout=into, stderr=messages)  # type: ignore[call-overload,no-any-return]


def _apt_options() -> list[str]:
    """This machine's proxies and certificates for apt, as far as it has any."""
    dumped = run(["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"]).stdout
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Retries")
    return [
        f"--aptopt={line}"
        for line in dumped.splitlines()
        if line.startswith(wanted) and not line.endswith('"";')
    ]


def _source_files(directory: Path) -> list[Path]:
    """Copies of what this machine's apt knows about the release."""
    here = Path("/etc/apt")
    files = [here / "sources.list", *sorted((here / "sources.list.d").glob("*"))]
    written = []
    for number, path in enumerate(files):
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        select = release_stanzas if path.suffix == ".sources" else release_lines
        text = select(path.read_text())
        if text:
            written.append(directory / f"{number}{path.suffix}")
            written[-1].write_text(text)
    if not written:
        raise LabError(f"apt has no source for Debian {RELEASE} on this machine", expected="one in /etc/apt")
    return written


def release_stanzas(text: str) -> str:
    """The stanzas of a `.sources` file that are about the release."""
    stanzas = []
    for stanza in text.split("\n\n"):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
        fields = {key.lower(): value for key, _, value in (line.partition(":") for line in lines)}
        if _of_release(fields.get("suites", "").split()) and fields.get("enabled", "").strip() != "no":
            stanzas.append("\n".join(lines) + "\n")
    return "\n".join(stanzas)


def release_lines(text: str) -> str:
    """The lines of a `.list` file that are about the release."""
    chosen = []
    for line in text.splitlines():
        words = line.partition("]")[2].split() if "[" in line else line.split()[1:]
        if line.split()[:1] == ["deb"] and _of_release(words[1:2]):
            chosen.append(line + "\n")
    return "".join(chosen)


def _of_release(suites: Iterable[str]) -> bool:
    return any(suite == RELEASE or suite.startswith(f"{RELEASE}-") for suite in suites)
