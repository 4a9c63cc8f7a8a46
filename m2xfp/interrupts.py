"""Signals that end a command: an orderly end, the usual status, and no traceback.

SIGINT and SIGTERM become an exception, so that temporary files are removed, programs that were
started are ended (`m2xfp.processes`) and nothing is left half-written. A second signal ends the
process at once, as it would without this module.
"""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

__all__ = ["Interrupted", "leave", "orderly_end"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SOON, _LATER = 0.05, 5.0  # seconds until the exception is raised again if it was dropped


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end.

    Libraries take it for a Ctrl-C, which they let through or clean up after.
    """


@contextmanager
def orderly_end() -> Iterator[list[int]]:
    """Turn signals into `Interrupted` within the block; give a list of those that came.

    Only for the main thread of a command: handlers belong to the whole process. A signal that the
    process was started to ignore, as shells do for background jobs, stays ignored.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        received.append(number)
        # Some library may drop the exception, as a bare `except` around an import does.
        signal.signal(signal.SIGALRM, ask_again)
        signal.setitimer(signal.ITIMER_REAL, _LATER, _LATER)
        raise Interrupted

    def ask_again(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        # It came while an object was being freed or a C library called back: Python drops it.
        if isinstance(dropped.exc_value, Interrupted):
            signal.setitimer(signal.ITIMER_REAL, _SOON, _LATER)
        else:
            hook(dropped)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    for each in _SIGNALS:
        if before[each] is not signal.SIG_IGN:
            signal.signal(each, interrupt)
    try:
        yield received
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for each, handler in before.items():
            signal.signal(each, handler)
        # What is left is the interpreter's end, where Python's handler prints a traceback.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)


def leave(number: int) -> NoReturn:
    """End the process with the status that shells give a signal, without running anything else.

    Exit handlers and threads of libraries could wait for work that was abandoned.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(128 + number)
