"""The terminal of `raytools run`: signals as they come, and a command in it that feels at home.

The command shares the requester's session and process group. So the kernel delivers Ctrl-C, Ctrl-Z, Ctrl-\\
and changes of the window's size to it directly, and job control of the shell works on both. What is left to
do: not to send a second time what the whole group was sent, to stop when the command was stopped by somebody
else, to bring the terminal back when the command was killed in the middle of a full-screen display, and to
die of Ctrl-C as the command did, so that a shell's loop ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time

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
_SIGINFO_BYTES = 128  # of struct signalfd_siginfo (signalfd(2)); its first numbers: signo, errno, code, pid
_ECHO_S = 0.2
_GROUP_ECHO_S = 2.0
# the kernel walks through a group, and timeout(1) signals its child before the child's group
_GROUP_LOOP_S = 0.05
_SI_KERNEL = 0x80  # sent by the kernel: for these signals, by the terminal


class ForwardedSignals:
    """Signals for the run: blocked, and read from a descriptor that tells who sent them.

    In a terminal, what was sent to the whole process group has reached the command already.
    Entering blocks them; `listen()` opens the descriptor, which may wait until the run has been started.
    """

    def __init__(self, in_terminal: bool) -> None:
        self._in_terminal = in_terminal
        self._last = (0, 0, 0.0, False)  # signal, sender, when, and whether the whole group got it
        self._descriptor: int | None = None
        self._sentinel: _Sentinel | None = None

    def __enter__(self) -> ForwardedSignals:
        # one that is ignored, as nohup(1) does it, would come to life by being blocked
        forwarded = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
        self._forwarded = forwarded
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
        return self

    def listen(self) -> None:
        """Opens the descriptor; what has come since entering is there to read."""
        import ctypes  # 2 ms, which a run does not wait for

        mask = ctypes.create_string_buffer(128)  # sigset_t
        libc = ctypes.CDLL(None, use_errno=True)
        libc.sigemptyset(mask)
        for number in self._forwarded:
            libc.sigaddset(mask, int(number))
        descriptor = int(libc.signalfd(-1, mask, _SFD_FLAGS))
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "signalfd")
        self._descriptor = descriptor
        self._sentinel = _Sentinel() if self._in_terminal else None

    def __exit__(self, *_: object) -> None:
        if self._sentinel is not None:
            self._sentinel.end()
        if self._descriptor is not None:
            os.close(self._descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        assert self._descriptor is not None, "listen() opens it"
        return self._descriptor

    def pass_on(self, run: SupervisedRun) -> None:
        """Sends what has come to the run; what has reached the command already only counts."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fileno(), _SIGINFO_BYTES):
                number, _errno, code, sender = struct.unpack_from("=Iiii", data)
                # asked in any case, so that none stays pending there
                told = self._sentinel is not None and self._sentinel.got(number)
                is_echo = self._is_echo(number, sender, told)
                delivered = told or (self._in_terminal and code == _SI_KERNEL)
                if code == _SI_KERNEL or not is_echo:
                    run.signal(number, group=_FORWARDED[number], delivered=delivered)

    def _is_echo(self, number: int, sender: int, told: bool) -> bool:
        """timeout(1) sends to its child and then to the group: that is asking once, not twice."""
        before, self._last = self._last, (number, sender, time.monotonic(), told)
        if before[:2] != (number, sender):
            return False
        if self._sentinel is not None:  # one of the two reached it, whenever they are read here
            return told != before[3] and self._last[2] - before[2] < _GROUP_ECHO_S
        return self._last[2] - before[2] < _ECHO_S


class _Sentinel:
    """A process beside this one in its group: what it gets too was sent to the group."""

    def __init__(self) -> None:
        ask_read, self._ask = os.pipe()
        self._answer, answer_write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            for descriptor in (0, 1, 2, self._ask, self._answer):
                os.close(descriptor)
            try:
                while asked := os.read(ask_read, 1):
                    got = signal.sigtimedwait(asked, _GROUP_LOOP_S) is not None
                    os.write(answer_write, b"y" if got else b"n")
            finally:
                os._exit(0)
        os.close(ask_read)
        os.close(answer_write)

    def got(self, number: int) -> bool:
        """Whether the signal came to the group; asked for each signal, so that none stays pending."""
        with contextlib.suppress(BrokenPipeError):  # killed, with whatever else was in the group
            os.write(self._ask, bytes([number]))
            return os.read(self._answer, 1) == b"y"
        return False

    def end(self) -> None:
        """Ends it."""
        os.close(self._ask)
        os.close(self._answer)
        os.waitpid(self._pid, 0)


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
        with contextlib.suppress(OSError):  # the terminal is gone
            if os.tcgetpgrp(self._descriptor) == os.getpgrp():
                return
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a background group may not, else
            try:
                os.tcsetpgrp(self._descriptor, os.getpgrp())
            finally:
                signal.signal(signal.SIGTTOU, before)

    def stop_with(self, pid: int) -> None:
        """Stops this process as the command was stopped, so that the shell sees a stopped job.

        After Ctrl-Z both were, and both went on with `fg`: then the news is old.
        """
        state = (read_text(f"/proc/{pid}/stat") or "").rpartition(") ")[2][:1]
        if state == "T":
            os.kill(os.getpid(), signal.SIGSTOP)


def die_of(number: int) -> None:
    """Ends this process by a signal, as the command ended: a shell ends its loop or script then, too."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


def own_terminal() -> Terminal | None:
    """The controlling terminal of this process, wherever its standard streams lead."""
    try:
        return Terminal(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:  # there is none, as under cron or ssh
        return None
