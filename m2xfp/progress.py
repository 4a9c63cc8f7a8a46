"""Progress of long work: a bar on a terminal, whole lines in a log.

A bar draws itself over and over on one line, which in a file is one long line of carriage returns
and half bars. Where the standard error is no terminal there is a line every half minute instead,
and one at the end.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

__all__ = ["Progress", "bars_of_libraries", "on_terminal", "track"]

T = TypeVar("T")

SECONDS = 30.0  # between two lines in a log


class Progress(Generic[T]):
    """What is done of some work, as ``track`` begins it.

    Members
    -------
    n
        Units done.
    """

    def __init__(
        self,
        items: Iterable[T],
        total: float | None,
        desc: str,
        unit: str,
        *,
        leave: bool,
        quiet: bool,
        layout: str | None,
    ) -> None:
        self.n = 0.0
        self._items, self._total, self._desc, self._unit = items, total, desc, unit
        self._note, self._leave = "", leave
        self._began = self._told = time.monotonic()
        self._bar = None
        self._logs = not quiet and not on_terminal()
        if not quiet and not self._logs:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=desc, unit=unit, leave=leave, bar_format=layout, mininterval=0.2
            )

    def update(self, count: float = 1) -> None:
        """Count further units as done."""
        self.n += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._logs and time.monotonic() - self._told > SECONDS:
            self._told = time.monotonic()
            self._say()

    def note(self, text: str) -> None:
        """Show a text beside the count from now on."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        """End the bar, or write the last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._logs and self._leave:
            self._say()
        self._logs, self._bar = False, None

    def _say(self) -> None:
        done = f"{self.n:.0f}" + ("" if self._total is None else f" of {self._total:.0f}")
        unit = self._unit + "s" * (self._unit.isalpha() and done != "1")
        words = [f"{self._desc}: {done} {unit}", f"{time.monotonic() - self._began:.1f} s"]
        with suppress(OSError, ValueError):  # nobody reads it any more
            print(*words, *filter(None, [self._note]), sep=", ", file=sys.stderr, flush=True)

    def __iter__(self) -> Iterator[T]:
        try:
            for item in self._items:
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> "Progress[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def on_terminal() -> bool:
    """Whether the standard error is a terminal."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed
        return False


def bars_of_libraries() -> None:
    """Let libraries draw their own bars on a terminal alone, as this module does.

    For a command at its start: transformers, gguf, datasets and others draw with tqdm, which reads
    this variable when it is imported. One that is set already stays.
    """
    if not on_terminal():
        os.environ.setdefault("TQDM_DISABLE", "1")


@overload
def track(
    *,
    total: float | None,
    desc: str,
    unit: str = ...,
    leave: bool = ...,
    quiet: bool = ...,
    layout: str | None = ...,
) -> Progress[None]: ...


@overload
def track(
    items: Iterable[T],
    *,
    total: float | None = ...,
    desc: str,
    unit: str = ...,
    leave: bool = ...,
    quiet: bool = ...,
    layout: str | None = ...,
) -> Progress[T]: ...


def track(
    items: Iterable[Any] = (),
    *,
    total: float | None = None,
    desc: str,
    unit: str = "step",
    leave: bool = True,
    quiet: bool = False,
    layout: str | None = None,
) -> Progress[Any]:
    """Begin to show the progress of some work on the standard error.

    Iterate over what it returns, or use it in a ``with`` statement and call ``update``.

    Parameters
    ----------
    items
        What is worked on, for iteration.
    total
        Units in all; the number of items if left out, unknown if they have none.
    desc, unit
        What is done, and what is counted.
    leave
        Whether the finished bar, or in a log the last line, stays.
    quiet
        Show nothing.
    layout
        Format of the bar, as tqdm's ``bar_format``.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return Progress(items, total, desc, unit, leave=leave, quiet=quiet, layout=layout)
