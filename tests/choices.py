"""Which parameters of a test are in the normal run; the rest is in `make test-slow`."""

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["usual_first"]


def usual_first(values: Iterable[Any], usual: Iterable[Any]) -> list[Any]:
    """Return all ``values`` as parameters, those that are not (or not called) ``usual`` slow."""
    chosen = list(usual)
    return [
        value
        if value in chosen or getattr(value, "name", None) in chosen
        else pytest.param(value, marks=pytest.mark.slow)
        for value in values
    ]
