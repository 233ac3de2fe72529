"""The terminal of `raytools run`: signals as they come, and a command in it that feels at home.

The command shares the requester's session and process group. So the kernel delivers Ctrl-C, Ctrl-Z, Ctrl-\\
and changes of the window's size to it directly, and job control of the shell works on both. What is left to
do: not to send a second time what the terminal has sent, to stop when the command was stopped by somebody
else, and to bring the terminal back when the command was killed in the middle of a full-screen display.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct

from raytools.node.cgroup_tree import read_text
from raytools.node.launch import SupervisedRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# what a terminal sends to a whole process group goes to the run's group, the rest to its main process
_FORWARDED: dict[int, bool] = {
    signal.SIGINT: True,
    signal.SIGQUIT: True,
    signal.SIGHUP: True,
    signal.SIGTERM: False,
    signal.SIGUSR1: False,
    signal.SIGUSR2: False,
    signal.SIGWINCH: True,
}
_SFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK  # SFD_CLOEXEC and SFD_NONBLOCK have these values
_SIGINFO_BYTES = 128  # of struct signalfd_siginfo (signalfd(2)); signo and code are its 1st and 3rd numbers
_SI_KERNEL = 0x80  # sent by the kernel: for these signals, by the terminal


class ForwardedSignals:
    """Signals for the run: blocked, and read from a descriptor that tells who sent them (signalfd(2))."""

    def __enter__(self) -> ForwardedSignals:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        mask = ctypes.create_string_buffer(128)  # sigset_t
        libc = ctypes.CDLL(None, use_errno=True)
        libc.sigemptyset(mask)
        for number in _FORWARDED:
            libc.sigaddset(mask, int(number))
        self._descriptor = int(libc.signalfd(-1, mask, _SFD_FLAGS))
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "signalfd")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._descriptor

    def pass_on(self, run: SupervisedRun, in_terminal: bool) -> None:
        """Sends what has come to the run; what its terminal has sent to it already only counts."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._descriptor, _SIGINFO_BYTES):
                number, _errno, code = struct.unpack_from("=Iii", data)
                delivered = in_terminal and code == _SI_KERNEL
                run.signal(number, group=_FORWARDED[number], delivered=delivered)


class Terminal:
    """The controlling terminal, as it was found."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Terminal:
        import termios

        self._modes: list[Any] = termios.tcgetattr(self._descriptor)
        self._was_in_front = os.tcgetpgrp(self._descriptor) == os.getpgrp()
        return self

    def __exit__(self, *_: object) -> None:
        if self._was_in_front:
            self._come_to_front()
        os.close(self._descriptor)

    def restore(self) -> None:
        """Modes and foreground group as they were, after a command that had no chance to do so."""
        import termios

        if self._was_in_front:
            self._come_to_front()
            termios.tcsetattr(self._descriptor, termios.TCSANOW, self._modes)

    def _come_to_front(self) -> None:
        """A shell that was the command has made its own group the foreground one."""
        if os.tcgetpgrp(self._descriptor) != os.getpgrp():
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a background group may not, else
            with contextlib.suppress(OSError):  # the terminal is gone
                os.tcsetpgrp(self._descriptor, os.getpgrp())
            signal.signal(signal.SIGTTOU, before)

    def stop_with(self, pid: int) -> None:
        """Stops this process as the command was stopped, so that the shell sees a stopped job.

        After Ctrl-Z both were, and both went on with `fg`: then the news is old.
        """
        state = (read_text(f"/proc/{pid}/stat") or "").rpartition(") ")[2][:1]
        if state == "T":
            os.kill(os.getpid(), signal.SIGSTOP)


def own_terminal() -> Terminal | None:
    """The controlling terminal of this process, if one of its standard descriptors is it."""
    if not any(os.isatty(number) for number in (0, 1, 2)):
        return None
    try:
        return Terminal(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:  # a terminal, but not of this session
        return None
