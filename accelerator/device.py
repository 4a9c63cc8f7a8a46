"""An accelerator as a device: memory, a queue of descriptors, and their results as tensors."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.accelerator.memory import Allocator, Matrix, Values, type_name, value_type
from m2xfp.accelerator.queue import Queue, Ticket
from m2xfp.accelerator.transport import SimulatedTransport, Transport
from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.rtl.parts.accelerator_map import FIELDS

__all__ = ["Device", "Job"]

Buffer = TypeVar("Buffer", Matrix, Values)

_GEMM, _QUANTIZE, _ENCODE = 1, 2, 3
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_PACKED = 2  # kind of results that are packed
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_ENGINES = {"quantize": "quantizer", "encode": "encoder"}  # parameters of a build


@dataclass(eq=False, kw_only=True)
class Job(Ticket):
    """A descriptor that was given to the accelerator, and its result.

    Members
    -------
    device
        The accelerator.
    out
        Where its result is.
    shape
        Shape of the result.
    owned
        Buffers that are free when the result was taken.
    """

    device: "Device"
    out: Values | Matrix
    shape: tuple[int, ...]
    owned: list[int]

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
        How it is reached; None for a simulation of its own, ``SimulatedTransport()``.
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
    array
        Rows and columns of its array.
    queue
        Its registers.

    Raises
    ------
    DeviceError
        What answers is no accelerator of this version.
    """

    def __init__(
        self,
        transport: Transport | None = None,
        *,
        acts: Format | str = "m2xfp-act",
        weights: Format | str = "m2xfp-weight",
        timeout: int = 1 << 20,
        patience: float = 600.0,
    ) -> None:
        transport = transport or SimulatedTransport()
        self.transport, self.queue = transport, Queue(transport, timeout, patience)
        self.acts = get_format(acts) if isinstance(acts, str) else acts
        self.weights = get_format(weights) if isinstance(weights, str) else weights
        field = self.queue.field
        self.max_k, self.group = field("limits", "max_k"), field("limits", "group")
        for fmt in (self.acts, self.weights):
            if fmt.block.group != self.group:
                raise InputError(
                    f"{fmt.name} has groups of {fmt.block.group}, this accelerator of {self.group}"
                )
        self.features = {n for n in FIELDS["features"] if field("features", n)}
        self.array = field("array", "rows"), field("array", "columns")
        self.memory = Allocator(transport.memory_start, transport.memory_bytes)

    @property
    def counts(self) -> dict[str, int]:
        """Clocks: ``cycles``, ``work``, ``wait_...`` (`m2xfp.accelerator.queue.Queue`)."""
        return self.queue.counts

    def utilisation(self) -> float:
        """Return the share of clocks in which the array took activations; nan before any."""
        return self.queue.utilisation()

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

    @contextmanager
    def borrow(self) -> Iterator[Callable[[Buffer], Buffer]]:
        """Give the memory of matrices back at the end, when nothing runs that may use it.

        What this yields takes a matrix and returns it: ``with device.borrow() as keep`` and then
        ``x = keep(device.store(x))``.
        """
        kept: list[Matrix | Values] = []

        def keep(matrix: Buffer) -> Buffer:
            kept.append(matrix)
            return matrix

        try:
            yield keep
        finally:
            self.queue.settle()
            self.remove(*kept)

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
            raise InputError(
                f"dtype={type_name(dtype)}: the accelerator's memory has float32 and bfloat16"
            )
        pitch = -(-columns // self.group) * self.group * dtype.itemsize
        return Values(rows, columns, self.allocate(rows * pitch), pitch, dtype)

    def store(self, x: Tensor) -> Values:
        """Store values [rows, columns]; rows end with zeros up to a whole group.

        float16 is stored as float32, which holds each of its values; other types are an InputError.
        """
        if x.ndim != 2:
            raise InputError(f"shape={list(x.shape)}: a matrix has two dimensions")
        x = x.detach().cpu().to(value_type(x.dtype, "x"))
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
        out: Values | Matrix | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Job:
        """Queue acts [m, k] times weights [n, k] transposed; return at once.

        Without ``out`` the result [m, n] is in memory of its own, of type ``dtype``. Where ``out``
        is a packed matrix of activations (``empty(m, n)``), FP32 results are quantized into it; n
        is a multiple of the group then, and ``features`` has ``packed_results``.
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
        shape = acts.rows, weights.rows
        if (out.rows, out.k if isinstance(out, Matrix) else out.columns) != shape:
            raise InputError(f"out: the result is [{acts.rows}, {weights.rows}]")
        words = {"operation": _GEMM, "m": acts.rows, "n": weights.rows, "k": k}
        words |= _operand("a", acts) | _operand("w", weights)
        if isinstance(out, Matrix):
            self._check_packed_results(out)
            words |= _packed_result(out) | {"kind": _PACKED}
        else:
            words |= {"out": out.address, "out_pitch": out.pitch, "kind": _KINDS[out.dtype]}
        return self._submit(words, out, shape, owned)

    def _check_packed_results(self, out: Matrix) -> None:
        """Raise InputError if results cannot be packed into a matrix."""
        if "packed_results" not in self.features:
            raise InputError(
                "out: this accelerator packs no results; build it with quantizer=fp32 and "
                f"columns={self.group}, or pass values and quantize them"
            )
        if out.format != self.acts:
            raise InputError(f"out: results are packed as {self.acts.name}, not {out.format.name}")
        if out.k % self.group:
            raise InputError(f"n={out.k}: packed results are whole groups of {self.group}")

    def submit_quantize(self, values: Values, out: Matrix | None = None) -> Job:
        """Queue packing values as activations (Elem-EM); return at once."""
        return self._submit_packing("quantize", _QUANTIZE, self.acts, values, out)

    def submit_encode(self, values: Values, out: Matrix | None = None) -> Job:
        """Queue packing values as weights or a cache (Sg-EM, by search); return at once."""
        return self._submit_packing("encode", _ENCODE, self.weights, values, out)

    def _submit_packing(
        self, what: str, operation: int, fmt: Format, values: Values, out: Matrix | None
    ) -> Job:
        self.check_values(what, values.dtype, "values")
        owned = []
        if out is None:
            out = self.empty(values.rows, values.columns, fmt)
            owned = list(out.allocations)
        if (out.rows, -(-out.k // self.group)) != (values.rows, -(-values.columns // self.group)):
            raise InputError(f"out: the result is [{values.rows}, {values.columns}]")
        k = -(-values.columns // self.group) * self.group
        words = {"operation": operation, "m": values.rows, "k": k, "kind": _KINDS[values.dtype]}
        words |= {"a_codes": values.address, "a_codes_pitch": values.pitch}
        words |= _packed_result(out)
        return self._submit(words, out, (values.rows, values.columns), owned)

    def _submit(
        self,
        words: Mapping[str, int],
        out: Values | Matrix,
        shape: tuple[int, ...],
        owned: list[int],
    ) -> Job:
        job = Job(device=self, out=out, shape=shape, owned=owned)
        self.queue.push(words, job)
        return job

    def wait(self, jobs: Iterable[Job] | None = None) -> None:
        """Wait until jobs have ended, all that were submitted if none are named.

        Raises
        ------
        DeviceError
            One of them ended with an error, or nothing ends.
        """
        self.queue.wait(jobs)

    # --- tensors --------------------------------------------------------------------------------

    def check_values(self, what: str, dtype: torch.dtype, name: str) -> None:
        """Raise InputError unless values of a type can be packed as they are, without rounding.

        Parameters
        ----------
        what
            ``quantize`` or ``encode``.
        dtype, name
            Type and name of the tensor that has the values.
        """
        taken = [kind for kind in _NAMES if f"{what}_{_NAMES[kind]}" in self.features]
        if value_type(dtype, name) in taken:
            return
        engine = _ENGINES[what]
        if not taken:
            raise InputError(
                f"{name}: this accelerator was built without {engine}; build it with {engine}=fp32"
            )
        raise InputError(
            f"{name}: its values are {type_name(dtype)}; the {engine} of this build takes bfloat16 "
            f"alone, so pass {name}.bfloat16(), which rounds, or build it with {engine}=fp32"
        )

    def quantize(self, x: Tensor) -> PackedTensor:
        """Return x [..., k] as activations (Elem-EM), packed by the accelerator."""
        self.check_values("quantize", x.dtype, "x")
        return self._packed(x, self.submit_quantize)

    def encode(self, x: Tensor) -> PackedTensor:
        """Return x [..., k] as weights or a cache (Sg-EM, by search), packed by the accelerator."""
        self.check_values("encode", x.dtype, "x")
        return self._packed(x, self.submit_encode)

    def _packed(self, x: Tensor, submit: Any) -> PackedTensor:
        with self.borrow() as keep:
            job = submit(keep(self.store(x.reshape(-1, x.shape[-1]))))
            job.shape = tuple(x.shape)
            packed: PackedTensor = job.result()
            return packed

    def matmul(
        self,
        acts: PackedTensor | Matrix,
        weights: PackedTensor | Matrix,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return acts [m, k] times weights [n, k] transposed, [m, n].

        float16 results are the float32 ones, rounded once more.
        """
        kind = value_type(dtype, "dtype")
        with self.borrow() as keep:
            left, right = (
                part if isinstance(part, Matrix) else keep(self.upload(part))
                for part in (acts, weights)
            )
            out: Tensor = self.submit_matmul(left, right, dtype=kind).result()
            return out.to(dtype)

    def linear(
        self, x: Tensor, weights: PackedTensor | Matrix, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return a linear layer's output, [..., n] in the type of x or another.

        x [..., k] is quantized by the accelerator. float16 results are the float32 ones, rounded
        once more.
        """
        self.check_values("quantize", x.dtype, "x")
        dtype = dtype or x.dtype
        kind = value_type(dtype, "dtype")
        with self.borrow() as keep:
            right = weights if isinstance(weights, Matrix) else keep(self.upload(weights))
            values = keep(self.store(x.reshape(-1, x.shape[-1])))
            packed = keep(self.empty(values.rows, values.columns))
            product = keep(self.empty_values(values.rows, right.rows, kind))
            jobs = [self.submit_quantize(values, packed)]
            jobs += [self.submit_matmul(packed, right, product)]
            self.wait(jobs)
            out = self.load(product)
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
        may have fewer heads, each of which serves several of the queries in a row. The result has
        the type of the queries: float32, bfloat16, or float16, which is exact in float32.

        Raises
        ------
        InputError
            Shapes do not go together, or an engine of this accelerator does not take a tensor's
            type: keys and values go through the encoder, queries and probabilities through the
            quantizer. Nothing has been queued then.
        """
        from m2xfp.accelerator.attention import attend

        return attend(self, query, key, value, is_causal=is_causal, scale=scale)


def _operand(side: str, matrix: Matrix) -> dict[str, int]:
    """Return the words of an operand."""
    words = {f"{side}_{name}": address for name, address in matrix.planes.items()}
    return words | {f"{side}_{name}_pitch": pitch for name, pitch in matrix.pitches.items()}


def _packed_result(matrix: Matrix) -> dict[str, int]:
    """Return the words of a packed result."""
    names = {"codes": "out", "scales": "out_scales"}
    words = {name: matrix.planes[plane] for plane, name in names.items()}
    words |= {f"{name}_pitch": matrix.pitches[plane] for plane, name in names.items()}
    return words | {"out_meta": matrix.planes.get("meta", 0)}
