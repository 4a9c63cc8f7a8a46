"""The bulk simulator: an emitted unit as a Verilated shared library, driven with numpy arrays.

About a million groups a second, with random stalls on every stream and the stream rules checked in
every clock. Cocotb does the fine-grained protocol work on the same file (tb/protocol/). A unit
without streams is played clock by clock through its ports.
"""

import ctypes
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import EmittedFiles, Facts, Port, Stream
from m2xfp.tb.cache import BUILD_DIR
from m2xfp.tb.points import Point, read_points
from m2xfp.tb.shared_library import Signatures, build_library, load_library
from m2xfp.tb.vectors import Beats

__all__ = ["SIGNATURES", "SOURCE", "BulkSimulator", "Run", "SimulationError", "ports_header"]

SOURCE = Path(__file__).with_name("simulator.cpp")
# What a build that counts finds instead of Verilator's own header, and where.
COUNTING = {"obj/verilated_cov.h": Path(__file__).with_name("wide_toggles.h").read_text()}
# Options of Verilator that count; words of any width.
COVERAGE = (
    *("--coverage-line", "--coverage-toggle", "--coverage-underscore"),
    *("--coverage-max-width", str(1 << 20)),
)


class SimulationError(RuntimeError):
    """The unit broke a stream rule, stopped taking beats or never came to rest."""


@dataclass(frozen=True)
class Run:
    """What came out of a run.

    Members
    -------
    outputs
        Beats that each output stream delivered, by stream name; of a unit without streams the words
        of each output port, by port name.
    cycles
        Clocks from the end of reset until nothing moved any more.
    signals
        Value of each output port that belongs to no stream, at the end.
    stamps
        With ``stamps=True``: for each stream the clock in which each of its beats was accepted.
    hows
        With ``stamps=True``: how each of its beats came: 0 at once, +1 after clocks without valid,
        +2 after clocks without ready.
    at_reset
        For each stream its valid, +2 for its ready, in the clock of the reset.
    """

    outputs: dict[str, Beats]
    cycles: int
    signals: dict[str, int]
    stamps: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    hows: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    at_reset: dict[str, int] = field(default_factory=dict)


