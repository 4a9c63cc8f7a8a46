"""What other libraries call a format, and the format with options here that stands for it.

Descriptions only, as ``m2xfp.formats``: ``m2xfp formats --like LIBRARY`` prints them, and
``m2xfp study libraries`` holds each against the library, where that is installed.
"""

from dataclasses import dataclass

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """A format of another library.

    Members
    -------
    theirs
        What it is there.
    ours
        Its name for ``get_format``.
    differs
        Where the two give different bits all the same, or "".
    """

    theirs: str
    ours: str
    differs: str = ""


_ALL_ZERO = "a group of zeros has another scale; its values are the same"
_FLOAT32 = "quotients round to float32 there, which decides near ties"

PRESETS: dict[str, tuple[Preset, ...]] = {
    "torchao": (
        Preset("MXFP4, FLOOR", "mxfp4", "scale byte 0, and groups with an infinity"),
        Preset("MXFP4, EVEN", "mxfp4:scale_rule=even", "scale byte 0, and groups with an infinity"),
        Preset("MXFP4, RCEIL", "mxfp4:scale_rule=ceil", "scale byte 0; just above 6 * 2^k"),
        Preset("MXFP8 E4M3, EVEN", "mxfp8-e4m3:scale_rule=even", "scale byte 0"),
        Preset("MXFP6 E2M3, FLOOR", "mxfp6-e2m3", "scale byte 0"),
        Preset("NVFP4, one level", "nvfp4:quotient=reciprocal,scale_floor=0.015625"),
        Preset(
            "NVFP4, two levels",
            "nvfp4:quotient=reciprocal,scale_floor=0.015625,tensor_scale=auto",
            "decoded values round twice there",
        ),
    ),
    "compressed-tensors": (
        Preset("mxfp4", "mxfp4:scale_rule=even", "the highest scales, where byte 127 comes out"),
        Preset("mxfp8", "mxfp8-e4m3:scale_rule=even-e2m1", "the highest scales"),
        Preset("nvfp4", "nvfp4:tensor_scale=auto", "a scale that rounds to zero is 1/8 there"),
    ),
    "gfloat": (
        Preset("mxfp4_e2m1", "mxfp4"),
        Preset("mxfp6_e2m3", "mxfp6-e2m3"),
        Preset("mxfp6_e3m2", "mxfp6-e3m2"),
        Preset("mxfp8_e4m3", "mxfp8-e4m3"),
        Preset("mxfp8_e5m2", "mxfp8-e5m2"),
        Preset("mxint8", "mxint8:full_range=true"),
    ),
    "gguf": (
        Preset("MXFP4", "mxfp4:ties=zero", "negative values that round to zero are +0 there"),
    ),
    "modelopt": (
        Preset("MXFP4", "mxfp4:scale_rule=ceil,ties=zero", "signs of zeros; just above 6 * 2^k"),
        Preset(
            "NVFP4", "nvfp4:scale_floor=0.001953125,tensor_scale=auto", f"{_ALL_ZERO}; {_FLOAT32}"
        ),
    ),
    "microxcaling": (
        Preset("mx, fp4_e2m1, round nearest", "mxfp4:ties=away", "just below powers of two"),
        Preset("mx, fp6_e2m3, round nearest", "mxfp6-e2m3:ties=away", "just below powers of two"),
        Preset("mx, int8, round nearest", "mxint8:ties=away", "just below powers of two"),
        Preset("mx, fp4_e2m1, round even", "mxfp4", "just below powers of two"),
    ),
    "m2xfp": (
        Preset(
            "Alg. 1, activations",
            "m2xfp-act",
            "torch.topk promises no order among equals; choice=highest is another one",
        ),
        Preset("Sg-EM, weights", "m2xfp-weight"),
    ),
    "mx-qllm": (
        Preset("AMXFP4, e5m2 scales", "amxfp4"),
        Preset("MXFP4, pot-r", "mxfp4:scale_mode=pot-r,ties=away"),
        Preset("int4-asym", "int4-asym", "a code of 8 can come out there"),
    ),
    "micromix": (Preset("weights of the main branch", "mxfp4:scale_rule=ceil", _ALL_ZERO),),
}
"""Library -> its formats."""
