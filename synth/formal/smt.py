"""The second engine: the same question in words of bits, decided by the SMT solver Bitwuzla.

ABC gets and-gates from yosys' mapping, Bitwuzla the operators themselves, and neither has code of
the other. Only questions about a number of clocks can be asked here; IC3 is ABC's alone.
"""

import re
import subprocess
import sys
from pathlib import Path

from m2xfp.extras import require
from m2xfp.processes import run
from m2xfp.synth.formal.netlist import ProofError, run_yosys

__all__ = ["question", "satisfiable"]

# A process of its own, which a limit of time can end.
_SOLVE = """
import bitwuzla
bitwuzla.Parser(bitwuzla.TermManager(), bitwuzla.Options()).parse("question.smt2")
"""


def question(folder: Path, design: str, harness: str, clocks: int) -> str:
    """Return, in SMT-LIB, whether ``bad`` of a harness is high in one of some clocks."""
    (folder / "design.json").write_text(design)
    (folder / "harness.v").write_text(harness)
    run_yosys(
        folder,
        "read_json design.json\nread_verilog -sv harness.v\nhierarchy -check -top harness\n"
        "proc -norom\nflatten\ndffunmap\nopt_clean -purge\nsetundef -undriven -anyseq\n"
        "write_smt2 -stbv harness.smt2\n",
    )
    states = range(clocks)
    high = " ".join(f"(|harness_n bad| s{n})" for n in states)
    return "\n".join(
        [
            "(set-logic QF_BV)",
            (folder / "harness.smt2").read_text(),
            *(f"(declare-const s{n} |harness_s|)" for n in states),
            "(assert (|harness_i| s0))",
            *(f"(assert (|harness_t| s{n} s{n + 1}))" for n in states[:-1]),
            f"(assert (or false {high}))",
            "(check-sat)",
            "",
        ]
    )


def satisfiable(folder: Path, design: str, harness: str, clocks: int, limit: int) -> bool:
    """Return whether ``bad`` of a harness can be high in one of some clocks.

    Raises
    ------
    ProofError
        No answer in ``limit`` seconds.
    MissingToolError
        Bitwuzla is not installed.
    """
    require("bitwuzla")
    (folder / "question.smt2").write_text(question(folder, design, harness, clocks))
    try:
        done = run([sys.executable, "-c", _SOLVE], cwd=folder, seconds=limit)
    except subprocess.TimeoutExpired:
        raise ProofError(f"Bitwuzla came to no end in {limit} s") from None
    found = re.search(r"^(un)?sat$", done.stdout, re.MULTILINE)
    if found is None:
        raise ProofError(f"Bitwuzla gave no answer: {done.stdout.strip()[-300:]}")
    return found.group(1) is None
