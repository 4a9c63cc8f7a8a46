"""The top-1 decoder: codes and metadata of an activation subgroup to lanes and one refinement."""

from typing import Annotated

from m2xfp.formats import M2XFP_ACT, BlockFormat
from m2xfp.rtl.parameters import Formats, checked
from m2xfp.rtl.parts.top_element_decoder import TopElementDecoder

__all__ = ["ActivationDecoder"]


class ActivationDecoder(TopElementDecoder):
    """Find the top-1 element of an Elem-EM subgroup and what its metadata adds to it.

    ``TopElementDecoder``, the part of the MAC units, as a unit of its own. Combinational.

    Parameters
    ----------
    block
        An E2M1 format with two bits of Elem-EM metadata; the decoder takes one of its subgroups.

    Members
    -------
    codes, meta, top, refinement
        As in ``TopElementDecoder``.

    Raises
    ------
    InputError
        If the format is another one.
    """

    latency = 0
    beats_per_group = 1

    @checked
    def __init__(
        self,
        *,
        block: Annotated[
            BlockFormat,
            Formats(
                ("m2xfp-act", "m2xfp-act:subgroup=4", "m2xfp-act:subgroup=16", "m2nvfp4-act"),
                ("group", "subgroup"),
            ),
        ] = M2XFP_ACT,
    ) -> None:
        super().__init__(block)
