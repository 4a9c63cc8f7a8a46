"""The engines: each takes a question and says that it holds, or why not, and how far it looked."""

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from m2xfp.errors import MissingToolError
from m2xfp.processes import run
from m2xfp.synth.formal.netlist import ProofError, run_yosys
from m2xfp.synth.formal.smt import satisfiable

__all__ = [
    "BITWUZLA",
    "ENGINES",
    "Outcome",
    "abc",
    "aiger",
    "always",
    "asking",
    "never",
    "unrolled",
    "within",
]


ABC, BITWUZLA = ENGINES = ("abc", "bitwuzla")
_CHOSEN: ContextVar[str] = ContextVar("engine", default=ABC)


@dataclass(frozen=True)
class Outcome:
    """What an engine found.

    Members
    -------
    holds
        Whether the property holds. False means a counterexample: an engine that gives up raises.
    depth
        How far it looked: clocks, clauses of an invariant, or cases.
    seconds
        Of the engine, by the clock.
    """

    holds: bool
    depth: str
    seconds: float


@contextmanager
def asking(engine: str) -> Iterator[None]:
    """Ask this one of ``ENGINES`` while the context lasts."""
    token = _CHOSEN.set(engine)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def abc(folder: Path, commands: str, limit: int) -> str:
    """Run commands of ABC in a folder, for some seconds at most, and return what it said."""
    try:
        import pyosys
    except ImportError:
        raise MissingToolError(
            "ABC (Python package pyosys)", 'pip install "m2xfp[synth]"'
        ) from None
    program = Path(pyosys.__file__).with_name("yosys-abc")
    try:
        done = run([str(program), "-q", commands], cwd=folder, merged=False, seconds=limit)
    except subprocess.TimeoutExpired:
        raise ProofError(f"ABC came to no end in {limit} s") from None
    return done.stdout + done.stderr


def aiger(folder: Path, design: str, harness: str) -> None:
    """Write harness.aig into a folder: ``bad`` of the harness around a netlist in JSON."""
    (folder / "design.json").write_text(design)
    (folder / "harness.v").write_text(harness)
    run_yosys(
        folder,
        "read_json design.json\nread_verilog -sv harness.v\nhierarchy -check -top harness\n"
        "proc -norom\nflatten\nopt_clean -purge\nopt_expr\nopt_merge\ntechmap\ndffunmap\n"
        "opt_expr\nopt_merge\nsetundef -undriven -anyseq\naigmap\nopt_clean -purge\n"
        "write_aiger -zinit harness.aig\n",
    )


def _answer(said: str, what: str) -> bool:
    """Return whether ABC proved it; ProofError if it came to no end."""
    if re.search(r"^Status = *1 ", said, re.MULTILINE):
        return True
    if re.search(r"^Status = *0 ", said, re.MULTILINE):
        return False
    raise ProofError(f"{what} came to no end: {said.strip()[-300:]}")


def always(design: str, harness: str, limit: int) -> Outcome:
    """Prove that ``bad`` of a harness is never high, by an invariant that ABC finds (IC3)."""
    if _CHOSEN.get() != ABC:
        raise ProofError("IC3 is ABC's alone")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        aiger(folder, design, harness)
        said = abc(folder, "read_aiger harness.aig; pdr; print_status", limit)
        holds = _answer(said, "IC3")
    if holds:
        clauses = re.search(r"Invariant F\[\d+\] : (\d+) clauses", said)
        depth = f"any, {clauses.group(1)} clauses" if clauses else "any"
    else:
        frame = re.search(r"in frame (\d+)", said)
        depth = f"fails in clock {frame.group(1)}" if frame else "fails"
    return Outcome(holds, depth, time.perf_counter() - begin)


def within(design: str, harness: str, clocks: int, limit: int) -> Outcome:
    """Prove that ``bad`` of a harness is not high in some clocks, the first included."""

    def violated(folder: Path) -> bool:
        aiger(folder, design, harness)
        said = abc(folder, f"read_aiger harness.aig; bmc3 -F {clocks}; print_status", limit)
        if re.search(r"was asserted in frame|^Status = *0 ", said, re.MULTILINE):
            return True
        if f"No output asserted in {clocks} frames" not in said:
            raise ProofError(f"bounded model checking came to no end: {said.strip()[-300:]}")
        return False

    return _bounded(violated, f"{clocks} clocks", design, harness, clocks, limit)


def never(design: str, harness: str, limit: int) -> Outcome:
    """Prove that ``bad`` of a harness without state is not high for any inputs, by SAT sweeping."""

    def violated(folder: Path) -> bool:
        aiger(folder, design, harness)
        return _swept(abc(folder, "read_aiger harness.aig; iprove", limit))

    return _bounded(violated, "all inputs", design, harness, 1, limit)


def unrolled(design: str, harness: str, clocks: int, limit: int) -> Outcome:
    """Prove that ``bad`` of a harness is not high in some clocks, by SAT sweeping of them all.

    Equal values are found and joined from the inputs on: the better way for two like circuits.
    """

    def violated(folder: Path) -> bool:
        aiger(folder, design, harness)
        steps = f"strash; frames -i -F {clocks}; orpos; strash; iprove"
        return _swept(abc(folder, f"read_aiger harness.aig; {steps}", limit))

    return _bounded(violated, f"{clocks} clocks", design, harness, clocks, limit)


def _swept(said: str) -> bool:
    """Return whether SAT sweeping found inputs; ProofError if it came to no end."""
    found = re.search(r"\b(UNSATISFIABLE|SATISFIABLE)\b", said)
    if found is None:
        raise ProofError(f"SAT came to no end: {said.strip()[-300:]}")
    return found.group(1) == "SATISFIABLE"


def _bounded(
    violated: Callable[[Path], bool],
    depth: str,
    design: str,
    harness: str,
    clocks: int,
    limit: int,
) -> Outcome:
    """Ask ABC's ``violated``, or the engine that `asking` chose, about some clocks."""
    with tempfile.TemporaryDirectory() as name:
        folder, begin = Path(name), time.perf_counter()
        if _CHOSEN.get() == BITWUZLA:
            found = satisfiable(folder, design, harness, clocks, limit)
        else:
            found = violated(folder)
    return Outcome(not found, "fails" if found else depth, time.perf_counter() - begin)
