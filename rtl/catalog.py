"""The catalog: every unit with its named configurations.

Emission, regression, synthesis, FPGA builds and the tables in docs/ all iterate over it. A new unit
is its files in rtl/, golden/, tb/ and tests/, and one row here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from m2xfp.errors import UnknownNameError
from m2xfp.formats import (
    ALL_EXPONENTS,
    BF16,
    FP16,
    FP32,
    M2NVFP4_ACT,
    M2NVFP4_WEIGHT,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NVFP4,
    USUAL_EXPONENTS,
)
from m2xfp.rtl.activation_decoder import ActivationDecoder
from m2xfp.rtl.activation_quantizer import ActivationQuantizer
from m2xfp.rtl.component import Component
from m2xfp.rtl.dot_product import DotProduct
from m2xfp.rtl.exact_accumulator import ExactAccumulator
from m2xfp.rtl.fp32_accumulator import Fp32Accumulator
from m2xfp.rtl.gemm_core import GemmCore
from m2xfp.rtl.group_dot import GroupDot
from m2xfp.rtl.pe_tile import PeTile
from m2xfp.rtl.weight_encoder import WeightEncoder

__all__ = ["UNITS", "Unit", "find_unit", "select"]


@dataclass(frozen=True)
class Unit:
    """One row of the catalog.

    Members
    -------
    name
        Name in all folders: rtl/<name>.py, tb/<name>.py, tests/test_<name>.py.
    purpose
        One line.
    component
        Called with a configuration's keyword arguments, gives the Amaranth component.
    configs
        Keyword arguments by configuration name; the first configuration is the default.
    golden
        Dotted name of the golden function that the unit equals. A name, since rtl imports no
        golden.
    """

    name: str
    purpose: str
    component: Callable[..., Component]
    configs: Mapping[str, Mapping[str, Any]]
    golden: str

    def top(self, config: str) -> str:
        """Return the name of the Verilog top module."""
        return f"{self.name}_{config}".replace("-", "_")

    def build(self, config: str) -> Component:
        """Return a new component; UnknownNameError lists the configurations."""
        if config not in self.configs:
            raise UnknownNameError(f"configuration of {self.name}", config, self.configs)
        return self.component(**self.configs[config])


UNITS: dict[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit(
            name="activation_quantizer",
            purpose="floating-point activations to packed M2XFP groups (Elem-EM)",
            component=ActivationQuantizer,
            configs={
                "bf16x32": {"input_type": BF16, "lanes": 32},
                "bf16x32-fast": {"input_type": BF16, "lanes": 32, "stages": 4},
                "bf16x16": {"input_type": BF16, "lanes": 16},
                "bf16x8": {"input_type": BF16, "lanes": 8},
                "fp16x32": {"input_type": FP16, "lanes": 32},
                "fp16x16": {"input_type": FP16, "lanes": 16},
                "fp16x8": {"input_type": FP16, "lanes": 8},
                "fp32x32": {"input_type": FP32, "lanes": 32},
                "fp32x8-fast": {"input_type": FP32, "lanes": 8, "stages": 4},
                "fp32x16": {"input_type": FP32, "lanes": 16},
                "fp32x8": {"input_type": FP32, "lanes": 8},
                "mxfp4-bf16x32": {"input_type": BF16, "lanes": 32, "block": MXFP4},
                "mxfp6-e2m3-bf16x32": {"input_type": BF16, "lanes": 32, "block": MXFP6_E2M3},
                "mxfp6-e3m2-bf16x32": {"input_type": BF16, "lanes": 32, "block": MXFP6_E3M2},
                "mxfp8-e4m3-bf16x32": {"input_type": BF16, "lanes": 32, "block": MXFP8_E4M3},
                "mxfp8-e5m2-bf16x32": {"input_type": BF16, "lanes": 32, "block": MXFP8_E5M2},
            },
            golden="m2xfp.golden.bits.quantize_bits",
        ),
        Unit(
            name="weight_encoder",
            purpose="floating-point weights to packed M2XFP groups (Sg-EM, by search)",
            component=WeightEncoder,
            configs={
                "bf16-adaptive": {"input_type": BF16},
                "bf16-adaptive-2": {"input_type": BF16, "clocks_per_group": 2},
                "bf16-adaptive-3": {"input_type": BF16, "clocks_per_group": 3},
                "bf16-adaptive-4": {"input_type": BF16, "clocks_per_group": 4},
                "bf16-adaptive-6": {"input_type": BF16, "clocks_per_group": 6},
                "bf16-adaptive-12": {"input_type": BF16, "clocks_per_group": 12},
                "bf16-fixed": {"input_type": BF16, "adaptive": False},
                "bf16-fixed-2": {"input_type": BF16, "adaptive": False, "clocks_per_group": 2},
                "bf16-fixed-4": {"input_type": BF16, "adaptive": False, "clocks_per_group": 4},
                "fp16-adaptive": {"input_type": FP16},
                "fp16-adaptive-12": {"input_type": FP16, "clocks_per_group": 12},
                "fp16-fixed-4": {"input_type": FP16, "adaptive": False, "clocks_per_group": 4},
                "fp32-adaptive": {"input_type": FP32},
                "fp32-adaptive-12": {"input_type": FP32, "clocks_per_group": 12},
                "fp32-fixed-4": {"input_type": FP32, "adaptive": False, "clocks_per_group": 4},
                "bf16-adaptive-4-f8": {
                    "input_type": BF16,
                    "clocks_per_group": 4,
                    "fraction_bits": 8,
                },
                "bf16-adaptive-4-f6": {
                    "input_type": BF16,
                    "clocks_per_group": 4,
                    "fraction_bits": 6,
                },
                "bf16-adaptive-4-f5": {
                    "input_type": BF16,
                    "clocks_per_group": 4,
                    "fraction_bits": 5,
                },
                # Keys and values of an attention cache: 128 bits a clock, vectors as they come.
                "bf16-kv": {"input_type": BF16, "clocks_per_group": 4},
            },
            golden="m2xfp.golden.bits.quantize_bits",
        ),
        Unit(
            name="activation_decoder",
            purpose="top-1 element of an activation subgroup and its refinement",
            component=ActivationDecoder,
            configs={"m2xfp": {}},
            golden="m2xfp.golden.PackedTensor.dequantize",
        ),
        Unit(
            name="group_dot",
            purpose="exact dot product of one activation group and one weight group",
            component=GroupDot,
            configs={
                "m2xfp": {},
                "m2xfp-shallow": {"depth": 1},
                "mxfp4": {"act": MXFP4, "weight": MXFP4},
                "nvfp4": {"act": NVFP4, "weight": NVFP4},
            },
            golden="m2xfp.golden.bits.dot_bits",
        ),
        Unit(
            name="fp32_accumulator",
            purpose="FP32 accumulation of exact group products, one rounding each",
            component=Fp32Accumulator,
            configs={
                "m2xfp": {},
                "m2xfp-single": {"chains": 1},
                "m2xfp-double": {"chains": 2},
                "mxfp4": {"act": MXFP4, "weight": MXFP4},
                "nvfp4": {"act": NVFP4, "weight": NVFP4},
            },
            golden="m2xfp.golden.products.accumulate",
        ),
        Unit(
            name="exact_accumulator",
            purpose="accumulation of exact group products in fixed point, one rounding a result",
            component=ExactAccumulator,
            configs={
                "m2xfp": {"window": USUAL_EXPONENTS},
                "m2xfp-all": {"window": ALL_EXPONENTS},
            },
            golden="m2xfp.golden.products.running_exact",
        ),
        Unit(
            name="pe_tile",
            purpose="eight lanes, one subgroup a clock, FP32 partial sums: the paper's tile",
            component=PeTile,
            configs={
                "m2xfp": {},
                "mxfp4": {"act": MXFP4, "weight": MXFP4},
                "nvfp4": {"act": NVFP4, "weight": NVFP4},
            },
            golden="m2xfp.golden.bits.dot_bits",
        ),
        Unit(
            name="dot_product",
            purpose="packed activation and weight groups to running FP32 dot products",
            component=DotProduct,
            configs={
                "m2xfp-fp32": {},
                "m2xfp-fp32-single": {"chains": 1},
                "m2xfp-fp32_subgroup": {"lanes": 8},
                "m2xfp-exact": {"chains": 1, "window": USUAL_EXPONENTS},
                "m2xfp-exact-all": {"chains": 1, "window": ALL_EXPONENTS},
                "mxfp4-fp32": {"act": MXFP4, "weight": MXFP4},
                "nvfp4-fp32": {"act": NVFP4, "weight": NVFP4},
                "m2nvfp4-fp32": {"act": M2NVFP4_ACT, "weight": M2NVFP4_WEIGHT},
            },
            golden="m2xfp.golden.bits.dot_bits",
        ),
        Unit(
            name="gemm_core",
            purpose="activations times packed weights of any size, weights resident on chip",
            component=GemmCore,
            configs={
                "m2xfp-2x2": {"rows": 2, "columns": 2, "max_k": 512},
                "m2xfp-bf16-2x2": {
                    "rows": 2,
                    "columns": 2,
                    "max_k": 512,
                    "activations": BF16,
                    "results": "bf16",
                },
                "mxfp4-2x2": {
                    "act": MXFP4,
                    "weight": MXFP4,
                    "rows": 2,
                    "columns": 2,
                    "max_k": 512,
                },
            },
            golden="m2xfp.golden.matmul",
        ),
    )
}


def find_unit(name: str) -> Unit:
    """Return the unit called ``name``; UnknownNameError lists those that exist."""
    if name not in UNITS:
        raise UnknownNameError("unit", name, UNITS)
    return UNITS[name]


def select(unit: str | None = None, config: str | None = None) -> Iterator[tuple[Unit, str]]:
    """Yield (unit, configuration) for all that match; None stands for every one.

    Raises UnknownNameError, before anything is yielded, for a unit or configuration that does not
    exist.
    """
    units = [find_unit(unit)] if unit is not None else list(UNITS.values())
    if config is not None:
        known = {name: None for row in units for name in row.configs}
        if config not in known:
            kind = "configuration" if unit is None else f"configuration of {unit}"
            raise UnknownNameError(kind, config, known)
    return (
        (row, name) for row in units for name in row.configs if config is None or name == config
    )
