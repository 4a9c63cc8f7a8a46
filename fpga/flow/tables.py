"""Tables of the accepted FPGA builds, drawn from their figures alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2xfp.results import read_figures
from m2xfp.tables import aligned_table

__all__ = ["FILE", "build_table", "check_table", "rate_table", "tables"]

FILE = "fpga.json"
"""Where the accepted builds stand, in docs/results."""

Figures = Sequence[Mapping[str, Any]]


def build_table(builds: Figures) -> str:
    """Return what each build holds and how fast it is, as markdown."""
    rows = [("board", "units", "LUTs", "flip-flops", "block RAM", "fmax MHz", "clock MHz", "seed")]
    for build in builds:
        luts, flops, memories = (
            f"{build['cells'][kind]['used']} of {build['cells'][kind]['available']}"
            for kind in ("luts", "flip_flops", "block_ram")
        )
        rows.append(
            (
                *(build["board"], ", ".join(build["units"]), luts, flops, memories),
                *(f"{build['fmax_mhz']:.1f}", f"{build['constraint_mhz']:.0f}"),
                str(build["seed"]),
            )
        )
    tools = {f"{tool} {version}" for build in builds for tool, version in build["tools"].items()}
    return (
        f"nextpnr's figures for routed designs, link included.\n\n{aligned_table(rows)}\n"
        f"Tools: {', '.join(sorted(tools))}.\n"
    )


def rate_table(rates: Figures) -> str:
    """Return how fast the units of each build are, as markdown."""
    rows = [
        ("board", "unit", "Mgroups/s at fmax", "at the clock", "over the link", "GMAC/s at fmax")
    ]
    for rate in rates:
        line, macs = rate["groups_per_s_over_link"], rate["macs_per_s_at_fmax"]
        rows.append(
            (
                *(rate["board"], rate["unit"]),
                f"{rate['groups_per_s_at_fmax'] / 1e6:.2f}",
                f"{rate['groups_per_s_at_clock'] / 1e6:.2f}",
                f"{line:,.0f} groups/s" if line else "reuses operands",
                f"{macs / 1e9:.2f}" if macs else "",
            )
        )
    return (
        "Rates of the units alone; those that multiply count pairs of groups.\n\n"
        f"{aligned_table(rows)}"
    )


def _faults(faults: Mapping[str, Any] | None) -> tuple[str, str]:
    if not faults:
        return "", ""
    kind = "LUTs inverted" if faults["kind"] == "lut" else "LUT bits inverted"
    return f"{faults['faults']} {kind}", f"{faults['detected'] / faults['faults']:.1%}"


def check_table(checks: Sequence[Mapping[str, Any]]) -> str:
    """Return what simulations of these builds have shown (`m2xfp.fpga.check.bitstream_check`)."""
    rows: list[tuple[str, ...]] = [
        (
            *("board", "units", "read back from", "LUTs", "flip-flops", "memories", "requests"),
            *("bytes both ways", "groups", "faults", "detected"),
        )
    ]
    survivors = [("board", "LUT", "why")]
    beside = [
        f"- {check['build']['board']}, {', '.join(check['build']['units'])}: {check['beside']}\n"
        for check in checks
        if check.get("beside")
    ]
    for check in checks:
        board, faults = check["build"]["board"], check["faults"]
        survivors += [
            (board, s["cell"], s["reason"]) for s in (faults["survivors"] if faults else ())
        ]
        rows.append(
            (
                *(board, ", ".join(check["build"]["units"]), check["source"]),
                *(str(check[name]) for name in ("luts", "flip_flops", "memories", "requests")),
                str(check["bytes_sent"] + check["bytes_received"]),
                ", ".join(f"{unit} {count}" for unit, count in check["groups"].items()),
                *_faults(faults),
            )
        )
    text = (
        "What `m2xfp fpga check` has shown of these builds; every answer is the golden model's."
        f"\n\n{aligned_table(rows)}"
    )
    if beside:
        text += f"\nBeside these groups:\n\n{''.join(beside)}"
    if len(survivors) > 1:
        text += f"\nFaults that changed no byte:\n\n{aligned_table(survivors)}"
    return text


def tables(results: Path) -> dict[str, str]:
    """Return the tables of the accepted builds: ``fpga-builds``, ``-rates``, ``-checks``."""
    path = results / FILE
    if not path.exists():
        return {}
    figures = read_figures(path)
    return {
        "fpga-builds": build_table(figures["builds"]),
        "fpga-rates": rate_table(figures["rates"]),
        "fpga-checks": check_table(figures["checks"]),
    }
