"""The bulk player: an emitted unit as a Verilated shared library, driven with numpy arrays.

About a million groups a second, with random stalls on every stream and the stream rules checked in
every clock. Cocotb does the fine-grained protocol work on the same file (protocol.py).
"""

import ctypes
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import EmittedFiles, Facts, Port, Stream
from m2xfp.tb.cache import BUILD_DIR, cached_build
from m2xfp.tb.vectors import Beats
from m2xfp.tb.verilator import find_verilator, require_headers

__all__ = ["Player", "Run", "SimulationError"]

SOURCE = Path(__file__).with_name("simulator.cpp")

# Several models live in one process, all with the class Vtop: nothing of one may bind to another.
CXX_FLAGS = "-fPIC -fvisibility=hidden -fno-gnu-unique"
LINK_FLAGS = "-shared -Wl,-Bsymbolic"


class SimulationError(RuntimeError):
    """The unit broke a stream rule, stopped taking beats or never came to rest."""


@dataclass(frozen=True)
class Run:
    """What came out of a run.

    Members
    -------
    outputs
        Beats that each output stream delivered, by stream name.
    cycles
        Clocks from the end of reset until nothing moved any more.
    signals
        Value of each output port that belongs to no stream, at the end.
    stamps
        With ``stamps=True``: for each stream the clock in which each of its beats was accepted.
    """

    outputs: dict[str, Beats]
    cycles: int
    signals: dict[str, int]
    stamps: dict[str, NDArray[np.uint64]] = field(default_factory=dict)


