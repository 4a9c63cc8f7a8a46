"""The M2XFP paper's comparison of accelerators, under its own assumptions.

The authors' simulator and its log are public; what this takes from them stands in
``data/paper_accelerator.json`` with its source. Speed is a closed form. Of the energy, DRAM's
static part and the arrays' follow from the log exactly, being constants a clock; two constants were
fitted to its buffers and two to its DRAM traffic, over all models and designs at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from m2xfp.plain import read_json, typed
from m2xfp.tables import aligned_table

__all__ = [
    "BASELINES",
    "SLOWDOWN",
    "Energy",
    "Facts",
    "Model",
    "compare",
    "energy_of",
    "facts",
    "paper_table",
    "share_of_8_bits",
]

OWN = "m2xfp"
BASELINES = {"olive": "OliVe", "ant": "ANT", "microscopiq": "MicroScopiQ"}

SLOWDOWN = 4  # clocks of a MAC of 8 bits on arrays of 8-bit MACs that fuse to four of 4 bits

# Energy of a clock of the array, pJ: the log's energy of the cores over its clocks.
_ARRAY_PJ = {OWN: 808.6, "olive": 620.8, "ant": 620.8, "microscopiq": 788.3}
# Fitted: buffers take this much a MAC of 4 bits, twice as much of 8, and a part of DRAM's energy.
_BUFFER_PJ, _BUFFER_OF_DRAM = 1.1055, 0.0698
# Fitted: DRAM's energy a MAC of 4 bits at k = 4096, and how it grows with k: a buffer holds fewer
# rows of a longer k, so operands are read more often. With 8 bits it holds half as many rows of
# twice the size.
_DRAM_PJ, _DRAM_GROWTH, _DRAM_K = 0.255, 0.2, 4096
_DRAM_OF_8_BITS = 4


@dataclass(frozen=True)
class Dram:
    """Constants of the DRAM: static power, and energy a bit."""

    static_mw: float
    read_pj_per_bit: float
    write_pj_per_bit: float


@dataclass(frozen=True)
class Sram:
    """Constants of a buffer: energy to read and write a word, and leakage."""

    word_bits: int
    kilobytes: int
    read_pj: float
    write_pj: float
    leakage_mw: float


@dataclass(frozen=True)
class Model:
    """A model of the comparison.

    Members
    -------
    name
        As the log calls it.
    layers
        n and k of the linear layers of a block.
    bits
        Of each design: the bits of each layer, block by block.
    cycles, energy_nj
        Of each design: the log's clocks, and its energy: static, DRAM, buffers, core.
    """

    name: str
    layers: list[tuple[int, int]]
    bits: dict[str, list[int]]
    cycles: dict[str, float]
    energy_nj: dict[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Facts:
    """What was read from the authors' simulator and log.

    Members
    -------
    source
        Where.
    changed, changed_why
        Designs whose bits were changed after the log, by model, and what follows.
    clock_mhz, dram_bits_per_clock, macs_per_clock, tokens
        The system.
    dram, sram
        Constants of energy.
    paper
        What the paper says: ratios over MicroScopiQ.
    models
        The models.
    """

    source: str
    changed: dict[str, list[str]]
    changed_why: str
    clock_mhz: float
    dram_bits_per_clock: int
    macs_per_clock: int
    tokens: int
    dram: Dram
    sram: Sram
    paper: dict[str, float]
    models: list[Model]


@cache
def facts() -> Facts:
    """Return the facts of the comparison."""
    path = Path(__file__).parent / "data" / "paper_accelerator.json"
    return typed(Facts, read_json(path), path.name)


def _works(model: Model) -> list[int]:
    """Return the size of each layer, for as many blocks as have bits."""
    count = len(next(iter(model.bits.values())))
    sizes = [n * k for n, k in model.layers]
    return [sizes[index % len(sizes)] for index in range(count)]


def share_of_8_bits(model: Model, design: str) -> float:
    """Return the share of MACs that a design runs in 8 bits.

    It follows from the bits of the layers; where these were changed after the log, from its clocks.
    """
    if design == OWN:
        return 0.0
    if design in facts().changed.get(model.name, []):
        return (model.cycles[design] / model.cycles[OWN] - 1) / (SLOWDOWN - 1)
    works = _works(model)
    wide = sum(work for work, bits in zip(works, model.bits[design], strict=True) if bits == 8)
    return wide / sum(works)


@dataclass(frozen=True)
class Energy:
    """Energy of a MAC, pJ, by where it goes."""

    static: float
    dram: float
    buffers: float
    core: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.static + self.dram + self.buffers + self.core


def _dram_pj(model: Model, design: str) -> float:
    """Return DRAM's energy a MAC."""
    works = _works(model)
    lengths = [k for _, k in model.layers]
    each = [
        work * _DRAM_PJ * (lengths[index % len(lengths)] / _DRAM_K) ** _DRAM_GROWTH
        for index, work in enumerate(works)
    ]
    if design == OWN or design in facts().changed.get(model.name, []):
        # Which layers are in 8 bits is not known: all alike.
        factor = 1 + (_DRAM_OF_8_BITS - 1) * share_of_8_bits(model, design)
        return factor * sum(each) / sum(works)
    factors = [_DRAM_OF_8_BITS if bits == 8 else 1 for bits in model.bits[design]]
    return sum(a * b for a, b in zip(each, factors, strict=True)) / sum(works)


