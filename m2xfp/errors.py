"""The errors that a user can cause, each with what was wrong and the remedy.

The command line prints these as one message and exits with status 2; anything else is a defect and
keeps its traceback.
"""

import errno
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "FileError",
    "InputError",
    "M2xfpError",
    "MissingToolError",
    "NoFusedPathError",
    "ToolError",
    "UnknownNameError",
    "explain",
    "memory_lack",
    "told",
    "tool_failure",
    "unreadable",
]


def told(value: object) -> str:
    """Return a value as a message has it: a number of numpy or torch as the number that it is."""
    item = getattr(value, "item", None)
    try:
        return repr(item() if callable(item) else value)
    except (TypeError, ValueError, RuntimeError):  # an array of several
        return repr(value)


class M2xfpError(Exception):
    """Base of all errors that a user can cause."""


class InputError(M2xfpError, ValueError):
    """A value, shape or file that cannot be used; the text names it and the remedy."""


class UnknownNameError(M2xfpError, ValueError):
    """A name that does not exist; the text lists those that do.

    Parameters
    ----------
    kind
        What was looked up: "unit", "configuration", "format", ...
    name
        The name that was not found.
    known
        The names that exist.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"unknown {kind} {name!r}; there are: {', '.join(self.known)}")


class MissingToolError(M2xfpError, RuntimeError):
    """A program or Python package that is not installed.

    Parameters
    ----------
    tool
        The program or package, and what for.
    remedy
        The command that installs it.
    several
        Whether ``tool`` names several.
    """

    def __init__(self, tool: str, remedy: str, several: bool = False) -> None:
        self.tool, self.remedy = tool, remedy
        verb, them = ("are", "them") if several else ("is", "it")
        super().__init__(f"{tool} {verb} missing; install {them} with: {remedy}")


class NoFusedPathError(MissingToolError):
    """A fused path that something keeps from computing; the plain path can.

    Parameters
    ----------
    path
        Which one: "CPU" or "CUDA".
    lacks
        What is not there.
    remedy
        What would help.
    """

    def __init__(self, path: str, lacks: str, remedy: str) -> None:
        self.tool, self.remedy = lacks, remedy
        RuntimeError.__init__(self, f"the fused {path} path lacks {lacks}; {remedy}")


class ToolError(M2xfpError, RuntimeError):
    """A program that was called has failed; the text has its own last words."""


class FileError(M2xfpError, OSError):
    """A file or folder that cannot be read or written; the text names it, the cause, the remedy."""


def memory_lack(error: BaseException) -> str | None:
    """Return the message for what says that there is not enough memory; None for other errors.

    Python and numpy have a type for that. Of torch's allocator, of a library that cannot be loaded
    and of a file that cannot be mapped, only the text tells.
    """
    said = str(error).strip().partition("\n")[0]
    if not (isinstance(error, MemoryError) or re.search(_SAYS_MEMORY, said)):
        return None
    return f"not enough memory ({said or 'no more of it'}); give less at once to work on"


_SAYS_MEMORY = "out of memory|(n't|[Cc]annot) allocate memory|failed to map segment"


def unreadable(path: str | os.PathLike[str], verdict: str, error: BaseException) -> InputError:
    """Return the error for a file that could not be read: ``verdict`` on it, or no memory."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    lack = next(filter(None, map(memory_lack, causes)), None)
    said = f"cannot be read: {lack}" if lack else f"{verdict}: {error}"
    return InputError(f"{os.fspath(path)!r} {said}")


_REMEDIES = {
    errno.ENOSPC: "make room there, or choose a folder on another disk",
    errno.EDQUOT: "make room there, or choose a folder on another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, or raise the limit on open files",
    errno.EACCES: "choose a place that you may use, or change its permissions",
    errno.EPERM: "choose a place that you may use, or change its permissions",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EEXIST: "something else is in its place; remove it, or choose another path",
    errno.EISDIR: "it is a folder; give a file",
    errno.ENOENT: "choose a folder that is there or can be made",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "choose a path without a circle of links",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network drive",
}


def explain(error: OSError, place: str | os.PathLike[str] | None = None) -> str:
    """Return what a failure of the file system means to a user: the place, the cause, the remedy.

    Parameters
    ----------
    error
        What Python raised.
    place
        What was read or written, where the error's own file name is not what the user knows it by.
    """
    named = place if place is not None else error.filename
    cause = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "check the path and the disk")
    return (
        f"{os.path.abspath(os.fsdecode(named))}: {cause}; {remedy}"
        if named
        else f"{cause}; {remedy}"
    )


# What programs say, and Python does not see, when the file system refuses them something.
_REFUSALS = {
    os.strerror(code): code
    for code in (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS),
        *(errno.EMFILE, errno.ENFILE, errno.EIO),
    )
}
_LAST_WORDS = 12  # lines of a program's output that an error shows


def tool_failure(
    tool: str, subject: str | os.PathLike[str], output: str, status: int, place: str | Path
) -> M2xfpError:
    """Return the error for a program that has failed.

    Parameters
    ----------
    tool, subject
        What it is called, and what it worked on.
    output
        What it said.
    status
        Its exit status, negative for a signal.
    place
        Where it wrote: named if a full disk, a limit or missing permissions made it fail.
    """
    for text, code in _REFUSALS.items():
        if text in output or (code == errno.EFBIG and status == -signal.SIGXFSZ):
            return FileError(f"{tool}: {explain(OSError(code, text), place)}")
    lines = [line for line in output.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"error|%Error", line, re.IGNORECASE)] or lines
    said = "\n".join(told[:_LAST_WORDS])
    ended = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
    return ToolError(f"{tool} {ended} on {os.fspath(subject)}" + (f":\n{said}" if said else ""))