class Player:
    """An emitted unit as a shared library.

    Parameters
    ----------
    emitted
        The emitted files.
    trace
        Build it so that it can write waveforms (slower, needs the headers of lz4 and zlib).
    build_dir
        Folder of the build cache. The key is a hash of everything that goes into the build.

    Raises
    ------
    MissingToolError
        If Verilator or a program that it needs is missing.
    """

    def __init__(
        self, emitted: EmittedFiles, *, trace: bool = False, build_dir: Path = BUILD_DIR
    ) -> None:
        self.description = Facts.load(emitted.json)
        self.trace = trace
        self.build = _build(emitted.verilog, self.description, trace, build_dir)
        self._library = _load(self.build / "player.so")

    def run(
        self,
        inputs: Mapping[str, Beats],
        *,
        stall: float | Mapping[str, float] = 0.0,
        seed: int = 0,
        settings: Mapping[str, int] | None = None,
        patience: int = 256,
        cycle_limit: int | None = None,
        stamps: bool = False,
        waves: Path | None = None,
        progress: bool = False,
    ) -> Run:
        """Reset the unit, play all beats through it and collect what it delivers.

        Parameters
        ----------
        inputs
            Beats of each input stream, by stream name; a stream left out stays silent.
        stall
            Probability that a stream pauses in a clock: an input presents nothing new, an output is
            not ready. One number for all streams, or by stream name (others do not pause).
        seed
            Seed of the stalls and of the registers' contents before reset.
        settings
            Values of input ports that belong to no stream, held from before reset; others are 0.
        patience
            The run ends when nothing has moved for so many clocks in which no stream paused.
        cycle_limit
            Clocks after which a unit that still delivers is called hung; the default allows 64 for
            each beat, stalls included.
        stamps
            Record the clock in which each beat was accepted.
        waves
            Write an FST trace to this file; only if built with ``trace``.
        progress
            Show a progress bar over the input beats.

        Returns
        -------
        Run
            Output beats, clocks, port values and stamps.

        Raises
        ------
        ValueError
            If beats do not fit their stream, or a name or probability is wrong.
        SimulationError
            If the unit drops valid or changes the payload while stalled, stops accepting beats or
            exceeds ``cycle_limit``.
        """
        description = self.description
        beats = _checked(description, inputs)
        stalls = _stalls(description, stall)
        settings = settings or {}
        widths = {port.name: port.width for port in description.signals if port.is_input}
        for name, number in settings.items():
            if not 0 <= number < 1 << widths.get(name, 0):
                raise ValueError(f"settings: {name}={number} fits no input port; widths: {widths}")
        if waves is not None and not self.trace:
            raise ValueError("waves: this player was built without trace=True")
        if cycle_limit is None:
            share = 1 - max(stalls.values())
            total = sum(len(stream) for stream in beats.values())
            cycle_limit = math.ceil((64 * total + 16 * patience) / share**2)

        with self._model(seed, waves) as model:
            self._prepare(model, beats, stalls, seed, settings, stamps)
            self._advance(model, beats, patience, cycle_limit, progress)
            return self._collect(model, stamps)

    @contextmanager
    def _model(self, seed: int, waves: Path | None) -> Iterator[ctypes.c_void_p]:
        name = None if waves is None else str(waves).encode()
        model = ctypes.c_void_p(self._library.player_new(seed, name))
        try:
            yield model
        finally:
            self._library.player_delete(model)

    def _prepare(
        self,
        model: ctypes.c_void_p,
        beats: dict[str, Beats],
        stalls: dict[str, float],
        seed: int,
        settings: Mapping[str, int],
        stamps: bool,
    ) -> None:
        library, description = self._library, self.description
        seeds = np.random.SeedSequence(seed).generate_state(len(description.streams), np.uint64)
        stream_seeds = {
            stream.name: int(number)
            for stream, number in zip(description.streams, seeds, strict=True)
        }
        for index, stream in enumerate(description.inputs):
            rows = beats[stream.name]
            assert rows.last is not None  # _checked has filled it in
            library.player_set_input(
                model,
                index,
                rows.data.ctypes.data,
                rows.last.ctypes.data,
                len(rows),
                stalls[stream.name],
                stream_seeds[stream.name],
            )
        for index, stream in enumerate(description.outputs):
            library.player_set_output(model, index, stalls[stream.name], stream_seeds[stream.name])
        for index, port in enumerate(description.signals):
            if port.is_input:
                number = settings.get(port.name, 0)
                library.player_set_signal(model, index, number.to_bytes(port.bytes, "little"))
        library.player_set_stamping(model, stamps)
        library.player_reset(model)

    def _advance(
        self,
        model: ctypes.c_void_p,
        beats: dict[str, Beats],
        patience: int,
        cycle_limit: int,
        progress: bool,
    ) -> None:
        from tqdm import tqdm

        library, description = self._library, self.description
        accepted = dict.fromkeys(beats, 0)
        total = sum(len(rows) for rows in beats.values())
        with tqdm(total=total, unit="beat", disable=not progress, desc=description.top) as bar:
            status = 0
            while status == 0:
                done = library.player_cycles(model)
                if done >= cycle_limit:
                    raise SimulationError(
                        f"{description.top}: still busy after {done} clocks; {accepted} accepted"
                    )
                status = library.player_step(model, min(1 << 16, cycle_limit - done), patience)
                for index, stream in enumerate(description.inputs):
                    accepted[stream.name] = library.player_input_accepted(model, index)
                bar.update(sum(accepted.values()) - bar.n)
        if status == 2:
            message = library.player_error(model).decode()
            raise SimulationError(f"{description.top}: {message}")
        for name, rows in beats.items():
            if accepted[name] < len(rows):
                raise SimulationError(
                    f"{description.top}: stream {name} took {accepted[name]} of {len(rows)} beats, "
                    f"then nothing moved for {patience} clocks"
                )

    def _collect(self, model: ctypes.c_void_p, stamps: bool) -> Run:
        library, description = self._library, self.description
        outputs: dict[str, Beats] = {}
        times: dict[str, NDArray[np.uint64]] = {}
        for index, stream in enumerate(description.outputs):
            count = library.player_output_accepted(model, index)
            rows = _copy(library.player_output_rows(model, index), count * stream.bytes, np.uint8)
            last = _copy(library.player_output_lasts(model, index), count, np.bool_)
            outputs[stream.name] = Beats(rows.reshape(count, stream.bytes), last)
            if stamps:
                address = library.player_output_stamps(model, index)
                times[stream.name] = _copy(address, count, np.uint64)
        if stamps:
            for index, stream in enumerate(description.inputs):
                count = library.player_input_accepted(model, index)
                address = library.player_input_stamps(model, index)
                times[stream.name] = _copy(address, count, np.uint64)
        signals = {}
        for index, port in enumerate(description.signals):
            if not port.is_input:
                buffer = ctypes.create_string_buffer(port.bytes)
                library.player_get_signal(model, index, buffer)
                signals[port.name] = int.from_bytes(buffer.raw, "little")
        return Run(outputs, library.player_cycles(model), signals, times)


def _checked(description: Facts, inputs: Mapping[str, Beats]) -> dict[str, Beats]:
    """Return contiguous beats for every input stream; ValueError if some do not fit."""
    names = [stream.name for stream in description.inputs]
    for name in inputs:
        if name not in names:
            raise ValueError(f"inputs: {description.top} has no input stream {name!r}; {names}")
    checked = {}
    for stream in description.inputs:
        beats = inputs.get(stream.name, Beats(np.zeros((0, stream.bytes), np.uint8)))
        data, last = beats.data, beats.last
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != stream.bytes:
            raise ValueError(
                f"stream {stream.name}: rows must be uint8 [beats, {stream.bytes}], "
                f"got {data.dtype} {list(data.shape)}"
            )
        if last is None:
            last = np.zeros(len(data), bool)
        elif last.shape != (len(data),):
            raise ValueError(f"stream {stream.name}: last must be [{len(data)}]")
        checked[stream.name] = Beats(np.ascontiguousarray(data), np.ascontiguousarray(last, bool))
    return checked


