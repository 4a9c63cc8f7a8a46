"""Timing constraints of a module: for synthesis and timing analysis (SDC), and for FPGA tools.

One clock, input and output delays as shares of its period. The reset is synchronous and is timed as
any other input: no path of a unit is false. A module without a clock gets a virtual one. `m2xfp
synth` reads what ``sdc_of_ports`` writes, with delays of zero.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from m2xfp.errors import InputError
from m2xfp.facts import Facts

__all__ = ["TimingBudget", "lpf", "pcf", "sdc", "sdc_of_ports", "xdc"]


@dataclass(frozen=True)
class TimingBudget:
    """What is asked of a module.

    Members
    -------
    period_ns
        Of the clock, in nanoseconds.
    input_share, output_share
        The part of a period that is gone before inputs arrive, and that outputs need after they
        leave; from 0 to below 1.
    """

    period_ns: float = 10.0
    input_share: float = 0.3
    output_share: float = 0.3

    def check(self) -> None:
        """Raise InputError for a period or a share that cannot be."""
        if not 0 < self.period_ns < 1e6:
            raise InputError(f"clock of {self.period_ns} ns: must be above 0 and below 1e6")
        for name, share in (("input", self.input_share), ("output", self.output_share)):
            if not 0 <= share < 1:
                raise InputError(f"{name} delay of {share} periods: must be from 0 to below 1")


def sdc(facts: Facts, budget: TimingBudget) -> str:
    """Return Synopsys Design Constraints, which OpenSTA and commercial tools read."""
    title = "Synopsys Design Constraints"
    return _titled(facts, title) + sdc_of_ports(facts.ports(), facts.clock or None, budget)


def xdc(facts: Facts, budget: TimingBudget) -> str:
    """Return Xilinx Design Constraints for Vivado, to be used out of context."""
    title = "Vivado, out of context"
    return _titled(facts, title) + sdc_of_ports(facts.ports(), facts.clock or None, budget)


def _titled(facts: Facts, title: str) -> str:
    reset = "# The reset is synchronous and timed as the other inputs.\n" if facts.reset else ""
    return f"# {facts.top}: {title}; in nanoseconds.\n{reset}"


def sdc_of_ports(
    ports: Iterable[tuple[str, str, int]], clock: str | None, budget: TimingBudget
) -> str:
    """Return the constraints of any module.

    Parameters
    ----------
    ports
        Name, ``input`` or ``output``, and bits of each.
    clock
        The port that is its clock; None makes the clock virtual.
    budget
        What is asked.

    Raises
    ------
    InputError
        For a budget that cannot be, and for a name that is no plain identifier: it would be a part
        of a Tcl script.
    """
    budget.check()
    name = clock or "virtual_clk"
    source = f" [get_ports {{{clock}}}]" if clock else ""
    lines = [f"create_clock -name {name} -period {budget.period_ns!r}{source}"]
    patterns: dict[str, list[str]] = {"input": [], "output": []}
    for port, direction, width in ports:
        if not re.fullmatch(r"[A-Za-z_]\w*", port, re.ASCII):
            raise InputError(f"port {port!r}: constraints need a plain name; rename it")
        if port != clock:
            patterns[direction].append(port if width == 1 else f"{port}[*]")
    for side, share in (("input", budget.input_share), ("output", budget.output_share)):
        delay = share * budget.period_ns
        if patterns[side]:
            named = f"[get_ports {{{' '.join(patterns[side])}}}]"
            lines.append(f"set_{side}_delay -clock {name} {delay:.6g} {named}")
    return "\n".join(lines) + "\n"


def lpf(facts: Facts, budget: TimingBudget) -> str:
    """Return Lattice preferences for ECP5: the clock's frequency; pins are the board's."""
    budget.check()
    return f"# {facts.top}: ECP5.\n" + (
        f'FREQUENCY PORT "{facts.clock}" {1e3 / budget.period_ns:.6g} MHZ;\n'
        if facts.clock
        else "# It has no clock.\n"
    )


def pcf(facts: Facts, budget: TimingBudget) -> str:
    """Return constraints for nextpnr-ice40: the clock's frequency; pins are the board's."""
    budget.check()
    return f"# {facts.top}: iCE40, nextpnr.\n" + (
        f"set_frequency {facts.clock} {1e3 / budget.period_ns:.6g}\n"
        if facts.clock
        else "# It has no clock.\n"
    )
