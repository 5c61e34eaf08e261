"""What `ps` shows of a process that was forked: the command line that would have started it.

The kernel reads a command line from the memory of its process, which has room for that of whoever it was
forked from. With PR_SET_MM_MAP of prctl(2) a process says where its own is. A kernel that was built without
that (CONFIG_CHECKPOINT_RESTORE) shows as much as there is room for.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence

_PR_SET_NAME = 15
_PR_SET_MM = 35
_PR_SET_MM_MAP = 14
_SAME_PROGRAM = 0xFFFFFFFF  # exe_fd: none

_libc = ctypes.CDLL(None)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.sbrk.restype = ctypes.c_uint64
_shown: list[mmap.mmap] = []  # the kernel reads it as long as the process lives


class _Map(ctypes.Structure):
    """struct prctl_mm_map of linux/prctl.h, without auxv: that stays as it is."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in (
            "start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack",
            "arg_start", "arg_end", "env_start", "env_end", "auxv",
        )),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )  # fmt: skip


# Those that proc(5) has in /proc/PID/stat, by the number of their field there.
_FIELDS = {
    "start_code": 26, "end_code": 27, "start_stack": 28, "start_data": 45, "end_data": 46, "start_brk": 47,
    "arg_start": 48, "arg_end": 49, "env_start": 50, "env_end": 51,
}  # fmt: skip


def show(command: Sequence[str]) -> None:
    """Show that command line, and the base name of its program as the name of this (the main) thread."""
    text = b"\0".join(os.fsencode(word) for word in command) + b"\0"
    memory = mmap.mmap(-1, len(text), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a fork has its own
    memory.write(text)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    now = _memory_map()
    room = now.arg_end - now.arg_start
    now.arg_start, now.arg_end = start, start + len(text)
    if _place(now):
        _shown[:] = [memory]
    elif room > 0:
        ctypes.memmove(_memory_map().arg_start, text[: room - 1].ljust(room, b"\0"), room)
    name = ctypes.create_string_buffer(os.fsencode(os.path.basename(command[0])))
    _libc.prctl(_PR_SET_NAME, ctypes.addressof(name), 0, 0, 0)


def _memory_map() -> _Map:
    """As it is, but for the end of the heap."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()  # from the third on
    values = {name: int(fields[number - 3]) for name, number in _FIELDS.items()}
    return _Map(**values, exe_fd=_SAME_PROGRAM)


def _place(wanted: _Map) -> bool:
    """Whether the kernel can do that. The heap may grow between asking for its end and telling it."""
    while wanted.brk != _libc.sbrk(0):
        wanted.brk = _libc.sbrk(0)
        if _libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.addressof(wanted), ctypes.sizeof(wanted), 0) != 0:
            return False
    return True
