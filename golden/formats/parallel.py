"""Products split over the devices that are there, by the rows of the weights.

Each process of a ``torch.distributed`` group keeps some rows of a weight and computes those columns
of the product; then all get all of them. A sum over K stays with one process, so results are those
of one device, bit for bit, whatever the number of processes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from m2xfp.errors import InputError
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import matmul
from m2xfp.golden.kernels.operators import shielded

__all__ = ["Share", "gather_columns", "split_matmul"]


@dataclass(frozen=True)
class Share:
    """What one process keeps of a matrix of ``total`` rows: every process the same way.

    Members
    -------
    total
        Rows of the matrix.
    rank, size
        This process, and how many share.
    group
        Their group; None for all of the program.
    """

    total: int
    rank: int
    size: int
    group: distributed.ProcessGroup | None = None

    @staticmethod
    def of(total: int, group: distributed.ProcessGroup | None = None) -> "Share":
        """Return the share of this process; all rows where no group of processes has been joined.

        Raises
        ------
        InputError
            This process is none of ``group``.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return Share(total, 0, 1)
        rank = distributed.get_rank(group)
        if rank < 0:
            raise InputError("this process is none of the group; call it in those that are")
        return Share(total, rank, distributed.get_world_size(group), group)

    @property
    def width(self) -> int:
        """The most rows that a process keeps: the first ones keep so many."""
        return -(-self.total // self.size)

    @property
    def rows(self) -> slice:
        """The rows of this process."""
        start = min(self.total, self.rank * self.width)
        return slice(start, min(self.total, start + self.width))

    @shielded
    def take(self, packed: PackedTensor) -> PackedTensor:
        """Return this process's rows of a packed matrix [total, K], in memory of their own."""
        if len(packed.shape) != 2 or packed.shape[0] != self.total:
            raise InputError(
                f"packed has shape {tuple(packed.shape)}; this is a share of [{self.total}, K]"
            )
        planes = {
            name: plane if name == "tensor_scale" else plane[self.rows].clone()
            for name, plane in packed.planes().items()
        }
        shape = (len(planes["codes"]), packed.shape[-1])
        return PackedTensor.from_planes(packed.format, planes, shape)


@shielded
def gather_columns(columns: Tensor, share: Share) -> Tensor:
    """Return [..., total] of every process's [..., rows of its share], in each of them.

    No gradient passes.
    """
    own = share.rows.stop - share.rows.start
    if columns.shape[-1] != own:
        raise InputError(f"columns has shape {tuple(columns.shape)}; this share has {own} rows")
    if share.size == 1:
        return columns
    lead = columns.shape[:-1]
    # As bytes, which every backend moves and none touches; each process sends as many.
    mine = columns.new_zeros(*lead, share.width)
    mine[..., :own] = columns.detach()
    raw = mine.reshape(-1).view(torch.uint8)
    parts = [torch.empty_like(raw) for _ in range(share.size)]
    distributed.all_gather(parts, raw, group=share.group)
    found = [part.view(columns.dtype).reshape(mine.shape) for part in parts]
    return torch.cat(found, -1)[..., : share.total]


@shielded
def split_matmul(
    qa: PackedTensor,
    part: PackedTensor,
    share: Share,
    accumulator: str = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply [..., K] by the rows of [N, K] that all processes keep: [..., N] in each of them.

    Parameters
    ----------
    qa
        The left operand, whole, in each process.
    part
        What ``share.take`` gave of the right one, on the device of ``qa``.
    share
        The share of this process.
    accumulator, dtype
        As for ``matmul``, whose bits the result has.
    """
    return gather_columns(matmul(qa, part, accumulator, dtype), share)