def energy_of(model: Model, design: str) -> Energy:
    """Return the energy that a design takes for a MAC of a model."""
    known = facts()
    share = share_of_8_bits(model, design)
    clocks = (1 + (SLOWDOWN - 1) * share) / known.macs_per_clock  # a MAC
    dram = _dram_pj(model, design)
    return Energy(
        static=known.dram.static_mw * 1e3 / known.clock_mhz * clocks,
        dram=dram,
        buffers=_BUFFER_PJ * (1 + share) + _BUFFER_OF_DRAM * dram,
        core=_ARRAY_PJ[design] * clocks,
    )


def compare() -> dict[str, Any]:
    """Return speed and energy efficiency of M2XFP over each design, the log's beside them."""
    known = facts()
    rows = []
    for model in known.models:
        own = energy_of(model, OWN).total
        for design in BASELINES:
            share = share_of_8_bits(model, design)
            rows.append(
                {
                    "model": model.name,
                    "design": design,
                    "share_8_bits": round(share, 4),
                    "from_log": design in known.changed.get(model.name, []),
                    "speed": round(1 + (SLOWDOWN - 1) * share, 4),
                    "speed_log": round(model.cycles[design] / model.cycles[OWN], 4),
                    "energy": round(energy_of(model, design).total / own, 4),
                    "energy_log": round(
                        sum(model.energy_nj[design]) / sum(model.energy_nj[OWN]), 4
                    ),
                }
            )
    return {"source": known.source, "rows": rows}


def _mean(rows: Sequence[Mapping[str, Any]], design: str, figure: str) -> float:
    return fmean(row[figure] for row in rows if row["design"] == design)


def paper_table(figures: Mapping[str, Any]) -> str:
    """Return the comparison by model, and its means, as markdown."""
    rows = figures["rows"]
    titles: tuple[str, ...] = ("model", "over", "MACs in 8 bits", "speed", "log", "energy", "log")
    table = [titles]
    for row in rows:
        table.append(
            (
                row["model"],
                BASELINES[row["design"]],
                f"{row['share_8_bits']:.1%}" + (" (from the log)" if row["from_log"] else ""),
                *(f"{row[name]:.3f}" for name in ("speed", "speed_log", "energy", "energy_log")),
            )
        )
    for design, name in BASELINES.items():
        names = ("speed", "speed_log", "energy", "energy_log")
        means = (f"{_mean(rows, design, figure):.3f}" for figure in names)
        table.append(("mean", name, f"{_mean(rows, design, 'share_8_bits'):.1%}", *means))
    return aligned_table(table)
