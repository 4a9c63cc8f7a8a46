"""What the environment asks of the golden model, read without torch: commands look at it first."""

import os

from m2xfp.errors import InputError

__all__ = ["PATHS", "asked_path"]

PATHS = ("auto", "plain", "fused")
"""Implementations of the golden model, see ``m2xfp.golden.computing``."""


def asked_path() -> str:
    """Return the path that M2XFP_PATH names; InputError if there is no such path."""
    path = os.environ.get("M2XFP_PATH", "auto")
    if path not in PATHS:
        raise InputError(f"M2XFP_PATH={path!r}; choose one of: {', '.join(PATHS)}")
    return path