class BulkSimulator:
    """An emitted unit as a shared library.

    Parameters
    ----------
    emitted
        The emitted files.
    trace
        Build it so that it can write waveforms (slower, needs the headers of lz4 and zlib).
    coverage
        Build it so that it counts what is executed and which bits change (`m2xfp.tb.points`). What
        is undefined, or not set by reset, then begins as 0.
    library
        A build of another simulator's that has the same functions; None to build one.
    build_dir
        Folder of the build cache. The key is a hash of everything that goes into the build.
    options
        More options of Verilator.

    Members
    -------
    facts
        The unit.
    trace
        Whether it can write waveforms.
    build
        Folder of the build.
    counts
        With ``coverage``: how often each point was covered, by all runs; in each from the reset on.
    before
        With ``coverage``: counts of the last run from its begin, when all was 0, to that reset.

    Raises
    ------
    MissingToolError
        If Verilator or a program that it needs is missing.
    """

    def __init__(
        self,
        emitted: EmittedFiles,
        *,
        trace: bool = False,
        coverage: bool = False,
        library: Path | None = None,
        build_dir: Path = BUILD_DIR,
        options: Sequence[str] = (),
    ) -> None:
        self.facts = Facts.load(emitted.json)
        self.trace, self.coverage = trace, coverage
        self.counts: Counter[Point] = Counter()
        self.before: Counter[Point] = Counter()
        library = library or build_library(
            emitted.verilog,
            self.facts.top,
            [SOURCE],
            name="coverage" if coverage else "bulk",
            undefined="0" if coverage else "unique",
            options=(*(COVERAGE if coverage else ()), *options),
            headers={"ports.h": ports_header(self.facts), **(COUNTING if coverage else {})},
            trace=trace,
            build_dir=build_dir,
        )
        self.build = library.parent
        self._library = load_library(library, "simulator", SIGNATURES)

    def run(
        self,
        inputs: Mapping[str, Beats],
        *,
        stall: float | Mapping[str, float] = 0.0,
        seed: int = 0,
        settings: Mapping[str, int] | None = None,
        patience: int = 256,
        cycle_limit: int | None = None,
        before: int = 0,
        stamps: bool = False,
        waves: Path | None = None,
        progress: bool = False,
    ) -> Run:
        """Reset the unit, play all beats through it and collect what it delivers.

        Parameters
        ----------
        inputs
            Beats of each input stream, by stream name; a stream left out stays silent. Of a unit
            without streams the words of each input port, by port name, a clock each; they must be
            equally many, and a port left out is 0.
        stall
            Probability that a stream pauses in a clock: an input presents nothing new, an output is
            not ready. One number for all streams, or by stream name (others do not pause).
        seed
            Seed of the stalls and of the registers' contents before reset.
        settings
            Values of input ports that belong to no stream, held from before reset; others are 0.
        patience
            The run ends when nothing has moved for so many clocks in which no stream paused, or
            twice as many as the unit may be at work for (``clocks_per_block``) if that is more.
        cycle_limit
            Clocks after which a unit that still delivers is called hung; the default allows 64 for
            each beat, stalls included.
        before
            Clocks of traffic, the first of the beats, before a reset in its midst that the run then
            begins with.
        stamps
            Record the clock in which each beat was accepted, and how it came.
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
        facts = self.facts
        if waves is not None and not self.trace:
            raise ValueError("waves: this simulator was built without trace=True")
        if not facts.streams:
            return self._play_ports(inputs, seed, waves)
        beats = _checked(facts, inputs)
        stalls = _stalls(facts, stall)
        settings = settings or {}
        widths = {port.name: port.width for port in facts.signals if port.is_input}
        for name, number in settings.items():
            if not 0 <= number < 1 << widths.get(name, 0):
                raise ValueError(f"settings: {name}={number} fits no input port; widths: {widths}")
        if cycle_limit is None:
            share = 1 - max(stalls.values())
            total = sum(len(stream) for stream in beats.values())
            cycle_limit = math.ceil((64 * total + 16 * patience) / share**2)

        with self._model(seed, waves) as model:
            self._set_signals(model, settings)
            self._begin(model, beats, stalls, seed, before)
            self._prepare(model, beats, stalls, seed, stamps)
            self._library.simulator_reset(model)
            self._advance(model, beats, patience, cycle_limit, progress)
            return self._collect(model, stamps)

    def run_phases(
        self,
        phases: Sequence[Mapping[str, Beats]],
        *,
        stalls: Sequence[float | Mapping[str, float]] = (),
        seed: int = 0,
        settings: Mapping[str, int] | None = None,
        patience: int = 256,
        before: int = 0,
    ) -> list[Run]:
        """Reset a unit with streams once, then play one set of beats after the other.

        A phase begins when nothing has moved for ``patience`` clocks. ``stalls`` has a probability
        for each; other parameters and errors are those of ``run``. So is what is returned for each
        phase, but for its clocks, which count from the reset.
        """
        runs: list[Run] = []
        done = dict.fromkeys((stream.name for stream in self.facts.outputs), 0)
        with self._model(seed, None) as model:
            self._set_signals(model, settings or {})
            for number, inputs in enumerate(phases):
                beats = _checked(self.facts, inputs)
                stall = _stalls(self.facts, stalls[number] if stalls else 0.0)
                if number == 0:
                    self._begin(model, beats, stall, seed, before)
                self._prepare(model, beats, stall, seed + number, stamps=self.coverage)
                if number == 0:
                    self._library.simulator_reset(model)
                total = sum(len(stream) for stream in beats.values())
                limit = math.ceil((64 * total + 16 * patience) / (1 - max(stall.values())) ** 2)
                limit += self._library.simulator_cycles(model)
                self._advance(model, beats, patience, limit, progress=False)
                run = self._collect(model, stamps=self.coverage)
                outputs = {
                    name: found.part(done[name], len(found)) for name, found in run.outputs.items()
                }
                done = {name: len(found) for name, found in run.outputs.items()}
                runs.append(replace(run, outputs=outputs, stamps={}))
        return runs

    def _begin(
        self,
        model: ctypes.c_void_p,
        beats: dict[str, Beats],
        stalls: dict[str, float],
        seed: int,
        clocks: int,
    ) -> None:
        """Reset a model and let traffic begin, for the reset that comes next to end it."""
        library = self._library
        library.simulator_silence(model)
        library.simulator_reset(model)
        if clocks:
            self._prepare(model, beats, stalls, seed, stamps=False)
            if library.simulator_step(model, clocks, clocks + 1) == 2:
                raise SimulationError(
                    f"{self.facts.top}: {library.simulator_error(model).decode()}"
                )
        if self.coverage:
            self.before = self._counts(model)
            library.simulator_zero_coverage(model)

    def _counts(self, model: ctypes.c_void_p) -> Counter[Point]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "coverage.dat")
            self._library.simulator_write_coverage(model, str(path).encode())
            return read_points(path)

    def _play_ports(self, inputs: Mapping[str, Beats], seed: int, waves: Path | None) -> Run:
        """Give the ports a word in every clock; outputs are those of ``latency`` clocks later."""
        facts = self.facts
        given, clocks = _checked_ports(facts, inputs)
        rows = np.concatenate([given, np.zeros((facts.latency, given.shape[1]), np.uint8)])
        outputs = [port for port in facts.signals if not port.is_input]
        found = np.zeros((len(rows), sum(port.bytes for port in outputs)), np.uint8)
        with self._model(seed, waves) as model:
            self._begin(model, {}, {}, seed, 0)
            self._library.simulator_play_ports(
                model, rows.ctypes.data, found.ctypes.data, len(rows)
            )
        ends = np.cumsum([port.bytes for port in outputs])
        words = np.split(found[facts.latency :], ends[:-1], axis=1)
        return Run(
            {
                port.name: Beats(np.ascontiguousarray(word))
                for port, word in zip(outputs, words, strict=True)
            },
            clocks,
            {},
        )

    @contextmanager
    def _model(self, seed: int, waves: Path | None) -> Iterator[ctypes.c_void_p]:
        name = None if waves is None else str(waves).encode()
        model = ctypes.c_void_p(self._library.simulator_new(seed, name))
        try:
            yield model
            if self.coverage:
                self.counts.update(self._counts(model))
                # What depends on constants alone is executed once, before any reset.
                once = {point: n for point, n in self.before.items() if point.kind != "toggle"}
                self.counts.update(once)
        finally:
            self._library.simulator_delete(model)

    def _prepare(
        self,
        model: ctypes.c_void_p,
        beats: dict[str, Beats],
        stalls: dict[str, float],
        seed: int,
        stamps: bool,
    ) -> None:
        library, facts = self._library, self.facts
        seeds = np.random.SeedSequence(seed).generate_state(len(facts.streams), np.uint64)
        stream_seeds = {
            stream.name: int(number) for stream, number in zip(facts.streams, seeds, strict=True)
        }
        for index, stream in enumerate(facts.inputs):
            rows = beats[stream.name]
            assert rows.last is not None  # _checked has filled it in
            library.simulator_set_input(
                model,
                index,
                rows.data.ctypes.data,
                rows.last.ctypes.data,
                len(rows),
                stalls[stream.name],
                stream_seeds[stream.name],
            )
        for index, stream in enumerate(facts.outputs):
            library.simulator_set_output(
                model, index, stalls[stream.name], stream_seeds[stream.name]
            )
        library.simulator_set_stamping(model, stamps or self.coverage)

    def _set_signals(self, model: ctypes.c_void_p, settings: Mapping[str, int]) -> None:
        for index, port in enumerate(self.facts.signals):
            if port.is_input:
                word = settings.get(port.name, 0).to_bytes(port.bytes, "little")
                self._library.simulator_set_signal(model, index, word)

    def _advance(
        self,
        model: ctypes.c_void_p,
        beats: dict[str, Beats],
        patience: int,
        cycle_limit: int,
        progress: bool,
    ) -> None:
        from m2xfp.progress import track

        library, facts = self._library, self.facts
        accepted = dict.fromkeys(beats, 0)
        total = sum(len(rows) for rows in beats.values())
        patience = max(patience, 2 * facts.clocks_per_block)
        with track(total=total, unit="beat", quiet=not progress, desc=facts.top) as bar:
            status = 0
            while status == 0:
                done = library.simulator_cycles(model)
                if done >= cycle_limit:
                    raise SimulationError(
                        f"{facts.top}: still busy after {done} clocks; {accepted} accepted"
                    )
                status = library.simulator_step(model, min(1 << 16, cycle_limit - done), patience)
                for index, stream in enumerate(facts.inputs):
                    accepted[stream.name] = library.simulator_input_accepted(model, index)
                bar.update(sum(accepted.values()) - bar.n)
        if status == 2:
            message = library.simulator_error(model).decode()
            raise SimulationError(f"{facts.top}: {message}")
        for name, rows in beats.items():
            if accepted[name] < len(rows):
                raise SimulationError(
                    f"{facts.top}: stream {name} took {accepted[name]} of {len(rows)} beats, "
                    f"then nothing moved for {patience} clocks"
                )

    def _collect(self, model: ctypes.c_void_p, stamps: bool) -> Run:
        library, facts = self._library, self.facts
        outputs: dict[str, Beats] = {}
        times: dict[str, NDArray[np.uint64]] = {}
        hows: dict[str, NDArray[np.uint8]] = {}
        for index, stream in enumerate(facts.outputs):
            count = library.simulator_output_accepted(model, index)
            rows = _copy(
                library.simulator_output_rows(model, index), count * stream.bytes, np.uint8
            )
            last = _copy(library.simulator_output_lasts(model, index), count, np.bool_)
            outputs[stream.name] = Beats(rows.reshape(count, stream.bytes), last)
            if stamps:
                address = library.simulator_output_stamps(model, index)
                times[stream.name] = _copy(address, count, np.uint64)
                hows[stream.name] = _copy(
                    library.simulator_output_hows(model, index), count, np.uint8
                )
        if stamps:
            for index, stream in enumerate(facts.inputs):
                count = library.simulator_input_accepted(model, index)
                address = library.simulator_input_stamps(model, index)
                times[stream.name] = _copy(address, count, np.uint64)
                hows[stream.name] = _copy(
                    library.simulator_input_hows(model, index), count, np.uint8
                )
        signals = {}
        for index, port in enumerate(facts.signals):
            if not port.is_input:
                buffer = ctypes.create_string_buffer(port.bytes)
                library.simulator_get_signal(model, index, buffer)
                signals[port.name] = int.from_bytes(buffer.raw, "little")
        order = [stream.name for stream in (*facts.inputs, *facts.outputs)]
        found = _copy(library.simulator_at_reset(model), len(order), np.uint8).tolist()
        at_reset = dict(zip(order, found, strict=True))
        return Run(outputs, library.simulator_cycles(model), signals, times, hows, at_reset)


def _checked(facts: Facts, inputs: Mapping[str, Beats]) -> dict[str, Beats]:
    """Return contiguous beats for every input stream; ValueError if some do not fit."""
    names = [stream.name for stream in facts.inputs]
    for name in inputs:
        if name not in names:
            raise ValueError(f"inputs: {facts.top} has no input stream {name!r}; {names}")
    checked = {}
    for stream in facts.inputs:
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


def _checked_ports(facts: Facts, inputs: Mapping[str, Beats]) -> tuple[NDArray[np.uint8], int]:
    """Return the words of all input ports side by side, and the clocks; ValueError as above."""
    ports = [port for port in facts.signals if port.is_input]
    names = [port.name for port in ports]
    for name in inputs:
        if name not in names:
            raise ValueError(f"inputs: {facts.top} has no input port {name!r}; {names}")
    counts = {len(words) for words in inputs.values()}
    if len(counts) > 1:
        raise ValueError(f"inputs: ports are given {sorted(counts)} words; give all as many")
    clocks = counts.pop() if counts else 0
    rows = np.zeros((clocks, sum(port.bytes for port in ports)), np.uint8)
    start = 0
    for port in ports:
        data = inputs[port.name].data if port.name in inputs else rows[:, start:][:, : port.bytes]
        if data.dtype != np.uint8 or data.shape[1:] != (port.bytes,):
            raise ValueError(
                f"port {port.name}: rows must be uint8 [clocks, {port.bytes}], "
                f"got {data.dtype} {list(data.shape)}"
            )
        rows[:, start : start + port.bytes] = data
        start += port.bytes
    return rows, clocks


def _stalls(facts: Facts, stall: float | Mapping[str, float]) -> dict[str, float]:
    names = [stream.name for stream in facts.streams]
    stalls = dict(stall) if isinstance(stall, Mapping) else dict.fromkeys(names, stall)
    for name, probability in stalls.items():
        if name not in names:
            raise ValueError(f"stall: {facts.top} has no stream {name!r}; there are: {names}")
        if not 0 <= probability < 1:
            raise ValueError(f"stall: probability {probability} must be at least 0 and below 1")
    return {name: stalls.get(name, 0.0) for name in names}


def _copy(address: int, count: int, dtype: Any) -> NDArray[Any]:
    """Copy ``count`` items at ``address`` (any value if there are none) into a new array."""
    return np.frombuffer(ctypes.string_at(address, count * np.dtype(dtype).itemsize), dtype).copy()


def ports_header(facts: Facts) -> str:
    """Return ports.h: the tables that tell simulator.cpp the unit's ports."""

    def stream(stream: Stream) -> str:
        members = ", ".join(f"&top.{name}" for name in stream.ports)
        return f'    {{{members}, {stream.bytes}, "{stream.prefix}"}},'

    def signal(port: Port) -> str:
        return f"    {{&top.{port.name}, {port.bytes}, {str(port.is_input).lower()}}},"

    def table(kind: str, name: str, rows: list[str]) -> str:
        body = "\n".join(rows)
        return (
            f"std::vector<{kind}> {name}([[maybe_unused]] Vtop& top) {{ return {{\n{body}\n}}; }}"
        )

    def setter(name: str, port: str) -> str:
        body = f"top.{port} = level;" if port else ""  # a combinational unit has no clock
        return f"void {name}([[maybe_unused]] Vtop& top, [[maybe_unused]] bool level) {{ {body} }}"

    return "\n".join(
        [
            table("Port", "input_ports", [stream(each) for each in facts.inputs]),
            table("Port", "output_ports", [stream(each) for each in facts.outputs]),
            table("Signal", "signals", [signal(port) for port in facts.signals]),
            setter("set_clock", facts.clock),
            setter("set_reset", facts.reset),
            "",
        ]
    )


