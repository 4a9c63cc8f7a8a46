"""What every unit's testbench module offers, and how to find it from the unit's record.

The module `tb/units/<unit>.py` has the functions of `Bench`. Simulation, regression, gate-level
runs and the tests that every unit must pass call them; none of these knows a unit by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.rtl.catalog import Unit, find_unit
from m2xfp.tb.vectors import Beats, TestVectors

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.tb.arguments import Argument, Never
    from m2xfp.tb.cross import Cross
    from m2xfp.tb.regression import Case

__all__ = [
    "Arrays",
    "Bench",
    "Cover",
    "Operands",
    "bench_of",
    "find_bench",
    "golden_of",
    "random_operands",
]

Arrays = dict[str, NDArray[Any]]
"""A user's arrays by name, as they stand in .npy and .npz files."""


@dataclass(frozen=True)
class Operands:
    """Values to feed a unit with, whatever it takes.

    Members
    -------
    lanes, depth
        Independent runs, and groups that each gets.
    activations, weights
        float32 [lanes * depth, 32].
    """

    lanes: int
    depth: int
    activations: "Tensor"
    weights: "Tensor"


def random_operands(lanes: int, depth: int, seed: int) -> Operands:
    """Return normal values, each group at a power of two of its own, with what is rare among them.

    Every tenth value is zero; of 32 groups about one is all zeros, one has a single value, and one
    is at the lower end of float32's range.

    Parameters
    ----------
    lanes, depth
        Independent runs, and groups that each gets.
    seed
        Of all values.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (2, lanes * depth, 32)
    values = torch.randn(shape, generator=generator)
    exponents = torch.randint(-12, 13, (*shape[:2], 1), generator=generator)
    kind = torch.randint(0, 32, (*shape[:2], 1), generator=generator)
    values *= 2.0 ** torch.where(kind == 0, exponents - 120, exponents)
    values *= torch.rand(shape, generator=generator) > 0.1
    values[..., 1:] *= kind[..., :] != 1  # one value of a group at most
    values *= kind != 2
    return Operands(lanes, depth, *values)


class Bench(Protocol):
    """The testbench of a unit: its arrays, and its beats.

    Of a unit without streams, beats are the words of its ports, a clock each.
    """

    def load(self, path: Path, facts: Facts, /) -> Arrays:
        """Read and check a user's file; InputError with the remedy if it is none for the unit."""

    def encode(self, arrays: Arrays, facts: Facts, /) -> dict[str, Beats]:
        """Return the beats of every input stream that carry the arrays in."""

    def decode(self, beats: Mapping[str, Beats], arrays: Arrays, facts: Facts, /) -> Arrays:
        """Return what the beats of the output streams say, given the arrays that went in."""

    def expected(self, arrays: Arrays, facts: Facts, /) -> Arrays:
        """Return what ``decode`` must give: the golden function's result for the arrays."""

    def vectors(self, arrays: Arrays, facts: Facts, /, seed: int = 0) -> TestVectors:
        """Return the arrays as beats with what must come out, in independent pieces.

        TLAST is random, by ``seed``, where the unit only hands it on.
        """

    def sample(self, operands: Operands, facts: Facts, /) -> Arrays:
        """Return arrays made of the operands, each lane's in a piece of ``vectors`` or several."""

    def regression(self, facts: Facts, /, seed: int = 0) -> "Iterator[Case]":
        """Yield what every build of the unit must pass, cheap cases that find much first."""


class Cover:
    """What a unit's testbench says beside, for coverage and mutants; all may be left out.

    Parameters
    ----------
    unit
        The unit.
    """

    def __init__(self, unit: Unit) -> None:
        self._module: Any = find_bench(unit)

    def cover(self, vectors: TestVectors, facts: Facts) -> "Iterator[Cross]":
        """Yield which of the cases that the unit's numbers have came up in some vectors."""
        if hasattr(self._module, "cover"):
            yield from self._module.cover(vectors, facts)

    def cover_case(self, phases: Sequence[TestVectors], facts: Facts) -> "Iterator[Cross]":
        """Yield the same of what begins in one phase of a case and ends in another."""
        if hasattr(self._module, "cover_case"):
            yield from self._module.cover_case(phases, facts)

    def unreached(self, facts: Facts) -> dict[str, str]:
        """Return what nothing legal covers though no proof says so, with the reason.

        Regular expressions for whole points as `m2xfp.tb.points.Point` writes them, such as
        ``unit[.]part[.]wire[.]3[]]:.*``, and for combinations of cases. To cover one of them is an
        error.
        """
        found: dict[str, str] = getattr(self._module, "unreached", lambda _: {})(facts)
        return found

    def argued(self, facts: Facts) -> "list[Argument | Never]":
        """Return which values of wires are alike, or never there, though no proof says so."""
        found: list[Argument | Never] = getattr(self._module, "argued", lambda _: [])(facts)
        return found


def find_bench(unit: Unit) -> Bench:
    """Return the testbench of a unit, the module that its record names."""
    return cast(Bench, import_module(unit.testbench))


def bench_of(facts: Facts) -> Bench:
    """Return the testbench of the unit that ``facts`` are of, by the catalog."""
    return find_bench(find_unit(facts.unit))


def golden_of(facts: Facts) -> Callable[..., Arrays]:
    """Return the golden function of a unit with those parameters bound that it takes."""
    module, _, name = find_unit(facts.unit).golden.rpartition(".")
    function = getattr(import_module(module), name)
    known = signature(function).parameters
    bound = {key: value for key, value in facts.parameters.items() if key in known}
    return partial(function, **bound)
