"""Decompresses zstd with the system's own libzstd, which dpkg and rpm need and therefore every node has.

Neither the zstd program nor a Python package is on a node before it has an environment.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from raytools.errors import RaytoolsError

LIBRARY = "libzstd.so.1"
_OUTPUT_BYTES = 1 << 20


class CorruptError(ValueError):
    """The data are not zstd, or were damaged."""


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer, which have the same layout (zstd.h)."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


class Decompressor:
    """One stream: fed in pieces of any size, it gives pieces of at most 1 MiB.

    Raises:
        RaytoolsError: the library is not there.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = _load(library)
        self._output = ctypes.create_string_buffer(_OUTPUT_BYTES)
        self._stream = self._library.ZSTD_createDStream()
        if not self._stream:
            raise MemoryError("no memory for decompression")
        self._expects_more = True

    @property
    def complete(self) -> bool:
        """Whether what was fed so far ends where compressed data may end."""
        return not self._expects_more

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """Decompresses; each piece is valid until the next one is asked for.

        Raises:
            CorruptError: the data are damaged.
        """
        source = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
        view = memoryview(self._output).cast("B")
        held_back = False
        while source.position < source.size or held_back:
            target = _Buffer(ctypes.cast(self._output, ctypes.c_void_p), _OUTPUT_BYTES, 0)
            code = self._library.ZSTD_decompressStream(
                self._stream, ctypes.byref(target), ctypes.byref(source)
            )
            if self._library.ZSTD_isError(code):
                raise CorruptError(self._library.ZSTD_getErrorName(code).decode())
            self._expects_more = code != 0
            # 0 says that all was given out; else a full output may not have been large enough
            held_back = code != 0 and target.position == _OUTPUT_BYTES
            if target.position:
                yield view[: target.position]

    def close(self) -> None:
        """Frees the library's memory."""
        self._library.ZSTD_freeDStream(self._stream)
        self._stream = None


def _load(name: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise RaytoolsError(
            f"this machine has no {name} ({error})",
            expected="the zstd library, with which archives of environments are unpacked",
            fix="Install it: apt install libzstd1 (Debian, Ubuntu), dnf install libzstd (RHEL, Rocky, Alma)",
        ) from error
    library.ZSTD_createDStream.restype = ctypes.c_void_p
    library.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    library.ZSTD_freeDStream.restype = ctypes.c_size_t
    library.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    library.ZSTD_decompressStream.restype = ctypes.c_size_t
    library.ZSTD_isError.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library
