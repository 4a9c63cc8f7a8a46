"""The job about what runs descriptors: each once, to its end or its first fault.

The parts of the accelerator are taken out, so that they may answer anything at any time.
"""

import re
from collections.abc import Iterator

from m2xfp.rtl.parts.descriptor_checker import GEMM
from m2xfp.synth.formal.axi import each_module, has
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

RUN, OFFER = "accelerator", "registers__descriptor"


def _run(design: Design, module: str) -> tuple[Flat, list[str]]:
    """Return what runs descriptors, its parts taken out, and what follows one of them.

    ``given`` are the jobs that parts are offered, ``begun`` and ``took`` those that were offered
    and taken for this descriptor, which stays until it is taken itself.
    """
    flat = design.shell(module)
    starts = [name for name in flat.ports if re.search("__(job|cmd)__valid$", name)]
    readies = [name.removesuffix("valid") + "ready" for name in starts]
    outputs = [*starts, f"{OFFER}__ready", "registers__cause", "registers__runs", "writer__flush"]
    ports = {
        name: port
        for name, port in flat.module["ports"].items()
        if port["direction"] == "input" or name in outputs
    }
    ports["fault"] = {"direction": "output", "bits": flat.module["netnames"]["fault"]["bits"]}
    netlist = from_any_state(simple(Flat(flat.top, {**flat.module, "ports": ports})))
    size, gemm = len(starts), f"{OFFER}__payload[31:0] == {GEMM}"
    # Whether each part has work for a product, and for values that are packed; 2: for some.
    work = {"core": (1, 0), "acts_fetcher": (1, 0), "weights_fetcher": (1, 0)}
    work |= {"values_fetcher": (0, 1), "plane_writer": (2, 1), "result_writer": (2, 0)}
    parts = [name.split("__")[0] for name in starts]
    idle = [
        f"(begun[{size - 1 - n}] != ({gemm} ? {work[part][0]} : {work[part][1]}))"
        for n, part in enumerate(parts)
        if work[part][0] < 2
    ]
    writers = [f"begun[{size - 1 - parts.index(part)}]" for part in parts if work[part][0] == 2]
    body = [
        "  wire clear = ~started | rst;",
        f"  wire [{size - 1}:0] given = {{{', '.join(starts)}}};",
        f"  wire [{size - 1}:0] taken = given & {{{', '.join(readies)}}};",
        f"  wire ends = {OFFER}__ready, runs = registers__runs, offered = {OFFER}__valid;",
        f"  wire busy = {' | '.join(name for name in flat.ports if name.endswith('__busy'))};",
        f"  reg [{size - 1}:0] begun = 0, took = 0;",
        "  reg waits = 0, fine_before = 1;",
        f"  reg [{len(netlist.ports[f'{OFFER}__payload']) - 1}:0] was;",
        f"  wire fine = fine_before & (~waits | (offered & {OFFER}__payload == was));",
        "  always @(posedge clk) begin",
        f"    fine_before <= fine; was <= {OFFER}__payload;",
        "    if (clear) begin waits <= 0; begun <= 0; took <= 0; end",
        "    else begin",
        "      waits <= offered & ~ends;",
        "      begun <= ends ? 0 : begun | given;",
        "      took <= ends ? 0 : took | taken;",
        "    end",
        "  end",
        f"  wire product = {gemm};",
        f"  wire idle = {' | '.join(idle)} | ({' + '.join(writers)}) != 1;",
    ]
    return netlist, body


def _run_once(design: Design, module: str) -> Outcome:
    """Prove that each descriptor runs once or is refused, and how it ends.

    Refused: no part is given a job. Without fault: each part that has work took its job, once, the
    core has reported a product, and nothing is written any more. With one: nothing is offered from
    then on, and the cause is that of the clock of the flush.
    """
    netlist, body = _run(design, module)
    body += [
        "  reg flushed = 0, finished = 0, begins = 0, ended = 0, told = 0;",
        "  reg [7:0] cause = 0, checked = 0;",
        "  always @(posedge clk) begin",
        "    flushed <= ~clear & writer__flush; cause <= fault;",
        "    finished <= ~clear & runs & ~busy;",
        "    begins <= ~clear & offered & ~runs & ~ends; checked <= checker_1__cause;",
        "    ended <= ~clear & ends;",
        "    told <= ~clear & ~ends & (told | (runs & core__status__valid));",
        "  end",
        "  wire twice = (ended & ends) | (given & took) != 0;",
        "  wire alone = (ends & ~offered) | (given != 0 & ~runs) | (runs & ends);",
        "  wire late = flushed & (given != 0 | ~ends | registers__cause != cause);",
        "  wire refused = begins & checked != 0;",
        "  wire passed = refused & (runs | ~ends | registers__cause != checked);",
        "  wire lost = begins & checked == 0 & (~runs | ends);",
        "  wire half = ~finished | took != begun | idle | (product & ~told);",
        "  wire unfinished = ends & registers__cause == 0 & half;",
        "  wire wrong = twice | alone | late | passed | lost | unfinished;",
        "  assign bad = started & ~rst & fine & wrong;",
    ]
    return always(netlist.text, harness(netlist, body), LIMIT)


def _run_ends(design: Design, module: str) -> Outcome:
    """Prove that a descriptor ends soon after its parts do, or after a bus that does not go on.

    Parts that take their jobs, and say that they are done; or of which one is owed something for as
    many clocks as the register of the timeout says, here three.
    """
    netlist, body = _run(design, module)
    owed, moved = (
        " | ".join(name for name in netlist.ports if name.endswith(f"__{what}"))
        for what in ("owed", "moved")
    )
    body += [
        "  wire willing = (given & ~taken) == 0 & core__status__valid & ~busy;",
        f"  wire stuck = registers__timeout == 3 & ({owed}) & ~({moved});",
        "  reg [3:0] since_willing = 0, since_stuck = 0;",
        "  wire on = offered & ~ends & ~clear;",
        "  always @(posedge clk) begin",
        "    since_willing <= on & willing ? since_willing + (since_willing < 8) : 0;",
        "    since_stuck <= on & stuck ? since_stuck + (since_stuck < 8) : 0;",
        "  end",
        "  assign bad = started & ~rst & fine & (since_willing == 4 | since_stuck == 6);",
    ]
    return always(netlist.text, harness(netlist, body), LIMIT)


def _run_faults(design: Design) -> Iterator[Design]:
    yield from design.shell_faults(RUN, [f"{OFFER}__ready", "registers__cause", "registers__runs"])


JOBS = (
    Job(
        "descriptors-end",
        "a descriptor runs once or is refused, ends with its cause, and ends when its parts do",
        "IC3",
        has(RUN),
        each_module({RUN: (_run_once, _run_ends)}),
        _run_faults,
    ),
)
