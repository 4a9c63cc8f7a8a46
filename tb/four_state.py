"""A second simulator: test vectors through the emitted Verilog in Icarus, with four-state values.

What is unknown stays unknown there: registers before reset, TDATA and TLAST of a stream that offers
nothing. A result that depends on any of it is x and so differs from what was expected. Before the
vectors, the unit gets other traffic and is reset in the midst of it for a single clock. An
``if`` of an unknown bit takes its else, so a unit is better played with random registers too.
"""

import random
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from m2xfp.errors import MissingToolError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.processes import run
from m2xfp.tb.portable import PASSED, Pauses, bench_name, write_bench
from m2xfp.tb.vectors import TestVectors

if TYPE_CHECKING:
    from m2xfp.tb.regression import Case

__all__ = ["FourStateError", "find_icarus", "run_four_state", "run_regression"]

_PART = 30
"""Pieces of a case that are played; more of them take Icarus long."""


class FourStateError(AssertionError):
    """A beat differs, is unknown or did not come; the text says which."""


def find_icarus() -> None:
    """Raise MissingToolError unless Icarus Verilog is installed."""
    for tool in ("iverilog", "vvp"):
        if shutil.which(tool) is None:
            raise MissingToolError(f"{tool} (Icarus Verilog)", "apt-get install iverilog")


def run_four_state(
    emitted: EmittedFiles,
    vectors: TestVectors,
    folder: Path,
    *,
    seed: int = 0,
    stall: float = 0.3,
    clocks_before: int = 40,
    reset_clocks: int = 1,
    random_registers: bool = False,
) -> int:
    """Play vectors in Icarus Verilog and return the number of beats that were compared.

    Parameters
    ----------
    emitted
        The unit.
    vectors
        Beats that go in, and those that must come out.
    folder
        For everything that is written.
    seed
        Of the pauses.
    stall
        Probability that a stream pauses in a clock.
    clocks_before
        Clocks of traffic, the first of the beats, before the reset that the vectors follow. None of
        what comes out then is compared.
    reset_clocks
        Clocks that the reset lasts.
    random_registers
        Let registers and memories begin with random values; else they are unknown.

    Raises
    ------
    FourStateError
        A difference, an unknown bit, a missing or an extra beat.
    MissingToolError
        Icarus Verilog is not installed.
    """
    find_icarus()
    facts = Facts.load(emitted.json)
    folder.mkdir(parents=True, exist_ok=True)
    bench = bench_name(facts)
    pauses = Pauses(stall, seed, before=clocks_before, reset=reset_clocks)
    write_bench(facts, vectors, folder, pauses)
    text = emitted.verilog.read_text()
    (folder / "unit.v").write_text(_started(text, seed) if random_registers else text)
    for command in (
        ["iverilog", "-g2005", "-o", "bench.vvp", "-s", bench, f"{bench}.v", "unit.v"],
        ["vvp", "-n", "bench.vvp"],
    ):
        done = run(command, cwd=folder)
        if done.returncode:
            raise FourStateError(f"{facts.top}: {command[0]} failed\n{done.stdout}")
    if not re.search(f"^{PASSED}: ", done.stdout, re.MULTILINE):
        raise FourStateError(f"{facts.top}: {done.stdout.strip() or 'no answer'}")
    return sum(map(len, vectors.outputs.values()))


_CONTENTS = re.compile(r" +(\w+)\[\d+\] = \d+'h[0-9a-fx]+;$")
_REGISTER = re.compile(
    r" *(?:output )?reg +(?:\[(?P<high>\d+):0\] +)?(?P<name>\w+)(?: *\[(?P<last>\d+):0\])?[;,)]?$"
)


def run_regression(emitted: EmittedFiles, cases: "Iterable[Case]", folder: Path) -> int:
    """Play a part of each case, and return the number of beats that were compared.

    Unknown and random registers take turns, and so do three amounts of pauses. Cases that differ
    from another in the traffic before their reset alone are left out: there is such traffic here.

    Parameters
    ----------
    emitted
        The unit.
    cases
        Its regression.
    folder
        For everything that is written.

    Raises
    ------
    FourStateError, MissingToolError
        As ``run_four_state``.
    """
    compared = 0
    for number, case in enumerate(cases):
        if case.name.startswith("reset "):
            continue
        vectors = case.phases[0]
        compared += run_four_state(
            emitted,
            vectors.part(0, min(vectors.groups, _PART)),
            folder / str(number),
            seed=number,
            stall=(0.0, 0.3, 0.7)[number % 3],
            clocks_before=11 + number,
            random_registers=number % 2 == 1,
        )
    return compared


def _started(verilog: str, seed: int) -> str:
    """Return Verilog as it is emitted, with an initial value for every register and memory.

    A memory that has its contents from an ``initial`` block is a table of constants and keeps them.
    """
    chosen, modules = random.Random(seed), []
    for module in verilog.split("\nendmodule\n"):
        tables = {found[1] for found in map(_CONTENTS.match, module.splitlines()) if found}
        starts = []
        for found in filter(None, map(_REGISTER.match, module.splitlines())):
            if found["name"] in tables:
                continue
            bits, last = int(found["high"] or 0) + 1, found["last"]
            for place in [""] if last is None else [f"[{n}]" for n in range(int(last) + 1)]:
                value = f"{bits}'h{chosen.getrandbits(bits):x}"
                starts.append(f"    {found['name']}{place} = {value};")
        block = ["  initial begin", *starts, "  end"] if starts else []
        modules.append("\n".join([module, *block]))
    return "\nendmodule\n".join(modules)
