"""What a proof job is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome

__all__ = ["LIMIT", "TRIES", "Job"]

# An engine gives up after so many seconds, which is an error and no result.
LIMIT = 600
# So many faults are tried before a job counts as one that cannot fail.
TRIES = 40


@dataclass(frozen=True)
class Job:
    """A property of units.

    Members
    -------
    name, text
        What it is called; what it says, in one line.
    engine
        What proves it.
    applies
        Whether a unit has it.
    prove
        Runs the engine.
    faults
        Faults of a unit, for the first few of which the property must not hold.
    slow
        More than a few seconds: only when asked for.
    """

    name: str
    text: str
    engine: str
    applies: Callable[[Design], bool]
    prove: Callable[[Design], Outcome]
    faults: Callable[[Design], Iterator[Design]]
    slow: bool = False
