"""Bitstreams: from a design to a placed, timed and packed configuration, with its figures.

amaranth-boards writes the design and the pin constraints; yosys maps, nextpnr places and routes,
icepack, ecppack or gowin_pack packs. nextpnr and the packers come from PATH if they are recent
enough, otherwise from the packages of pip. Everything is seeded, so the same tools write the same
bytes.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.files import is_whole, refusals, remove, seal, write_atomic
from m2xfp.fpga.flow.boards import Board, BoardTop, find_board
from m2xfp.fpga.flow.families import FAMILIES
from m2xfp.fpga.flow.tools import BuildError, find_tool, last_error, run_tool
from m2xfp.fpga.gateware.design import Design
from m2xfp.fpga.gateware.units import board_instances, folder_name
from m2xfp.plain import read_json, typed
from m2xfp.rtl.catalog import Instance
from m2xfp.tb.cache import locked

__all__ = [
    "BUILD",
    "BuildReport",
    "Cells",
    "FitError",
    "TimingError",
    "build",
    "parse_timing",
    "parse_utilisation",
]

BUILD = Path("build/fpga")

REPORT = "report.json"
OUTPUTS = ("top.json", "nextpnr.json", "routed.json")  # beside the bitstream

# Placements that are tried, in this order, until one meets the clock.
SEEDS = range(1, 9)


class FitError(BuildError):
    """The design needs more cells than the device has; the text gives both numbers."""


class TimingError(BuildError):
    """No placement meets the clock; the text gives the figures."""


# Neither buffer of the link, and no byte of a block memory, is read in a clock in which it is
# written (tests prove it), so what would be read does not matter, and no logic is needed around the
# memories that decides it.
_BUFFERS = "\n".join(
    f"setparam -set COLLISION_X_MASK 1'1 {where}/t:$memrd_v2"
    for where in ("top.design.link", "top.design.*.memory.lane_*")
)


@dataclass(frozen=True)
class Cells:
    """Cells of one kind: used by the design, available in the device."""

    used: int
    available: int


@dataclass(frozen=True)
class BuildReport:
    """What a build gave.

    Members
    -------
    board, units, clock_hz, baud
        What was built.
    cells
        ``luts`` (in iCE40 a logic cell: LUT, carry and flip-flop), ``flip_flops``, ``block_ram``,
        ``dsp``.
    fmax_mhz, constraint_mhz
        What the routed design reaches in nextpnr's timing model, and the clock of the board.
    seed
        The placement that was taken.
    tools
        Version by program.
    bitstream
        File name of the bitstream, beside the report.
    key
        Hash of everything that decides the result; an equal build is not run again.
    instances
        The units with all their parameters, as the device tells them.
    buffer
        Bytes of payload that a request and an answer can have.
    """

    board: str
    units: tuple[str, ...]
    clock_hz: float
    baud: int
    cells: dict[str, Cells]
    fmax_mhz: float
    constraint_mhz: float
    seed: int
    tools: dict[str, str]
    bitstream: str
    key: str
    instances: tuple[str, ...] = ()
    buffer: int = 0

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> "BuildReport":
        """Read a report that `to_json` wrote; InputError if it is none."""
        given = read_json(path)
        try:
            found = typed(cls, given, "report")
            name = found.bitstream
            if Path(name).name != name or not name.isprintable():
                raise InputError(f"report.bitstream is {name!r}; it must be the name of a file")
            if min((found.clock_hz, found.baud, found.fmax_mhz, found.constraint_mhz)) <= 0:
                raise InputError("clocks and rates must be positive")
        except InputError as error:
            raise InputError(f"{path}: {error}; build again: m2xfp fpga build") from error
        return found


def parse_timing(report: Mapping[str, Any]) -> tuple[float, float]:
    """Return (achieved, constraint) in MHz of the clock with the least margin.

    Parameters
    ----------
    report
        What nextpnr's ``--report`` wrote.
    """
    clocks = [(row["achieved"], row["constraint"]) for row in report["fmax"].values()]
    if not clocks:
        raise BuildError("nextpnr reports no clock; the design has no flip-flop that is clocked")
    return min(clocks, key=lambda pair: pair[0] / pair[1])


def parse_utilisation(log: str) -> dict[str, Cells]:
    """Return cells by nextpnr's type name from its log, which it writes before it places."""
    rows = re.findall(r"Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", log)
    return {name: Cells(int(used), int(available)) for name, used, available in rows}


