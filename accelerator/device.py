"""An accelerator as a device: memory, a queue of descriptors, and their results as tensors."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.accelerator.memory import Allocator, Matrix, Values
from m2xfp.accelerator.transport import Transport
from m2xfp.errors import InputError, M2xfpError
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.descriptor_checker import CAUSES

__all__ = ["Device", "DeviceError", "Job"]

_IDENTIFICATION, _VERSION = 0x4D325846, 2
_GEMM, _QUANTIZE, _ENCODE = 1, 2, 3
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_COUNTERS = ("cycles", "work", "wait_acts", "wait_weights", "wait_results")
_WORDS = {n: at for n, at in OFFSETS.items() if OFFSETS["operation"] <= at < OFFSETS["push"]}


class DeviceError(M2xfpError):
    """The accelerator ended a descriptor with an error, does not end one, or is none."""


@dataclass(eq=False)
class Job:
    """A descriptor that was given to the accelerator.

    Members
    -------
    device
        The accelerator.
    number
        What its descriptor was pushed as.
    ends
        How many descriptors have ended when it has.
    out
        Where its result is.
    shape
        Shape of the result.
    owned
        Buffers that are free when the result was taken.
    fault
        What went wrong, once that is known.
    done
        It has ended.
    """

    device: "Device"
    number: int
    ends: int
    out: Values | Matrix
    shape: tuple[int, ...]
    owned: list[int] = field(default_factory=list)
    fault: str = ""
    done: bool = False

    def wait(self) -> None:
        """Wait for the end; DeviceError with the cause if it is an error."""
        self.device.wait([self])

    def result(self) -> Any:
        """Wait for the end and return the result, a tensor or a packed one; its memory is free.

        Raises
        ------
        DeviceError
            It ended with an error, with the cause.
        """
        try:
            self.wait()
            if isinstance(self.out, Values):
                return self.device.load(self.out).reshape(self.shape)
            return self.device.download(self.out, self.shape)
        finally:
            if self.done:
                self.device.release(*self.owned)
                self.owned = []


class Device:
    """An accelerator: tensors in and out, bit for bit what the golden model gives.

    Parameters
    ----------
    transport
        How it is reached.
    acts, weights
        Formats that it was built for.
    timeout
        Clocks without any movement after which what the bus owes is an error; 0 for none.
    patience
        Seconds without the end of any descriptor after which waiting for one is an error.

    Members
    -------
    memory
        Its memory's free bytes.
    max_k, group
        Most columns of a product's operands, and values of a group.
    features
        What else it can do: ``quantize_bf16``, ...
    counts
        Clocks since this object was made: ``cycles`` in which a descriptor ran, ``work`` in which
        the array took activations, and ``wait_...``. As of the last wait.

    Raises
    ------
    DeviceError
        What answers is no accelerator of this version.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        acts: Format | str = "m2xfp-act",
        weights: Format | str = "m2xfp-weight",
        timeout: int = 1 << 20,
        patience: float = 600.0,
    ) -> None:
        self.transport, self.patience = transport, patience
        found = self._read("id"), self._read("version")
        if found != (_IDENTIFICATION, _VERSION):
            raise DeviceError(
                f"what answers is no accelerator with registers of version {_VERSION}: id "
                f"0x{found[0]:08X}, version {found[1]}; look at the address of the registers"
            )
        self.acts = get_format(acts) if isinstance(acts, str) else acts
        self.weights = get_format(weights) if isinstance(weights, str) else weights
        self.max_k, self.group = self._field("limits", "max_k"), self._field("limits", "group")
        for fmt in (self.acts, self.weights):
            if fmt.block.group != self.group:
                raise DeviceError(f"the accelerator has groups of {self.group}, not {fmt.name}'s")
        self.features = {n for n in FIELDS["features"] if self._field("features", n)}
        self.array = self._field("array", "rows"), self._field("array", "columns")
        self.memory = Allocator(transport.memory_start, transport.memory_bytes)
        self.counts = dict.fromkeys(_COUNTERS, 0)
        self._counted = {name: self._read(name) for name in _COUNTERS}
        self._depth = self._field("bus", "depth")
        self._pushed = self._seen = self._read("completed")
        self._jobs: list[Job] = []
        self._words: dict[str, int] = {}
        self._write("timeout", timeout)
        self._write("error", 1 << 31)
        self._write("int_status", 3)
        self._write("int_enable", 1)

    # --- memory ---------------------------------------------------------------------------------

    def allocate(self, length: int) -> int:
        """Return the address of free bytes; InputError if there are not so many together."""
        return self.memory.allocate(length)

    def release(self, *addresses: int) -> None:
        """Give bytes back that `allocate` has given."""
        for address in addresses:
            self.memory.release(address)

    def remove(self, *matrices: Matrix | Values) -> None:
        """Give the memory of matrices back."""
        for matrix in matrices:
            self.release(*matrix.allocations)

    def empty(self, rows: int, k: int, fmt: Format | None = None) -> Matrix:
        """Return a packed matrix, of activations or of another format, to be written."""
        fmt = fmt or self.acts
        groups = -(-k // fmt.block.group)
        names = ("codes", "scales", "meta")
        sizes = {n: s * groups for n, s in zip(names, fmt.block.group_bytes, strict=True) if s}
        planes = {name: self.allocate(rows * size) for name, size in sizes.items()}
        return Matrix(fmt, rows, k, planes, {name: sizes[name] for name in ("codes", "scales")})

    def empty_values(self, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Values:
        """Return a matrix of values to be written; its rows hold whole groups."""
        if dtype not in _KINDS:
            raise InputError(f"dtype={dtype}: the accelerator has float32 and bfloat16")
        pitch = -(-columns // self.group) * self.group * dtype.itemsize
        return Values(rows, columns, self.allocate(rows * pitch), pitch, dtype)

    def store(self, x: Tensor) -> Values:
        """Store values [rows, columns]; rows end with zeros up to a whole group."""
        if x.ndim != 2:
            raise InputError(f"shape={list(x.shape)}: a matrix has two dimensions")
        x = x.detach().cpu() if x.dtype in _KINDS else x.detach().cpu().float()
        values = self.empty_values(x.shape[0], x.shape[1], x.dtype)
        padded = F.pad(x, (0, values.pitch // x.dtype.itemsize - x.shape[1])).contiguous()
        self.transport.store(values.address, padded.view(torch.uint8).numpy().reshape(-1))
        return values

    def load(self, values: Values) -> Tensor:
        """Return values [rows, columns] of the memory."""
        width = values.columns * values.dtype.itemsize
        rows = self._rows(values.address, values.rows, values.pitch, width)
        return torch.from_numpy(rows).view(values.dtype)

    def upload(self, packed: PackedTensor) -> Matrix:
        """Store a packed tensor [rows, k] as a matrix, plane by plane as it is."""
        if len(packed.shape) != 2:
            raise InputError(f"shape={list(packed.shape)}: a matrix has two dimensions")
        matrix = self.empty(packed.shape[0], packed.shape[1], packed.format)
        for name, address in matrix.planes.items():
            content = packed.planes()[name].cpu().contiguous().numpy()
            self.transport.store(address, content.reshape(-1))
        return matrix

    def download(self, matrix: Matrix, shape: tuple[int, ...] | None = None) -> PackedTensor:
        """Return a matrix of the memory as a packed tensor, of another shape if it is given."""
        lead = (matrix.rows,) if shape is None else shape[:-1]
        groups = -(-matrix.k // matrix.format.block.group)
        planes = {}
        for name, address in matrix.planes.items():
            width = groups * matrix.group_bytes[name]
            found = self._rows(address, matrix.rows, matrix.pitch(name), width)
            planes[name] = torch.from_numpy(found).reshape(*lead, width)
        return PackedTensor.from_planes(matrix.format, planes, shape or (matrix.rows, matrix.k))

    def _rows(self, address: int, rows: int, pitch: int, width: int) -> NDArray[np.uint8]:
        """Return bytes [rows, width] of the memory."""
        flat = self.transport.load(address, (rows - 1) * pitch + width)
        return np.lib.stride_tricks.as_strided(flat, (rows, width), (pitch, 1)).copy()

    # --- descriptors ----------------------------------------------------------------------------

    def submit_matmul(
        self,
        acts: Matrix,
        weights: Matrix,
        out: Values | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Job:
        """Queue acts [m, k] times weights [n, k] transposed; return at once.

        Without ``out`` the result [m, n] is in memory of its own, of type ``dtype``.
        """
        if acts.k != weights.k:
            raise InputError(f"k={acts.k}: the other operand has rows of {weights.k} values")
        k = -(-acts.k // self.group) * self.group
        if k > self.max_k:
            raise InputError(f"k={acts.k}: this accelerator multiplies rows of {self.max_k}")
        owned = []
        if out is None:
            out = self.empty_values(acts.rows, weights.rows, dtype)
            owned = [out.address]
        if (out.rows, out.columns) != (acts.rows, weights.rows):
            raise InputError(f"out: the result is [{acts.rows}, {weights.rows}]")
        words = {"operation": _GEMM, "m": acts.rows, "n": weights.rows, "k": k}
        words |= {"out": out.address, "out_pitch": out.pitch, "kind": _KINDS[out.dtype]}
        words |= _operand("a", acts) | _operand("w", weights)
        return self._submit(words, out, (out.rows, out.columns), owned)

    def submit_quantize(self, values: Values, out: Matrix | None = None) -> Job:
        """Queue packing values as activations (Elem-EM); return at once."""
        return self._submit_packing("quantize", _QUANTIZE, self.acts, values, out)

    def submit_encode(self, values: Values, out: Matrix | None = None) -> Job:
        """Queue packing values as weights or a cache (Sg-EM, by search); return at once."""
        return self._submit_packing("encode", _ENCODE, self.weights, values, out)

    def _submit_packing(
        self, what: str, operation: int, fmt: Format, values: Values, out: Matrix | None
    ) -> Job:
        feature = f"{what}_{_NAMES[values.dtype]}"
        if feature not in self.features:
            raise InputError(
                f"{what}: this accelerator was built without {feature}; it has "
                f"{', '.join(sorted(self.features)) or 'nothing of the kind'}"
            )
        owned = []
        if out is None:
            out = self.empty(values.rows, values.columns, fmt)
            owned = list(out.allocations)
        if (out.rows, -(-out.k // self.group)) != (values.rows, -(-values.columns // self.group)):
            raise InputError(f"out: the result is [{values.rows}, {values.columns}]")
        k = -(-values.columns // self.group) * self.group
        words = {"operation": operation, "m": values.rows, "k": k, "kind": _KINDS[values.dtype]}
        words |= {"a_codes": values.address, "a_codes_pitch": values.pitch}
        words |= {"out": out.planes["codes"], "out_pitch": out.pitches["codes"]}
        words |= {"out_scales": out.planes["scales"], "out_scales_pitch": out.pitches["scales"]}
        words |= {"out_meta": out.planes.get("meta", 0)}
        return self._submit(words, out, (values.rows, values.columns), owned)

    def _submit(
        self,
        words: Mapping[str, int],
        out: Values | Matrix,
        shape: tuple[int, ...],
        owned: list[int],
    ) -> Job:
        """Write what differs from the descriptor before, and push it."""
        while self._pushed - self._seen >= self._depth:
            self._pass_time()
        for name, offset in _WORDS.items():
            whole = words.get(name.removesuffix("_high"))
            if whole is None:
                continue
            word = whole >> 32 if name.endswith("_high") else whole & 0xFFFFFFFF
            if self._words.get(name) != word:
                self.transport.write(offset, word)
                self._words[name] = word
        self._pushed += 1
        job = Job(self, self._pushed & 0xFFFF, self._pushed, out, shape, owned)
        self._jobs.append(job)
        self._write("push", job.number)
        return job

    def wait(self, jobs: Iterable[Job] | None = None) -> None:
        """Wait until jobs have ended, all that were submitted if none are named.

        Raises
        ------
        DeviceError
            One of them ended with an error, or nothing ends.
        """
        waited = list(self._jobs if jobs is None else jobs)
        while not all(job.done for job in waited):
            self._pass_time()
        self._count()
        for job in waited:
            if job.fault:
                raise DeviceError(job.fault)

    # --- tensors --------------------------------------------------------------------------------

    def quantize(self, x: Tensor) -> PackedTensor:
        """Return x [..., k] as activations (Elem-EM), packed by the accelerator."""
        return self._packed(x, self.submit_quantize)

    def encode(self, x: Tensor) -> PackedTensor:
        """Return x [..., k] as weights or a cache (Sg-EM, by search), packed by the accelerator."""
        return self._packed(x, self.submit_encode)

    def _packed(self, x: Tensor, submit: Any) -> PackedTensor:
        values = self.store(x.reshape(-1, x.shape[-1]))
        try:
            job = submit(values)
            job.shape = tuple(x.shape)
            packed: PackedTensor = job.result()
            return packed
        finally:
            self.remove(values)

    def matmul(
        self,
        acts: PackedTensor | Matrix,
        weights: PackedTensor | Matrix,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return acts [m, k] times weights [n, k] transposed, [m, n]."""
        left = acts if isinstance(acts, Matrix) else self.upload(acts)
        right = weights if isinstance(weights, Matrix) else self.upload(weights)
        try:
            out: Tensor = self.submit_matmul(left, right, dtype=dtype).result()
            return out
        finally:
            self.remove(*(part for part in (left, right) if part not in (acts, weights)))

    def linear(
        self, x: Tensor, weights: PackedTensor | Matrix, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return a linear layer's output, [..., n] in the type of x or another.

        x [..., k] is quantized by the accelerator.
        """
        dtype = dtype or x.dtype
        right = weights if isinstance(weights, Matrix) else self.upload(weights)
        values = self.store(x.reshape(-1, x.shape[-1]))
        packed = self.empty(values.rows, values.columns)
        kind = dtype if dtype in _KINDS else torch.float32
        product = self.empty_values(values.rows, right.rows, kind)
        try:
            self.submit_quantize(values, packed)
            self.submit_matmul(packed, right, product)
            self.wait()
            out = self.load(product)
        finally:
            self.settle()
            self.remove(values, packed, product, *([] if right is weights else [right]))
        return out.to(dtype).reshape(*x.shape[:-1], out.shape[-1])

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """Return attention [..., heads, m, width] from packed keys and values, softmax on the host.

        As ``m2xfp.models.attention.QuantAttention`` in the hardware's arithmetic. Keys and values
        may have fewer heads, each of which serves several of the queries in a row.
        """
        from m2xfp.accelerator.attention import attend

        return attend(self, query, key, value, is_causal=is_causal, scale=scale)

    # --- registers ------------------------------------------------------------------------------

    def _read(self, name: str) -> int:
        return self.transport.read(OFFSETS[name])

    def _write(self, name: str, word: int) -> None:
        self.transport.write(OFFSETS[name], word)

    def _field(self, register: str, name: str) -> int:
        low, width = FIELDS[register][name]
        return self._read(register) >> low & (1 << width) - 1

    def settle(self) -> None:
        """Wait until nothing runs, whatever has become of it: before memory is given back."""
        try:
            self.wait()
        except DeviceError:
            if self._jobs:
                raise

    def _pass_time(self) -> None:
        """Let some time pass; DeviceError when nothing has ended for long."""
        seen, began = self._seen, time.monotonic()
        self._look()
        while self._seen == seen:
            if time.monotonic() - began > self.patience:
                raise DeviceError(
                    f"no descriptor has ended for {self.patience:g} s; status "
                    f"0x{self._read('status'):08X}, completed {self._read('completed')}"
                )
            self.transport.wait()
            self._look()

    def _count(self) -> None:
        """Add what the counters, which wrap, have counted since they were read."""
        for name, before in self._counted.items():
            now = self._read(name)
            self.counts[name] += (now - before) & 0xFFFFFFFF
            self._counted[name] = now

    def utilisation(self) -> float:
        """Return the share of clocks in which the array took activations; nan before any."""
        return self.counts["work"] / self.counts["cycles"] if self.counts["cycles"] else math.nan

    def _look(self) -> None:
        """Note which descriptors have ended, and how."""
        self._write("int_status", 3)
        self._seen += (self._read("completed") - self._seen) & 0xFFFFFFFF
        word = self._read("error")
        if word >> 31:
            # What ended until it is cleared may have failed as well.
            self._write("error", 1 << 31)
            self._seen += (self._read("completed") - self._seen) & 0xFFFFFFFF
        ended = [job for job in self._jobs if job.ends <= self._seen]
        self._jobs = [job for job in self._jobs if job.ends > self._seen]
        if word >> 31:
            names = {number: name for name, number in CAUSES.items()}
            cause, number = names.get(word & 0xFF, f"cause {word & 0xFF}"), word >> 8 & 0xFFFF
            culprit = next((job for job in ended if job.number == number), None)
            for job in ended:
                if job is culprit:
                    job.fault = f"descriptor {job.number} ended with: {cause}"
                elif culprit is not None and job.ends > culprit.ends:
                    # The register keeps the first error alone.
                    job.fault = f"descriptor {job.number} came after one that failed; repeat it"
        for job in ended:
            job.done = True


def _operand(side: str, matrix: Matrix) -> dict[str, int]:
    """Return the words of an operand."""
    words = {f"{side}_{name}": address for name, address in matrix.planes.items()}
    return words | {f"{side}_{name}_pitch": pitch for name, pitch in matrix.pitches.items()}
