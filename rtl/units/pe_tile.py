"""The paper's processing element: eight lanes, one subgroup a clock, FP32 partial sums."""

from typing import Annotated

from m2xfp.formats import M2XFP_ACT, M2XFP_WEIGHT, BlockFormat
from m2xfp.rtl.parameters import Between, Formats, checked
from m2xfp.rtl.units.dot_product import DotProduct

__all__ = ["PeTile"]

# Groups of which eight lanes are whole subgroups.
_LAYOUTS = ("", ":subgroup=4", ":group=16")
_PLAIN = ("mxfp4", "mxfp4:group=16", "nvfp4")
ACTIVATIONS = Formats(
    (*(f"m2xfp-act{layout}" for layout in _LAYOUTS), *_PLAIN, "m2nvfp4-act"),
    ("group", "subgroup"),
)
WEIGHTS = Formats(
    (*(f"m2xfp-weight{layout}" for layout in _LAYOUTS), *_PLAIN, "m2nvfp4-weight"),
    ("group", "subgroup"),
)


class PeTile(DotProduct):
    """Multiply eight activations with eight weights and accumulate in FP32, one beat a clock.

    acc' = RNE_fp32(acc + (4 + k) P * 2^(exponent - bias)) for each subgroup (docs/format.md
    section 7, ``fp32_subgroup``): ``DotProduct`` with eight lanes, for comparison with the tile of
    M2XFP (arXiv 2601.19213) Sec. 5.4 and Table 5. A group comes in as several beats of one chain,
    each with the group's scales and its own part of the metadata.

    Parameters
    ----------
    act
        Format of the activations: E2M1 elements, with Elem-EM metadata of two bits or without.
    weight
        Format of the weights: E2M1 elements, with Sg-EM metadata of two bits or without. Group,
        scale and, where both have one, subgroup are those of the activations. Subgroups have at
        most eight values.
    chains
        Independent accumulators that take beats in turn: the register stages of the accumulation.

    Members
    -------
    i, o, latency, macs_per_clock
        As in ``DotProduct``.
    """

    @checked
    def __init__(
        self,
        *,
        act: Annotated[BlockFormat, ACTIVATIONS] = M2XFP_ACT,
        weight: Annotated[BlockFormat, WEIGHTS] = M2XFP_WEIGHT,
        chains: Annotated[int, Between(1, 3)] = 3,
    ) -> None:
        super().__init__(act=act, weight=weight, lanes=8, chains=chains)
