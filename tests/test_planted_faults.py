"""Faults that tests plant: each still fits the source that it changes, slow tests' ones too."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mutation import Mutation, mutated

FOLDER = Path(__file__).parent
FILES = [
    path
    for path in sorted(FOLDER.rglob("test_*.py"))
    if "Mutation(" in path.read_text() and path != Path(__file__)
]


def planted(value: Any) -> Iterator[Mutation]:
    """Yield the faults in a value of a test module, a list or the arguments of a mark."""
    if isinstance(value, Mutation):
        yield value
    elif isinstance(value, Mapping):
        yield from planted(list(value.values()))
    elif isinstance(value, list | tuple):  # pytest's parameter sets are tuples
        for each in value:
            yield from planted(each)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_faults_fit_the_source(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    module = importlib.import_module(path.stem)
    names = [value for name, value in vars(module).items() if name.isupper()]
    marks = [mark.args for value in vars(module).values() for mark in _marks(value)]
    for fault in planted([*names, *marks]):
        spec = find_spec(fault.module)
        assert spec is not None
        assert spec.origin is not None
        mutated(Path(spec.origin).read_text(), fault.old, fault.new, fault.scope)


def _marks(value: Any) -> list[pytest.Mark]:
    found = getattr(value, "pytestmark", [])
    return found if isinstance(found, list) else [found]
