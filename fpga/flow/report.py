"""The figures of boards: what each holds, how fast, and what that means in groups and MACs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import M2xfpError
from m2xfp.facts import Facts
from m2xfp.fpga.flow.bitstream import BuildReport, build
from m2xfp.fpga.flow.boards import BOARDS
from m2xfp.fpga.flow.tables import FILE
from m2xfp.fpga.gateware.units import board_instances, instance_of_text
from m2xfp.results import read_figures, write_figures

__all__ = ["UnitRates", "rate_figures", "unit_rates", "write_results"]

OTHERS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "ulx3s-25f": (("minifloat", "hadamard"), ("asymmetric",), ("permuter",)),
    "ulx3s-85f": (("hadamard_quantizer",), ("switching",), ("mixed_gemm",), ("accelerator",)),
}
"""Units that a board is tabulated with beside its default ones."""

BITS_PER_BYTE = 10
"""On the line: start bit, 8 data bits, stop bit."""


@dataclass(frozen=True)
class UnitRates:
    """How fast a unit of a build is.

    Members
    -------
    unit
        What boards call it.
    groups_per_s_at_fmax, groups_per_s_at_clock
        By itself, at the clock that the build reaches and at the board's.
    groups_per_s_over_link
        As fast as the line brings them; None where operands are used again.
    macs_per_s_at_fmax
        None of units that do not multiply.
    """

    unit: str
    groups_per_s_at_fmax: float
    groups_per_s_at_clock: float
    groups_per_s_over_link: float | None
    macs_per_s_at_fmax: float | None


def _line_bytes(facts: Facts) -> int | None:
    """Return the bytes that a group takes on the line; None where operands are used again.

    They are where more groups are computed than beats could bring, and where operands come on
    streams of their own.
    """
    if len(facts.inputs) > 1 or facts.groups_per_clock * facts.beats_per_group > 1:
        return None
    return facts.beats_per_group * sum(1 + stream.bytes for stream in facts.inputs)


def unit_rates(report: BuildReport) -> Iterator[UnitRates]:
    """Yield the rates of each unit of a build.

    A pair of groups counts as one where the unit multiplies. Over the line, what is sent bounds the
    rate: each beat goes with a tag, and frames add 1 %, which is left out.
    """
    for name, text in zip(report.units, report.instances, strict=True):
        facts = instance_of_text(text).facts
        size, macs = _line_bytes(facts), facts.macs_per_clock
        yield UnitRates(
            unit=name,
            groups_per_s_at_fmax=report.fmax_mhz * 1e6 * facts.groups_per_clock,
            groups_per_s_at_clock=report.clock_hz * facts.groups_per_clock,
            groups_per_s_over_link=report.baud / BITS_PER_BYTE / size if size else None,
            macs_per_s_at_fmax=None if macs is None else report.fmax_mhz * 1e6 * macs,
        )


def rate_figures(reports: Sequence[BuildReport]) -> list[dict[str, Any]]:
    """Return the rates of every unit of every build, as the accepted figures hold them."""
    return [
        {"board": report.board, **asdict(rates)}
        for report in reports
        for rates in unit_rates(report)
    ]


def write_results(folder: Path, boards: Sequence[str] = tuple(BOARDS)) -> Path:
    """Build boards with default units and ``OTHERS``; write ``fpga.json`` and return its path.

    Figures of other boards stay as they are. Checks that lie beside the builds are kept too, if
    they are of these very builds. Raises what `m2xfp.fpga.flow.bitstream.build` does.
    """
    reports, checks = [], []
    chosen = [(name, units) for name in boards for units in (None, *OTHERS.get(name, ()))]
    for name, units in chosen:
        report, built = build(name, None if units is None else board_instances(units))
        reports.append(report)
        try:
            check = read_figures(built / "check.json")
            if check["build"]["key"] == report.key:
                checks.append(check)
        except (M2xfpError, TypeError, KeyError):
            continue  # none, or one that was damaged
    path = folder / FILE
    known = read_figures(path) if path.exists() else {}
    kept = {
        "builds": [row for row in known.get("builds", []) if row["board"] not in boards],
        "rates": [row for row in known.get("rates", []) if row["board"] not in boards],
        "checks": [row for row in known.get("checks", []) if row["build"]["board"] not in boards],
    }
    kept["builds"] += [asdict(report) for report in reports]
    kept["rates"] += rate_figures(reports)
    kept["checks"] += checks
    order = list(BOARDS)
    for rows in kept.values():
        rows.sort(key=lambda row: order.index(row.get("build", row)["board"]))
    return write_figures(path, kept)