def _check_fit(board: Board, units: Sequence[str], log: str) -> None:
    """Raise FitError if the log shows more cells than the device has."""
    over = {name: n for name, n in parse_utilisation(log).items() if n.used > n.available}
    if over:
        needs = ", ".join(f"{n.used} of {n.available} {name}" for name, n in over.items())
        raise FitError(
            f"{' + '.join(units)} does not fit on {board.name}: it needs {needs}; "
            "choose fewer units (--unit) or a larger board (m2xfp fpga boards)"
        )


def _finished(folder: Path, key: str) -> BuildReport | None:
    """Return the report of a finished build with a key, none if it is another or was damaged."""
    if not is_whole(folder):
        return None
    try:
        known = BuildReport.load(folder / REPORT)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return known if known.key == key and (folder / known.bitstream).exists() else None


def build(
    board_name: str,
    instances: Sequence[Instance] | None = None,
    *,
    baud: int | None = None,
    folder: Path | None = None,
) -> tuple[BuildReport, Path]:
    """Build a bitstream and return its report and folder.

    A finished build of the same design with the same tools is not run again.

    Parameters
    ----------
    board_name
        A name of `BOARDS`.
    instances
        Units, with any parameters (`m2xfp.fpga.gateware.units.board_instances`); the board's
        default if left out.
    baud
        Rate of the serial link; the board's default if left out.
    folder
        Where everything is written; ``build/fpga/<board>/<units>`` if left out, with the parameters
        that are not the default ones.

    Raises
    ------
    UnknownNameError
        No such board.
    InputError
        A baud rate that the clock cannot make, no unit, or one that no board carries.
    FitError
        More cells than the device has.
    TimingError
        No placement meets the clock.
    BuildError
        A tool failed otherwise.
    MissingToolError
        A tool is not installed.
    """
    from m2xfp.progress import track
    from m2xfp.synth.flow.yosys import yosys_command

    board = find_board(board_name)
    instances = board_instances(board.units) if instances is None else list(instances)
    if not instances:
        raise InputError("units is empty; name one (--unit)")
    baud = board.baud if baud is None else baud
    folder = BUILD / board.name / folder_name(instances) if folder is None else folder
    family = FAMILIES[board.family]
    design = Design(board.clock_hz, baud, instances)
    units = design.units

    with (
        refusals(folder),
        ExitStack() as held,
        track(total=4, desc=f"{board.name} {'+'.join(units)}", unit="step", leave=False) as bar,
    ):

        def step(text: str) -> None:
            bar.note(text)

        step("elaborate")
        files = board.load_platform().prepare(BoardTop(design), "top").files
        inputs = {
            name: text if isinstance(text, str) else text.decode()
            for name, text in files.items()
            if name in ("top.il", family.constraints)
        }
        abc_device = "u" if "--up5k" in board.device else "hx"
        synthesis = family.synthesis.format(abc_device=abc_device)
        inputs["synth.ys"] = f"read_rtlil top.il\n{_BUFFERS}\n{synthesis} -json top.json\n"
        yosys, yosys_version = yosys_command()
        nextpnr, nextpnr_version = find_tool(family.nextpnr)
        packer, packer_version = find_tool(family.packer)
        tools = {
            "yosys": yosys_version,
            family.nextpnr: nextpnr_version,
            family.packer: packer_version,
        }
        key = hashlib.sha256(
            json.dumps([inputs, tools, asdict(family), asdict(board), list(SEEDS)]).encode()
        ).hexdigest()
        if (known := _finished(folder, key)) is not None:
            return known, folder
        held.enter_context(locked(folder / ".lock"))
        if (known := _finished(folder, key)) is not None:  # by another process meanwhile
            return known, folder
        report_file = folder / REPORT
        for old in (report_file, folder / family.bitstream):
            old.unlink(missing_ok=True)  # a folder without a report is an unfinished build
        for name, text in inputs.items():
            write_atomic(folder / name, text)
        bar.update()

        step("map")
        if run_tool([*yosys, "synth.ys"], folder, "yosys.log"):
            message = last_error((folder / "yosys.log").read_text())
            raise BuildError(f"yosys failed: {message}; log: {folder / 'yosys.log'}")
        mapped = json.loads((folder / "top.json").read_text())
        types = Counter(cell["type"] for cell in mapped["modules"]["top"]["cells"].values())
        flip_flops = sum(n for t, n in types.items() if re.fullmatch(family.flip_flops, t))
        bar.update()

        for seed in SEEDS:
            step(f"place and route, seed {seed}")
            command = [nextpnr, "--quiet", "--log", "nextpnr.log", *board.device]
            command += ["--json", "top.json", *family.place, "--freq", f"{board.clock_hz / 1e6:g}"]
            command += ["--write", "routed.json", "--report", "nextpnr.json"]
            command += ["--seed", str(seed), "--timing-allow-fail"]
            remove(folder / "nextpnr.log")
            status = run_tool(command, folder, "nextpnr.out")
            written = [folder / name for name in ("nextpnr.log", "nextpnr.out")]
            log = next(path for path in written if path.exists()).read_text()
            _check_fit(board, units, log)
            if status:
                message = last_error(log)
                raise BuildError(f"nextpnr failed: {message}; log: {folder / 'nextpnr.log'}")
            placed = json.loads((folder / "nextpnr.json").read_text())
            achieved, constraint = parse_timing(placed)
            if achieved >= constraint:
                break
        else:
            raise TimingError(
                f"{' + '.join(units)} on {board.name} reaches {achieved:.2f} MHz and the clock is "
                f"{constraint:.2f} MHz, in the last of {len(SEEDS)} placements; choose fewer units "
                f"(--unit) or a faster board; log: {folder / 'nextpnr.log'}"
            )
        bar.update()

        step("pack")
        # Under another name first: who loads a bitstream must never find half of one.
        packed = f"packing-{family.bitstream}"
        pack = [packed if word == family.bitstream else word for word in family.pack]
        if run_tool([packer, *pack], folder, "pack.log"):
            message = last_error((folder / "pack.log").read_text())
            raise BuildError(f"{family.packer} failed: {message}; log: {folder / 'pack.log'}")
        (folder / packed).replace(folder / family.bitstream)
        bar.update()

        used = {cell: row["used"] for cell, row in placed["utilization"].items()}
        cells = {
            name: Cells(sum(used.get(cell, 0) for cell in kinds), board.capacity.get(kinds[0], 0))
            for name, kinds in family.cells.items()
        }
        places = cells.get("flip_flops", cells["luts"]).available  # one beside each LUT
        cells["flip_flops"] = Cells(flip_flops, places)
        report = BuildReport(
            board=board.name,
            units=units,
            clock_hz=board.clock_hz,
            baud=baud,
            cells=cells,
            fmax_mhz=achieved,
            constraint_mhz=constraint,
            seed=seed,
            tools=tools,
            bitstream=family.bitstream,
            key=key,
            instances=tuple(text for _, text in design.identity.units),
            buffer=design.identity.buffer,
        )
        write_atomic(report_file, report.to_json())
        made = (*inputs, *OUTPUTS, family.bitstream, REPORT)
        seal(folder, [name for name in made if (folder / name).exists()])
        return report, folder
