"""The errors that a user can cause, each with what was wrong and the remedy.

The command line prints these as one message and exits with status 2; anything else is a defect and
keeps its traceback.
"""

from collections.abc import Iterable

__all__ = [
    "InputError",
    "M2xfpError",
    "MissingToolError",
    "NoFusedPathError",
    "UnknownNameError",
]


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
    """

    def __init__(self, tool: str, remedy: str) -> None:
        self.tool, self.remedy = tool, remedy
        super().__init__(f"{tool} is missing; install it with: {remedy}")


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
