"""An accelerator as a device: memory, a queue of products, and their results as tensors."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from m2xfp.accelerator.transport import Transport
from m2xfp.errors import InputError, M2xfpError
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.descriptor_checker import CAUSES

__all__ = ["Device", "DeviceError", "Job", "Matrix"]

ALIGNMENT = 64
_RESULTS = {0: ("<u4", torch.float32), 1: ("<u2", torch.bfloat16)}  # by kind
_IDENTIFICATION = 0x4D325846


class DeviceError(M2xfpError):
    """The accelerator ended a descriptor with an error, or is none."""


@dataclass(frozen=True)
class Matrix:
    """A packed matrix in the accelerator's memory.

    Members
    -------
    rows, groups
        Its size; ``k`` values a row.
    planes
        Address of each plane.
    pitches
        Bytes from a row to the next of codes, and of scales and metadata.
    """

    rows: int
    k: int
    planes: dict[str, int]
    pitches: dict[str, int]


@dataclass
class Job:
    """A product that was given to the accelerator.

    Members
    -------
    number
        What its descriptor was pushed as.
    ends
        How many descriptors have ended when it has.
    out, shape
        Where its results are, and their rows and columns.
    owned
        Buffers that are free when it has ended.
    fault
        What went wrong, once that is known.
    done
        It has ended.
    """

    number: int
    ends: int
    out: int
    shape: tuple[int, int]
    owned: list[int] = field(default_factory=list)
    fault: str = ""
    done: bool = False


class Device:
    """An accelerator: tensors in and out, bit for bit what the golden model gives.

    Parameters
    ----------
    transport
        How it is reached.
    timeout
        Clocks without any movement after which what the bus owes is an error; 0 for none.

    Raises
    ------
    DeviceError
        What answers is no accelerator of this version.
    """

    def __init__(self, transport: Transport, *, timeout: int = 1 << 20) -> None:
        self.transport = transport
        if self._read("id") != _IDENTIFICATION or self._read("version") != 2:
            raise DeviceError("what answers is no accelerator with registers of version 2")
        self.max_k, self.group = self._field("limits", "max_k"), self._field("limits", "group")
        self._numbers, self._dtype = _RESULTS[0]
        self._pushed = self._seen = self._read("completed")
        self._jobs: list[Job] = []
        self._free = {transport.memory_start: transport.memory_bytes}
        self._used: dict[int, int] = {}
        self._write("timeout", timeout)
        self._write("error", 1 << 31)
        self._write("int_enable", 1)

    # --- memory ---------------------------------------------------------------------------------

    def allocate(self, length: int) -> int:
        """Return the address of free bytes; InputError if there are not so many together."""
        size = -(-max(1, length) // ALIGNMENT) * ALIGNMENT
        for start, free in sorted(self._free.items()):
            if free >= size:
                del self._free[start]
                if free > size:
                    self._free[start + size] = free - size
                self._used[start] = size
                return start
        raise InputError(
            f"length={length}: the accelerator's memory has no room; release matrices first"
        )

    def release(self, address: int) -> None:
        """Give bytes back that `allocate` has given."""
        size = self._used.pop(address)
        after = self._free.pop(address + size, 0)
        before = next((s for s, free in self._free.items() if s + free == address), None)
        if before is None:
            self._free[address] = size + after
        else:
            self._free[before] += size + after

    def upload(self, packed: PackedTensor) -> Matrix:
        """Store a packed tensor [rows, k] as a matrix, plane by plane as it is."""
        if len(packed.shape) != 2:
            raise InputError(f"shape={list(packed.shape)}: a matrix has two dimensions")
        planes, pitches = {}, {}
        names = {"codes": packed.codes, "scales": packed.scales, "meta": packed.meta}
        for name, plane in names.items():
            if plane is None:
                continue
            content = plane.cpu().numpy()
            planes[name] = self.allocate(content.size)
            pitches["codes" if name == "codes" else "scales"] = content.shape[1]
            self.transport.store(planes[name], np.ascontiguousarray(content).reshape(-1))
        return Matrix(packed.shape[0], packed.codes.shape[1] * 2, planes, pitches)

    def remove(self, matrix: Matrix) -> None:
        """Give a matrix' memory back."""
        for address in matrix.planes.values():
            self.release(address)

    # --- products -------------------------------------------------------------------------------

    def submit(self, acts: Matrix, weights: Matrix) -> Job:
        """Give the accelerator a product to compute; it runs when those before it have ended."""
        if acts.k != weights.k:
            raise InputError(f"k={acts.k}: the other operand has rows of {weights.k} values")
        size = np.dtype(self._numbers).itemsize
        out = self.allocate(acts.rows * weights.rows * size)
        words = {"operation": 1, "m": acts.rows, "n": weights.rows, "k": acts.k, "out": out}
        words["out_pitch"] = weights.rows * size
        for side, matrix in (("a", acts), ("w", weights)):
            words |= {f"{side}_{name}": address for name, address in matrix.planes.items()}
            words |= {f"{side}_{name}_pitch": pitch for name, pitch in matrix.pitches.items()}
        for name, offset in OFFSETS.items():
            if offset >= OFFSETS["operation"] and name != "push":
                whole = words.get(name.removesuffix("_high"), 0)
                word = whole >> 32 if name.endswith("_high") else whole & 0xFFFFFFFF
                self.transport.write(offset, word)
        self._pushed += 1
        job = Job(self._pushed & 0xFFFF, self._pushed, out, (acts.rows, weights.rows))
        self._jobs.append(job)
        self._write("push", job.number)
        return job

    def result(self, job: Job) -> Tensor:
        """Wait for a product and return it, float32 or bfloat16 [m, n]; its memory is free then.

        Raises
        ------
        DeviceError
            It ended with an error, with the cause.
        """
        while not job.done:
            self._look()
            if not job.done:
                self.transport.wait()
        m, n = job.shape
        content = self.transport.load(job.out, m * n * np.dtype(self._numbers).itemsize)
        self.release(job.out)
        for address in job.owned:
            self.release(address)
        if job.fault:
            raise DeviceError(job.fault)
        signed = content.view(self._numbers.replace("u", "i")).reshape(m, n)
        return torch.from_numpy(signed.copy()).view(self._dtype)

    def matmul(self, acts: PackedTensor, weights: PackedTensor | Matrix) -> Tensor:
        """Return acts [m, k] times weights [n, k] transposed, [m, n]."""
        left = self.upload(acts)
        right = weights if isinstance(weights, Matrix) else self.upload(weights)
        job = self.submit(left, right)
        job.owned += left.planes.values()
        if right is not weights:
            job.owned += right.planes.values()
        return self.result(job)

    def linear(self, x: Tensor, weights: PackedTensor | Matrix, act: str = "m2xfp-act") -> Tensor:
        """Return a linear layer's output: x [..., k], quantized on the host, times the weights."""
        rows = x.reshape(-1, x.shape[-1])
        out = self.matmul(get_format(act).quantize(rows), weights)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    # --- registers ------------------------------------------------------------------------------

    def _read(self, name: str) -> int:
        return self.transport.read(OFFSETS[name])

    def _write(self, name: str, word: int) -> None:
        self.transport.write(OFFSETS[name], word)

    def _field(self, register: str, name: str) -> int:
        low, width = FIELDS[register][name]
        return self._read(register) >> low & (1 << width) - 1

    def _look(self) -> None:
        """Note which products have ended, and how."""
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
            culprit = next((job for job in ended if job.number == word >> 8 & 0xFFFF), None)
            for job in ended:
                if job is culprit:
                    job.fault = f"descriptor {job.number} ended with: {names[word & 0xFF]}"
                elif culprit is not None and job.ends > culprit.ends:
                    # The register keeps the first error alone.
                    job.fault = f"descriptor {job.number} came after one that failed; repeat it"
        for job in ended:
            job.done = True
