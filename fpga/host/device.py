"""A board on a serial port: tensors in, tensors out, bit for bit those of the golden model.

>>> from m2xfp.fpga import Device
>>> with Device("/dev/ttyUSB1") as device:
...     qa = device.quantize(activations)
...     y = device.matmul(qa, qw)
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.fpga.gateware.design import design_identity
from m2xfp.fpga.gateware.units import find_board_unit, instance_of_text
from m2xfp.fpga.host.link import (
    DeviceError,
    FaultError,
    HostLink,
    MissingUnitError,
    NoAnswerError,
    NoDeviceError,
    Port,
    WrongBuildError,
)
from m2xfp.fpga.host.remote_unit import RemoteUnit, difference, slices
from m2xfp.fpga.host.tensors import (
    accumulated,
    check_pair,
    dots,
    floats,
    packed_groups_of,
    product,
    quantized,
)
from m2xfp.fpga.protocol import Command, Identity
from m2xfp.tb.bench import Arrays
from m2xfp.tb.parts.pairs import formats

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


@dataclass(frozen=True)
class SelfTest:
    """What a self-test has checked; if anything had differed, it would have been an error.

    Members
    -------
    echoed
        Bytes that went through the link and came back as they were.
    groups
        Groups (of units that multiply, pairs of groups) that each unit has computed as the golden
        model does.
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
    units
        Its units, by the name that boards give them: each runs the arrays of its testbench.

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
        self._link = HostLink(port, baud=baud, timeout=timeout, retries=retries)
        try:
            self.identity, self.units = self._identify()
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
        self._link.close()

    def run(self, unit: str, arrays: Arrays, *, progress: bool = False) -> Arrays:
        """Run arrays through a unit.

        Parameters
        ----------
        unit
            What boards, or the catalog, call it.
        arrays
            Those of ``m2xfp simulate`` for this unit, by name, and so are the results.
        progress
            Show a bar.
        """
        return self.unit(unit).run(arrays, progress=progress)

    def unit(self, name: str) -> RemoteUnit:
        """Return the unit that boards, or the catalog, call ``name``; MissingUnitError if none."""
        row = find_board_unit(name).board
        assert row is not None
        if row.name not in self.units:
            raise self._missing(row.name)
        return self.units[row.name]

    def quantize(self, x: Tensor, *, progress: bool = False) -> PackedTensor:
        """Quantize activations [..., K] to M2XFP groups (Elem-EM) on the device.

        Returns what ``get_format("m2xfp-act").quantize(x)`` does. Unit ``quantizer``, which takes
        bfloat16 unless it is built otherwise, and no other type, so that nothing is rounded twice.
        ``progress`` shows a bar.
        """
        return quantized(self.unit("activation_quantizer"), x, progress)

    def quantize_weights(self, x: Tensor, *, progress: bool = False) -> PackedTensor:
        """Quantize weights [..., K] to M2XFP groups (Sg-EM, adaptive) on the device.

        Returns what ``get_format("m2xfp-weight").quantize(x)`` does. Unit ``encoder``; else as
        ``quantize``.
        """
        return quantized(self.unit("weight_encoder"), x, progress)

    def dot(self, qa: PackedTensor, qw: PackedTensor, *, progress: bool = False) -> Tensor:
        """Contract [..., K] x [..., K] row by row on the device: float32 [...], any K.

        Returns what ``golden.dot(qa, qw)`` does, with a device's one pattern of NaN, 0x7FC00000.
        ``qa`` is in m2xfp-act, ``qw`` in m2xfp-weight, unless the unit is built for other formats.
        Unit ``dot``. ``progress`` shows a bar.
        """
        unit = self.unit("dot_product")
        check_pair(qa, qw, unit)
        if qa.shape != qw.shape:
            raise InputError(
                f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; dot takes one shape, "
                "matmul combines all rows"
            )
        return floats(
            dots(unit, packed_groups_of(qa), packed_groups_of(qw), progress), qa.shape[:-1], qa
        )

    def accumulate(
        self, pairs_of_groups: Bytes, first: NDArray[np.bool_], *, progress: bool = False
    ) -> NDArray[np.uint32]:
        """Return the FP32 accumulator after each pair of groups, as patterns, uint32 [n].

        Unit ``dot``. Where a request ends within a dot product, the next one begins with groups
        that make its running sum, see ``running_sums``.

        Parameters
        ----------
        pairs_of_groups
            uint8 [n, bytes]: an activation group and a weight group, 18 bytes each in M2XFP.
        first
            bool [n]: a dot product begins here; row 0 begins one in any case.
        progress
            Show a bar.
        """
        unit = self.unit("dot_product")
        act, _ = formats(unit.facts)
        acts, weights = np.split(pairs_of_groups, [sum(act.group_bytes)], axis=1)
        return accumulated(unit, acts, weights, first, progress)

    def matmul(self, qa: PackedTensor, qw: PackedTensor, *, progress: bool = False) -> Tensor:
        """Multiply [..., M, K] by the rows of [N, K] on the device: float32 [..., M, N].

        Returns what ``golden.matmul(qa, qw)`` does; formats as for ``dot``. Unit ``accelerator`` if
        the design has it and it takes K, else unit ``dot``, which takes any K but needs some four
        times the bytes on the line. ``progress`` shows a bar.
        """
        core, dot = (self._find(name) for name in ("accelerator", "dot_product"))
        unit = core or dot
        if unit is None:
            raise self._missing("accelerator or dot")
        check_pair(qa, qw, unit)
        if len(qw.shape) != 2:
            raise InputError(f"qw has shape {tuple(qw.shape)}; matmul takes weights [N, K]")
        if qa.shape[-1] != qw.shape[-1]:
            raise InputError(
                f"qa has K = {qa.shape[-1]}, qw has K = {qw.shape[-1]}; they contract over one K"
            )
        acts, weights = packed_groups_of(qa), packed_groups_of(qw)
        shape = (*qa.shape[:-1], qw.shape[0])
        if not acts.size or not weights.size:
            return floats(np.zeros((len(acts), len(weights)), np.uint32), shape, qa)
        if core is not None:
            most = int(core.facts.parameters["max_k"])
            if acts.shape[1] * qa.format.block.group <= most:
                return floats(product(core, acts, weights, progress), shape, qa)
            if dot is None:
                raise InputError(
                    f"K = {qa.shape[-1]}: unit {core.name} holds K = {most} at most, and the "
                    "device has no unit dot, which takes any K; split K or build one with both"
                )
        assert dot is not None
        check_pair(qa, qw, dot)
        n, depth = weights.shape[:2]
        found = []
        for rows in slices(len(acts), max(1, MOST_PAIRS // (n * depth))):
            part = np.repeat(acts[rows], n, axis=0)
            many = np.tile(weights, (rows.stop - rows.start, 1, 1))
            found.append(dots(dot, part, many, progress))
        return floats(np.concatenate(found), shape, qa)

    def self_test(self, groups: int = 256, *, seed: int = 0, progress: bool = False) -> SelfTest:
        """Send random bytes through the link and random groups through every unit, and compare.

        NaN, infinities, subnormals and ties are among the values; the golden model says what must
        come back.

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
        if groups < 1:
            raise InputError(f"groups={groups}: must be at least 1")
        rng = np.random.default_rng(seed)
        sent = bytes(range(256)) + rng.bytes(self.identity.buffer - 256)
        if self._link.request(Command.ECHO, sent) != sent:
            raise FaultError("self-test: the link's echo differs from what was sent")
        checked: dict[str, int] = {}
        for name, unit in self.units.items():
            arrays = unit.sample(rng, groups)
            found, expected = unit.run(arrays, progress=progress), unit.expected(arrays)
            if told := difference(found, expected):
                raise FaultError(f"self-test: unit {name} gives {told}")
            checked[name] = unit.count(arrays)
        return SelfTest(len(sent), checked)

    def _identify(self) -> tuple[Identity, dict[str, RemoteUnit]]:
        try:
            found = Identity.parse(self._link.request(Command.IDENTIFY))
            instances = [instance_of_text(text) for _, text in found.units]
            mine = design_identity(found.clock_hz, found.baud, instances, found.buffer)
        except (InputError, UnknownNameError) as error:
            raise WrongBuildError(f"port {self._link.name}: {error}") from error
        if found != mine:
            differing = [
                f"{name} {getattr(found, name)!r} instead of {getattr(mine, name)!r}"
                for name in ("version", "units", "build")
                if getattr(found, name) != getattr(mine, name)
            ]
            raise WrongBuildError(
                f"port {self._link.name}: the device was built from other sources: "
                f"{differing[0]}; build its bitstream again and load it"
            )
        units = [
            RemoteUnit(self._link, number, instance, found.buffer)
            for number, instance in enumerate(instances)
        ]
        return found, {unit.name: unit for unit in units}

    def _find(self, name: str) -> RemoteUnit | None:
        """Return the unit that the catalog calls ``name``, if the device has it."""
        row = find_board_unit(name).board
        return None if row is None else self.units.get(row.name)

    def _missing(self, unit: str) -> MissingUnitError:
        return MissingUnitError(
            f"the device has no unit {unit}; it has: {', '.join(self.units)}; "
            "build its design with that unit"
        )
