"""A board on a serial port: tensors in, tensors out, bit for bit those of the golden model.

>>> from m2xfp.fpga import Device
>>> with Device("/dev/ttyUSB1") as device:
...     qa = device.quantize(activations)
...     y = device.matmul(qa, qw)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.formats import BF16, M2XFP_ACT, M2XFP_WEIGHT
from m2xfp.fpga.host.link import (
    DeviceError,
    FaultError,
    MissingUnitError,
    NoAnswerError,
    NoDeviceError,
    Port,
    Requester,
    WrongBuildError,
)
from m2xfp.fpga.host.operands import (
    PAIR_BYTES,
    blocks,
    pair_records,
    seed_pairs,
    value_records,
)
from m2xfp.fpga.protocol import Command, Identity, Record, pack_records, unpack_records

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.golden import PackedTensor

__all__ = [
    "DEFAULT_BAUD",
    "Device",
    "DeviceError",
    "FaultError",
    "MissingUnitError",
    "NoAnswerError",
    "NoDeviceError",
    "SelfTest",
    "WrongBuildError",
]

DEFAULT_BAUD = 1_000_000
"""Rate of all boards unless their design is built for another."""

MOST_PAIRS = 1 << 16
"""Pairs of groups that ``matmul`` writes out at a time, 36 bytes each."""

Bytes = NDArray[np.uint8]
Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SelfTest:
    """What a self-test has checked; if anything had differed, it would have been an error.

    Members
    -------
    echoed
        Bytes that went through the link and came back as they were.
    groups
        Groups (dot, gemm: pairs of groups) that each unit has computed as the golden model does.
    """

    echoed: int
    groups: dict[str, int]


class Device:
    """A board that runs a ``Design``.

    Results are those of the golden model, bit for bit, or an error: frames carry a length and a
    CRC, each request begins from reset, and what does not come back intact is asked for again.

    Parameters
    ----------
    port
        Name of the serial port, like ``/dev/ttyUSB1``; or an open port with the interface of
        ``serial.Serial``.
    baud
        Rate that the design was built for.
    timeout
        Seconds of silence after which an answer is not waited for any longer.
    retries
        How often a request is repeated before it is given up.

    Members
    -------
    identity
        What the device says of itself.

    Raises
    ------
    NoDeviceError
        There is no such port, it cannot be opened, or it has gone.
    NoAnswerError
        The device does not answer.
    WrongBuildError
        The device is none of ours, or of another version or configuration.
    MissingToolError
        pyserial is not installed.

    Notes
    -----
    Every method that uses the device can raise NoAnswerError, NoDeviceError and FaultError; those
    that need a unit, MissingUnitError. What a method cannot take is an InputError or a TypeError,
    and nothing is sent.
    """

    def __init__(
        self,
        port: str | Port,
        *,
        baud: int = DEFAULT_BAUD,
        timeout: float = 1.0,
        retries: int = 3,
    ) -> None:
        self._requester = Requester(port, baud=baud, timeout=timeout, retries=retries)
        try:
            self.identity = self._identify()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the port."""
        self._requester.close()

    def quantize(self, x: Tensor, *, progress: bool = False) -> PackedTensor:
        """Quantize bfloat16 activations [..., K] to M2XFP groups (Elem-EM) on the device.

        Returns what ``get_format("m2xfp-act").quantize(x)`` does. Unit ``quantizer``; bfloat16
        only, since the unit takes no other type and nothing is rounded twice. ``progress`` shows a
        bar.
        """
        return self._quantize("quantizer", M2XFP_ACT.name, x, progress)

    def quantize_weights(self, x: Tensor, *, progress: bool = False) -> PackedTensor:
        """Quantize bfloat16 weights [..., K] to M2XFP groups (Sg-EM, adaptive) on the device.

        Returns what ``get_format("m2xfp-weight").quantize(x)`` does. Unit ``encoder``; else as
        ``quantize``.
        """
        return self._quantize("encoder", M2XFP_WEIGHT.name, x, progress)

    def dot(self, qa: PackedTensor, qw: PackedTensor, *, progress: bool = False) -> Tensor:
        """Contract [..., K] x [..., K] row by row on the device: float32 [...], any K.

        Returns what ``golden.dot(qa, qw)`` does, with a device's one pattern of NaN, 0x7FC00000.
        ``qa`` is in m2xfp-act, ``qw`` in m2xfp-weight. Unit ``dot``. ``progress`` shows a bar.
        """
        _check_pair(qa, qw)
        if qa.shape != qw.shape:
            raise InputError(
                f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; dot takes one shape, "
                "matmul combines all rows"
            )
        self._command("dot")
        pairs = np.concatenate([_groups(qa), _groups(qw)], axis=2)
        return _floats(self._dots(pairs, progress), qa.shape[:-1], qa)

    def matmul(self, qa: PackedTensor, qw: PackedTensor, *, progress: bool = False) -> Tensor:
        """Multiply [..., M, K] by the rows of [N, K] on the device: float32 [..., M, N].

        Returns what ``golden.matmul(qa, qw)`` does; formats as for ``dot``. Unit ``gemm`` if the
        design has it and its buffers hold K, else unit ``dot``, which takes any K but needs some
        four times the bytes on the line. ``progress`` shows a bar.
        """
        _check_pair(qa, qw)
        if len(qw.shape) != 2:
            raise InputError(f"qw has shape {tuple(qw.shape)}; matmul takes weights [N, K]")
        if qa.shape[-1] != qw.shape[-1]:
            raise InputError(
                f"qa has K = {qa.shape[-1]}, qw has K = {qw.shape[-1]}; they contract over one K"
            )
        acts, weights = _groups(qa), _groups(qw)
        shape = (*qa.shape[:-1], qw.shape[0])
        names = self.identity.names
        if "gemm" in names:
            gemm = _Gemm(self.identity.buffer)
            if acts.shape[1] <= gemm.most_groups:
                return _floats(self._products(gemm, acts, weights, progress), shape, qa)
            if "dot" not in names:
                raise InputError(
                    f"K = {qa.shape[-1]}: unit gemm holds K = {gemm.core.max_k} at most, and the "
                    "device has no unit dot, which takes any K; split K or build one with both"
                )
        elif "dot" not in names:
            raise MissingUnitError(self._missing("gemm or dot"))
        n, depth = weights.shape[:2]
        found = [np.zeros(0, np.uint32)]
        for rows in blocks(len(acts), max(1, MOST_PAIRS // max(1, n * depth))):
            count = rows.stop - rows.start
            pairs = [np.repeat(acts[rows], n, axis=0), np.tile(weights, (count, 1, 1))]
            found.append(self._dots(np.concatenate(pairs, axis=2), progress))
        return _floats(np.concatenate(found), shape, qa)

    def self_test(self, groups: int = 256, *, seed: int = 0, progress: bool = False) -> SelfTest:
        """Send random bytes through the link and random groups through every unit, and compare.

        The patterns are uniform over all bit patterns, NaN, infinities and subnormals included; the
        golden model says what must come back.

        Parameters
        ----------
        groups
            Groups for each unit, at least 1.
        seed
            Of the patterns.
        progress
            Show a bar a unit.

        Raises
        ------
        FaultError
            Something differs; the text says what.
        """
        import torch

        from m2xfp.golden import PackedTensor, dot, get_format, matmul

        if groups < 1:
            raise InputError(f"groups={groups}: must be at least 1")
        rng = np.random.default_rng(seed)
        sent = bytes(range(256)) + rng.bytes(self.identity.buffer - 256)
        if self._requester.request(Command.ECHO, sent) != sent:
            raise FaultError("self-test: the link's echo differs from what was sent")

        def packed(name: str, rows: int, count: int) -> PackedTensor:
            data = rng.integers(0, 256, (rows, count, sum(M2XFP_ACT.group_bytes)), np.uint8)
            # A NaN scale would hide the rest of its row, and far scales all but the largest groups.
            data[..., -2] = rng.integers(110, 140, data.shape[:-1])
            return PackedTensor.from_groups(get_format(name), torch.from_numpy(data))

        def compare(unit: str, found: Bytes, expected: Bytes) -> None:
            wrong = np.argwhere(found != expected)
            if len(wrong):
                at = tuple(int(place) for place in wrong[0])
                raise FaultError(
                    f"self-test: unit {unit} gives {found[at]} at {at}, the golden model "
                    f"{expected[at]}; {len(wrong)} of {found.size} bytes differ"
                )

        checked: dict[str, int] = {}
        for unit in self.identity.names:
            if unit in ("quantizer", "encoder"):
                raw = rng.integers(0, 1 << 16, (groups, M2XFP_ACT.group), np.uint16)
                x = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
                name, run = {
                    "quantizer": (M2XFP_ACT.name, self.quantize),
                    "encoder": (M2XFP_WEIGHT.name, self.quantize_weights),
                }[unit]
                found = run(x, progress=progress).groups()
                compare(unit, found.numpy(), get_format(name).quantize(x).groups().numpy())
                checked[unit] = groups
                continue
            depth = min(groups, 8)
            rows = -(-groups // depth)
            if unit == "dot":
                qa, qw = packed(M2XFP_ACT.name, rows, depth), packed(M2XFP_WEIGHT.name, rows, depth)
                result, expected = self.dot(qa, qw, progress=progress), dot(qa, qw)
                checked[unit] = rows * depth
            else:
                qa, qw = packed(M2XFP_ACT.name, rows, depth), packed(M2XFP_WEIGHT.name, 3, depth)
                result, expected = self.matmul(qa, qw, progress=progress), matmul(qa, qw)
                checked[unit] = 3 * rows * depth
            compare(unit, _float_bytes(result), _float_bytes(expected))
        return SelfTest(len(sent), checked)

    def _identify(self) -> Identity:
        from m2xfp.fpga.gateware.design import design_identity

        try:
            found = Identity.parse(self._requester.request(Command.IDENTIFY))
            mine = design_identity(found.clock_hz, found.baud, found.names, found.buffer)
        except (InputError, UnknownNameError) as error:
            raise WrongBuildError(f"port {self._requester.name}: {error}") from error
        if found != mine:
            differing = [
                f"{name} {getattr(found, name)!r} instead of {getattr(mine, name)!r}"
                for name in ("version", "units", "build")
                if getattr(found, name) != getattr(mine, name)
            ]
            raise WrongBuildError(
                f"port {self._requester.name}: the device was built from other sources: "
                f"{differing[0]}; build its bitstream again and load it"
            )
        return found

    def _missing(self, unit: str) -> str:
        return (
            f"the device has no unit {unit}; it has: {', '.join(self.identity.names)}; "
            "build its design with that unit"
        )

    def _command(self, unit: str) -> int:
        """Return the command that runs ``unit``; MissingUnitError if there is none."""
        if unit not in self.identity.names:
            raise MissingUnitError(self._missing(unit))
        return Command.UNIT + self.identity.names.index(unit)

    def _run(self, unit: str, records: Sequence[Record], widths: Sequence[int]) -> list[Record]:
        """Play records through a unit; ``widths`` are the bytes a beat of its output streams."""
        answer = self._requester.request(self._command(unit), pack_records(records))
        try:
            return unpack_records(answer, widths)
        except ValueError as error:
            raise FaultError(f"unit {unit}: the answer makes no sense: {error}") from error

    def _rows(self, unit: str, records: Sequence[Record], width: int) -> Bytes:
        """Play records through a unit with one output; return its beats [n, width]."""
        answers = self._run(unit, records, [width])
        beats = b"".join(record.beat for record in answers)
        return np.frombuffer(beats, np.uint8).reshape(-1, width)

    def _quantize(self, unit: str, name: str, x: Tensor, progress: bool) -> PackedTensor:
        import torch

        from m2xfp.fpga.gateware.design import find_board_unit
        from m2xfp.fpga.gateware.gateway import sinks
        from m2xfp.golden import PackedTensor, get_format

        fmt = get_format(name)
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x is {type(x).__name__}; pass a torch.bfloat16 tensor")
        if x.dtype != torch.bfloat16:
            raise InputError(
                f"x is {x.dtype}; the device's {unit} takes bfloat16; convert it first, "
                "x.to(torch.bfloat16), if you want it rounded"
            )
        if not x.ndim:
            raise InputError("x has no dimension to group; pass at least one dimension")
        self._command(unit)
        lanes = sinks(find_board_unit(unit).build())[0].data_width // BF16.width
        count = -(-x.shape[-1] // fmt.block.group)
        padded = torch.nn.functional.pad(x, (0, count * fmt.block.group - x.shape[-1]))
        raw = padded.detach().cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
        raw = raw.reshape(-1, fmt.block.group)
        width = sum(fmt.block.group_bytes)
        room = fmt.block.group // lanes * (1 + 2 * lanes)  # of a group's records

        def ask(part: slice) -> Bytes:
            rows = self._rows(unit, value_records(raw[part], lanes), width)
            return _counted(unit, rows, part.stop - part.start)

        found = _in_parts(ask, blocks(len(raw), self.identity.buffer // room), unit, progress)
        data = np.concatenate([np.zeros((0, width), np.uint8), *found])
        groups = torch.from_numpy(data.reshape(*x.shape[:-1], count, width))
        return PackedTensor.from_groups(fmt, groups.to(x.device), tuple(x.shape))

    def accumulate(
        self, pairs: Bytes, first: NDArray[np.bool_], *, progress: bool = False
    ) -> NDArray[np.uint32]:
        """Return the FP32 accumulator after each pair of groups, as patterns, uint32 [n].

        Unit ``dot``. Where a request ends within a dot product, the next one begins with groups
        that make its running sum, see ``operands``.

        Parameters
        ----------
        pairs
            uint8 [n, 36]: an activation group and a weight group, 18 bytes each.
        first
            bool [n]: a dot product begins here; row 0 begins one in any case.
        progress
            Show a bar.
        """
        from tqdm import tqdm

        acc = np.zeros(len(pairs), np.uint32)
        most = self.identity.buffer // (2 + PAIR_BYTES)
        at = 0
        with tqdm(total=len(pairs), desc="dot", unit="group", disable=not progress) as bar:
            while at < len(pairs):
                seeds = [] if first[at] or not at else seed_pairs(int(acc[at - 1]))
                stop = min(len(pairs), at + most - len(seeds))
                beats = [*seeds, *(pair.tobytes() for pair in pairs[at:stop])]
                # The unit begins each request at +0.
                clear = np.concatenate([np.zeros(len(seeds), bool), first[at:stop]])
                found = self._rows("dot", pair_records(beats, clear), 4)
                acc[at:stop] = _counted("dot", found, len(beats)).view("<u4")[len(seeds) :, 0]
                bar.update(stop - at)
                at = stop
        return acc

    def _dots(self, pairs: Bytes, progress: bool) -> NDArray[np.uint32]:
        """Return the final accumulators of [rows, G, PAIR_BYTES] pairs of groups."""
        rows, depth, width = pairs.shape
        if not depth:
            return np.zeros(rows, np.uint32)
        first = np.arange(rows * depth) % depth == 0
        acc = self.accumulate(pairs.reshape(-1, width), first, progress=progress)
        return acc.reshape(rows, depth)[:, -1]

    def _products(
        self, gemm: _Gemm, acts: Bytes, weights: Bytes, progress: bool
    ) -> NDArray[np.uint32]:
        """Return [m, n] accumulators of packed rows [m, G, bytes] and [n, G, bytes]."""
        result = np.zeros((len(acts), len(weights)), np.uint32)
        if not acts.shape[1]:
            return result

        def ask(part: tuple[slice, slice]) -> None:
            rows, columns = part
            records = gemm.records(acts[rows], weights[columns])
            result[part] = gemm.result(
                self._run("gemm", records, gemm.widths),
                rows.stop - rows.start,
                columns.stop - columns.start,
            )

        parts = [
            (rows, columns)
            for columns in blocks(len(weights), gemm.core.columns)
            for rows in blocks(len(acts), gemm.most_rows(acts.shape[1]))
        ]
        _in_parts(ask, parts, "gemm", progress)
        return result


class _Gemm:
    """The GEMM core's side of a request: one panel of columns, some rows.

    Parameters
    ----------
    buffer
        Bytes of payload that a request can have.

    Members
    -------
    widths
        Bytes a beat of the output streams.
    most_groups
        Groups of k at most: what the core holds, and one step of rows with its weights in a
        request.
    """

    def __init__(self, buffer: int) -> None:
        from m2xfp.fpga.gateware.design import find_board_unit
        from m2xfp.fpga.gateware.gateway import sinks, sources
        from m2xfp.rtl.units.gemm_core import GemmCore

        core = find_board_unit("gemm").build()
        assert isinstance(core, GemmCore)
        self.core, self._buffer = core, buffer
        names = [port.name for port in sinks(core)]
        self._stream = {name: names.index(name) for name in names}
        self._size = {port.name: 1 + port.tdata_width // 8 for port in sinks(core)}  # of records
        self.widths = [port.tdata_width // 8 for port in sources(core)]

        self._step = self._size["acts"]  # bytes of a group of ``rows`` rows
        self._panel = core.columns * self._size["weights"]  # of a group of all columns
        fitting = (buffer - self._size["cmd"]) // (self._panel + self._step)
        self.most_groups = min(fitting, core.max_k // core.pair.group)

    def most_rows(self, groups: int) -> int:
        """Return how many rows of so many groups fit a request beside a panel of weights."""
        room = self._buffer - self._size["cmd"] - groups * self._panel
        return room // (groups * self._step) * self.core.rows

    def records(self, acts: Bytes, weights: Bytes) -> list[Record]:
        """Return command, weights and activations."""
        from m2xfp.fpga.gateware.design import find_board_unit
        from m2xfp.rtl.catalog import find_unit
        from m2xfp.tb.parts.gemm_arrays import GemmStreams

        row = find_board_unit("gemm")
        order = GemmStreams(find_unit(row.unit).instance(row.config, row.changes).facts)
        sizes = (len(acts), len(weights), acts.shape[1] * self.core.pair.group)
        streams = {
            "cmd": order.command_beats([sizes]),
            "weights": order.weight_beats(weights),
            "acts": order.act_beats(acts, len(weights)),
        }
        return [
            Record(self._stream[name], beat.tobytes(), number == len(beats) - 1)
            for name, beats in streams.items()
            for number, beat in enumerate(beats)
        ]

    def result(self, records: Sequence[Record], m: int, n: int) -> NDArray[np.uint32]:
        """Return the accumulators [m, n]; FaultError if the answer is not one of this size."""
        statuses = [record.beat for record in records if record.stream == 1]
        beats = [record.beat for record in records if record.stream == 0]
        if statuses != [b"\0"] or len(beats) != m:
            raise FaultError(
                f"unit gemm: {len(beats)} rows and the statuses {statuses}; expected {m} rows and "
                "one status of 0"
            )
        values = np.frombuffer(b"".join(beats), "<u4").reshape(m, -1)
        return values[:, :n]


def _check_pair(qa: PackedTensor, qw: PackedTensor) -> None:
    """Refuse operands that the units were not made for."""
    from m2xfp.golden import PackedTensor

    for name, packed, block in (("qa", qa, M2XFP_ACT), ("qw", qw, M2XFP_WEIGHT)):
        if not isinstance(packed, PackedTensor):
            raise TypeError(f"{name} is {type(packed).__name__}; pass a PackedTensor")
        if packed.format.block != block:
            raise InputError(
                f"{name} is in {packed.format.name}; the device takes {name} in {block.name} with "
                f"groups of {block.group} and subgroups of {block.metadata.subgroup}"
            )


def _groups(packed: PackedTensor) -> Bytes:
    """Return the packed groups of all rows, [rows, G, bytes]."""
    groups: Bytes = packed.groups().detach().cpu().numpy()
    return groups.reshape(math.prod(groups.shape[:-2]), *groups.shape[-2:])


def _floats(patterns: NDArray[np.uint32], shape: Sequence[int], like: PackedTensor) -> Tensor:
    """Return float32 patterns as a tensor of ``shape`` on the device of ``like``."""
    import torch

    values = torch.from_numpy(patterns.astype(np.uint32).view(np.float32).copy())
    return values.reshape(*shape).to(like.device)


def _float_bytes(x: Tensor) -> Bytes:
    """Return the bytes of a float32 tensor."""
    patterns: Bytes = x.contiguous().numpy().view(np.uint8)
    return patterns


def _counted(unit: str, rows: Bytes, count: int) -> Bytes:
    """Return ``rows`` if there are ``count`` of them."""
    if len(rows) != count:
        raise FaultError(f"unit {unit}: {len(rows)} results came back, {count} were due")
    return rows


def _in_parts(
    ask: Callable[[Part], Result], parts: Sequence[Part], unit: str, progress: bool
) -> list[Result]:
    """Return what ``ask`` gives for each part, one request each, behind a bar if wanted."""
    from tqdm import tqdm

    return [ask(part) for part in tqdm(parts, desc=unit, unit="request", disable=not progress)]
