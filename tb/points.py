"""Points that a simulation can cover: lines, branches, and each bit in both directions.

Verilator counts them (`m2xfp.tb.bulk.simulator`), of each instance of a module apart, and writes
them into a file that is read here.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from m2xfp.errors import InputError

__all__ = ["KINDS", "Point", "read_points"]

KINDS = ("line", "branch", "toggle")


@dataclass(frozen=True, order=True)
class Point:
    """Something that can happen in a simulation.

    Members
    -------
    kind
        One of ``KINDS``.
    place
        Path of the instance below the top, with dots; empty for the top itself.
    what
        Of a toggle the wire, its bit if it has several, and the direction, ``sum[3]:0->1``; of
        others what Verilator calls it, ``if``, ``else``, ``cond_then``.
    line, column
        Where it is in the Verilog.
    """

    kind: str
    place: str
    what: str
    line: int
    column: int

    def __str__(self) -> str:
        """Return what and where, in one word: ``unit.u_peak.t3[2]:0->1`` or ``unit.else@34:7``."""
        name = f"{self.place}.{self.what}" if self.place else self.what
        return name if self.kind == "toggle" else f"{name}@{self.line}:{self.column}"


def read_points(path: Path) -> Counter[Point]:
    """Return how often each point was covered, 0 among them; InputError for any other file."""
    counts: Counter[Point] = Counter()
    for line in path.read_text().splitlines():
        if not line.startswith("C "):
            continue
        try:
            text, count = line[3:].rsplit("' ", 1)
            facts = dict(part.split("\2") for part in text.split("\1")[1:])
            kind = facts["page"].partition("/")[0].removeprefix("v_")
            place = facts["h"].removeprefix("top").lstrip(".").partition(".")[2]
            point = Point(kind, place, facts["o"], int(facts["l"]), int(facts.get("n", 0)))
            counts[point] += int(count)
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: no point of coverage: {line!r}") from error
    return counts
