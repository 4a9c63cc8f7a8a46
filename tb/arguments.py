"""What makes no difference to a unit, by an argument and not by a proof of the whole.

A bench may say of some wires of its unit which two values of them are alike to everything behind
them, or which they never have (``argued`` of `m2xfp.tb.bench.Cover`). `m2xfp mutate` then proves of
a mutant that no test notices that nothing but such wires differ, and to such values only, or that
nothing differs but where they have such. The argument stands in words in ``why``; tests hold it
against the hardware or the golden model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Argument", "Never"]


@dataclass(frozen=True)
class Argument:
    """Values of a word that are alike.

    Members
    -------
    instance
        Regular expression for the path of the instances that have it: ``unit[.]accumulator``.
    word
        The word's wires there, lowest first, with the names of the instances that they are in.
        Of registers, what they hold next may be alike, to what ``reads`` hold next.
    alike
        Verilog that gives the wire ``alike`` its value, from ``right`` and ``wrong``, the word of
        the unit and that of the mutant, and from ``reads``.
    why
        The argument, in a few words.
    reads
        Other wires there, by the name that ``alike`` has for them, as the unit has them.
    """

    instance: str
    word: tuple[str, ...]
    alike: str
    why: str
    reads: Mapping[str, str] = field(default_factory=dict)

    @property
    def wires(self) -> tuple[str, ...]:
        """Return all wires that it is about."""
        return (*self.word, *self.reads.values())

    def module(self, widths: Mapping[str, int]) -> str:
        """Return the relation as the Verilog module ``related``, its inputs of these widths."""
        return _module("related", widths, "alike", self.alike)


@dataclass(frozen=True)
class Never:
    """Values that wires never have, where they count.

    Members
    -------
    instance
        Regular expression for the path of the instances that have the wires.
    reads
        The wires there, by the name that ``holds`` has for them.
    holds
        Verilog that gives the wire ``holds`` its value, 1 where they have such values.
    why
        The argument, in a few words.
    """

    instance: str
    reads: Mapping[str, str]
    holds: str
    why: str

    @property
    def wires(self) -> tuple[str, ...]:
        """Return all wires that it is about."""
        return tuple(self.reads.values())

    def module(self, widths: Mapping[str, int]) -> str:
        """Return what never holds as the Verilog module ``never``, its inputs of these widths."""
        return _module("never", widths, "holds", self.holds)


def _module(name: str, widths: Mapping[str, int], output: str, body: str) -> str:
    inputs = [f"input [{bits - 1}:0] {port}" for port, bits in widths.items()]
    head = f"module {name}({', '.join(inputs)}, output {output});"
    return "\n".join([head, body.strip("\n"), "endmodule", ""])
