"""What can come beside a unit's Verilog: one row a kind, with what the file is for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.files import write_atomic
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.axi_ports import has_axi_ports
from m2xfp.rtl.verilog.beside.constraints import TimingBudget, lpf, pcf, sdc, xdc
from m2xfp.rtl.verilog.beside.ipxact import axi_ipxact, ipxact
from m2xfp.rtl.verilog.beside.package import package
from m2xfp.rtl.verilog.beside.wrapper import wrapper

__all__ = ["KINDS", "Kind", "check_kinds", "write_axi", "write_beside"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Members
    -------
    suffix
        What follows the module's name in the name of the file.
    title
        What it is for.
    text
        Makes it, from the facts and what is asked of the clock.
    streams
        Whether only units with streams have it.
    """

    suffix: str
    title: str
    text: Callable[[Facts, TimingBudget], str]
    streams: bool = False


def _untimed(function: Callable[[Facts], str]) -> Callable[[Facts, TimingBudget], str]:
    return lambda facts, _: function(facts)


KINDS = {
    "sdc": Kind(".sdc", "clock and delays for synthesis and timing analysis", sdc),
    "xdc": Kind(".xdc", "the same for Vivado, out of context", xdc),
    "lpf": Kind(".lpf", "the clock for nextpnr-ecp5 and Diamond", lpf),
    "pcf": Kind(".pcf", "the clock for nextpnr-ice40", pcf),
    "package": Kind("_pkg.sv", "SystemVerilog structures of every stream", _untimed(package)),
    "ip-xact": Kind(".xml", "IP-XACT 1685-2014 with bus interfaces", _untimed(ipxact)),
    "wrapper": Kind(
        "_axis.v", "aclk, aresetn, TKEEP, Vivado's attributes", _untimed(wrapper), True
    ),
}


def check_kinds(facts: Facts, kinds: Iterable[str]) -> None:
    """Raise InputError, which says what there is, for a kind that a unit has not."""
    if facts.streams:
        return
    for name in kinds:
        if KINDS[name].streams:
            there = ", ".join(other for other, kind in KINDS.items() if not kind.streams)
            raise InputError(f"{facts.top} has no streams, so no {name}; there are: {there}")


def write_beside(
    facts: Facts, folder: Path, kinds: Iterable[str], budget: TimingBudget
) -> list[Path]:
    """Write files of some kinds, keys of ``KINDS``, for a unit, and return their paths.

    A unit without streams has no wrapper, and none is written.
    """
    return [
        write_atomic(folder / f"{facts.top}{kind.suffix}", kind.text(facts, budget))
        for kind in (KINDS[name] for name in kinds)
        if facts.streams or not kind.streams
    ]


def write_axi(instance: Instance, folder: Path, kinds: Iterable[str]) -> list[Path]:
    """Write what is apart for the module ``<top>_axi`` of a unit that has one: its IP-XACT."""
    if "ip-xact" not in kinds or not has_axi_ports(instance.component):
        return []
    text = axi_ipxact(instance.component, instance.facts)
    return [write_atomic(folder / f"{instance.top}_axi.xml", text)]