def _stalls(description: Facts, stall: float | Mapping[str, float]) -> dict[str, float]:
    names = [stream.name for stream in description.streams]
    stalls = dict(stall) if isinstance(stall, Mapping) else dict.fromkeys(names, stall)
    for name, probability in stalls.items():
        if name not in names:
            raise ValueError(f"stall: {description.top} has no stream {name!r}; there are: {names}")
        if not 0 <= probability < 1:
            raise ValueError(f"stall: probability {probability} must be at least 0 and below 1")
    return {name: stalls.get(name, 0.0) for name in names}


def _copy(address: int, count: int, dtype: Any) -> NDArray[Any]:
    """Copy ``count`` items at ``address`` (any value if there are none) into a new array."""
    return np.frombuffer(ctypes.string_at(address, count * np.dtype(dtype).itemsize), dtype).copy()


def _streams_header(description: Facts) -> str:
    """Return streams.h: the tables that tell player.cpp the unit's ports."""

    def port(stream: Stream) -> str:
        members = ", ".join(f"&top.{name}" for name in stream.ports)
        return f'    {{{members}, {stream.bytes}, "{stream.prefix}"}},'

    def signal(port: Port) -> str:
        return f"    {{&top.{port.name}, {port.bytes}}},"

    def table(kind: str, name: str, rows: list[str]) -> str:
        body = "\n".join(rows)
        return (
            f"std::vector<{kind}> {name}([[maybe_unused]] Vtop& top) {{ return {{\n{body}\n}}; }}"
        )

    return "\n".join(
        [
            table("Port", "input_ports", [port(stream) for stream in description.inputs]),
            table("Port", "output_ports", [port(stream) for stream in description.outputs]),
            table("Signal", "signals", [signal(port) for port in description.signals]),
            "",
        ]
    )


def _build(verilog: Path, description: Facts, trace: bool, build_dir: Path) -> Path:
    """Return the folder with player.so, building it unless it is there already."""
    verilator = find_verilator()
    header = _streams_header(description)
    arguments = [
        *("--cc", "--exe", "--build", "-O3", "--x-assign", "unique", "--x-initial", "unique"),
        *("--prefix", "Vtop", "--top-module", description.top, "-Wno-fatal"),
        *("-CFLAGS", CXX_FLAGS, "-LDFLAGS", LINK_FLAGS, "-j", "0"),
        *("-Mdir", "obj", "-o", "../player.so", *(["--trace-fst"] if trace else [])),
        *(verilog.name, SOURCE.name),
    ]

    def build(folder: Path) -> None:
        if trace:
            require_headers({"lz4.h": "liblz4-dev", "zlib.h": "zlib1g-dev"})
        (folder / "streams.h").write_text(header)
        shutil.copy(SOURCE, folder)
        done = verilator.run(arguments, folder)
        if done.returncode:
            raise RuntimeError(f"Verilator failed on {verilog}:\n{done.stdout}")
        shutil.rmtree(folder / "obj")

    facts = [header, SOURCE.read_text(), verilator.version, *arguments]
    return cached_build(build_dir, f"{description.top}-player", verilog, facts, build)


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path.resolve()))
    size, pointer, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    number, real = ctypes.c_uint64, ctypes.c_double
    signatures = {
        "new": (pointer, number, text),
        "delete": (None, pointer),
        "set_input": (None, pointer, size, pointer, pointer, size, real, number),
        "set_output": (None, pointer, size, real, number),
        "set_signal": (None, pointer, size, text),
        "get_signal": (None, pointer, size, text),
        "set_stamping": (None, pointer, ctypes.c_int),
        "reset": (None, pointer),
        "step": (ctypes.c_int, pointer, number, number),
        "error": (text, pointer),
        "cycles": (number, pointer),
        "input_accepted": (size, pointer, size),
        "input_stamps": (pointer, pointer, size),
        "output_accepted": (size, pointer, size),
        "output_rows": (pointer, pointer, size),
        "output_lasts": (pointer, pointer, size),
        "output_stamps": (pointer, pointer, size),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, f"player_{name}")
        function.restype, function.argtypes = result, arguments
    return library
