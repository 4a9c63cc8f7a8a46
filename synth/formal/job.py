"""What a proof job is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome

__all__ = ["LIMIT", "TRIES", "Job", "always_slow"]

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
        Of which units it takes half a minute and more, or comes to no end: only when asked for.
        None: of no unit that was tried.
    """

    name: str
    text: str
    engine: str
    applies: Callable[[Design], bool]
    prove: Callable[[Design], Outcome]
    faults: Callable[[Design], Iterator[Design]]
    slow: Callable[[Design], bool] | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether all that its engine is asked is about a number of clocks."""
        return self.engine.startswith(("BMC", "SAT sweeping", "induction"))

    def is_slow(self, design: Design) -> bool:
        """Return whether it takes half a minute and more of a unit."""
        return self.slow is not None and self.slow(design)


def always_slow(_design: Design) -> bool:
    """Return that a job takes half a minute and more of any unit."""
    return True