_SIZE, _POINTER, _TEXT = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
_NUMBER, _REAL = ctypes.c_uint64, ctypes.c_double
SIGNATURES: Signatures = {
    "new": (_POINTER, _NUMBER, _TEXT),
    "delete": (None, _POINTER),
    "set_input": (None, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _REAL, _NUMBER),
    "set_output": (None, _POINTER, _SIZE, _REAL, _NUMBER),
    "set_signal": (None, _POINTER, _SIZE, _TEXT),
    "get_signal": (None, _POINTER, _SIZE, _TEXT),
    "set_stamping": (None, _POINTER, ctypes.c_int),
    "silence": (None, _POINTER),
    "reset": (None, _POINTER),
    "at_reset": (_POINTER, _POINTER),
    "write_coverage": (None, _POINTER, _TEXT),
    "zero_coverage": (None, _POINTER),
    "step": (ctypes.c_int, _POINTER, _NUMBER, _NUMBER),
    "play_ports": (None, _POINTER, _POINTER, _POINTER, _SIZE),
    "error": (_TEXT, _POINTER),
    "cycles": (_NUMBER, _POINTER),
    "input_accepted": (_SIZE, _POINTER, _SIZE),
    "input_stamps": (_POINTER, _POINTER, _SIZE),
    "output_accepted": (_SIZE, _POINTER, _SIZE),
    "output_rows": (_POINTER, _POINTER, _SIZE),
    "output_lasts": (_POINTER, _POINTER, _SIZE),
    "output_stamps": (_POINTER, _POINTER, _SIZE),
    "input_hows": (_POINTER, _POINTER, _SIZE),
    "output_hows": (_POINTER, _POINTER, _SIZE),
}
