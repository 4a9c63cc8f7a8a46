"""What the group dot product computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import product_unit
from m2xfp.golden.kernels.operators import shielded

__all__ = ["group_dot"]

Bytes = NDArray[np.uint8]


@shielded
def group_dot(act_groups: Bytes, weight_groups: Bytes, *, act: str, weight: str) -> Arrays:
    """Multiply groups, exactly: the value of a pair is product * 2^(exponent - bias).

    The bias is that of ``product_bias``. A NaN scale is told beside; product and exponent are then
    those of its bits.

    Parameters
    ----------
    act_groups, weight_groups
        uint8 [n, bytes a group]: packed groups, any bytes.
    act, weight
        Their formats, of which one may have Elem-EM and the other Sg-EM.

    Returns
    -------
    dict
        ``product`` int64 [n], ``exponent`` int64 [n], the sum of both scales' exponent fields, and
        ``nan`` bool [n].
    """
    formats = get_format(act), get_format(weight)
    sides = [
        _unscaled(fmt, groups)
        for fmt, groups in zip(formats, (act_groups, weight_groups), strict=True)
    ]
    unit = product_unit(*(fmt.block for fmt in formats))
    total = np.ldexp((sides[0] * sides[1]).sum(axis=1), -unit).astype(np.int64)
    exponent = np.zeros(len(act_groups), np.int64)
    nan = np.zeros(len(act_groups), bool)
    for fmt, groups in zip(formats, (act_groups, weight_groups), strict=True):
        scale = fmt.block.scale
        field = groups[:, fmt.block.group_bytes[0]].astype(np.int64)
        if scale.grid is None:
            exponent += field
        else:
            field &= (1 << scale.bits - 1) - 1  # the sign bit is not looked at
            bits = scale.grid.mantissa_bits
            # Subnormal scales have the exponent of the smallest normal ones and no hidden bit.
            exponent += np.maximum(field >> bits, 1)
            total *= (field & (1 << bits) - 1) | np.where(field >> bits, 1 << bits, 0)
            # Codes above the largest one are NaN, and infinities of E5M2, as far as there are some.
            nan |= field > scale.grid.max_code
        nan |= groups[:, fmt.block.group_bytes[0]] == scale.nan
    return {"product": total, "exponent": exponent, "nan": nan}


def _unscaled(fmt: Format, groups: Bytes) -> NDArray[np.float64]:
    """Return the values of groups as if every scale were one."""
    block = fmt.block
    plain = groups.copy()
    mantissa_bits = block.scale.grid.mantissa_bits if block.scale.grid else 0
    plain[:, block.group_bytes[0]] = block.scale.bias << mantissa_bits
    packed = PackedTensor.from_groups(fmt, torch.from_numpy(plain[:, None]))
    values: NDArray[np.float64] = packed.dequantize(torch.float64).numpy()
    return values
