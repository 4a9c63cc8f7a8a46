"""The catalog: every unit with all that is known of it.

Emission, simulation, regression, synthesis, sweeps, FPGA builds and the tables in docs/ iterate
over it; nothing else lists units. A new unit is its files, of one name in rtl/units/,
golden/units/, tb/units/ and tests/units/, and one row here. A row names what lives in other rooms,
since rtl imports neither golden nor tb.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from m2xfp import __version__
from m2xfp.errors import InputError, UnknownNameError
from m2xfp.facts import Facts
from m2xfp.formats import (
    ALL_EXPONENTS,
    AMXFP4,
    BF16,
    FP16,
    FP32,
    INT4_SYM,
    M2NVFP4_ACT,
    M2NVFP4_WEIGHT,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    SMX4,
    USUAL_EXPONENTS,
    Window,
    block_format,
)
from m2xfp.rtl.parameters import bind, parameters_of, parse_settings, plain
from m2xfp.rtl.units.accelerator import Accelerator
from m2xfp.rtl.units.activation_decoder import ActivationDecoder
from m2xfp.rtl.units.activation_quantizer import ActivationQuantizer
from m2xfp.rtl.units.asymmetric_dot_product import AsymmetricDotProduct
from m2xfp.rtl.units.channel_permuter import ChannelPermuter
from m2xfp.rtl.units.dot_product import DotProduct
from m2xfp.rtl.units.exact_accumulator import ExactAccumulator
from m2xfp.rtl.units.fp32_accumulator import Fp32Accumulator
from m2xfp.rtl.units.gemm_core import GemmCore
from m2xfp.rtl.units.group_dot import GroupDot
from m2xfp.rtl.units.hadamard import Hadamard
from m2xfp.rtl.units.hadamard_quantizer import HadamardQuantizer
from m2xfp.rtl.units.minifloat_quantizer import MinifloatQuantizer
from m2xfp.rtl.units.mixed_gemm import MixedGemm
from m2xfp.rtl.units.pe_tile import PeTile
from m2xfp.rtl.units.switching_dot_product import SwitchingDotProduct
from m2xfp.rtl.units.weight_encoder import WeightEncoder
from m2xfp.rtl.verilog.axi import signals_of, streams_of
from m2xfp.rtl.verilog.component import VERILOG_KEYWORDS, Component

__all__ = ["UNITS", "Board", "Instance", "Sweep", "Unit", "find_unit", "select"]


@dataclass(frozen=True)
class Sweep:
    """What ``m2xfp explore`` varies of a unit where nothing else is asked for.

    Members
    -------
    axes
        Values by parameter, as texts. Parameters that change together share an axis: their names,
        and the values of each point, stand side by side with spaces between them.
    formats
        From all parameters, as in ``Facts.parameters``, to the formats whose accuracy a point has:
        (weights, activations), as ``m2xfp eval`` takes them.
    """

    axes: Mapping[str, tuple[str, ...]]
    formats: Callable[[Mapping[str, Any]], tuple[str, str]]


@dataclass(frozen=True)
class Board:
    """A unit as it goes on an FPGA board.

    A serial line brings about a beat in a hundred clocks, so units are as narrow as they come, and
    accumulators need not overlap.

    Members
    -------
    name
        What designs, requests and reports call it.
    config
        The configuration that it starts from.
    changes
        Parameters that differ from the configuration's.
    buffer
        Bytes of payload that a request and an answer should have: with 2048, four block RAMs each
        on an iCE40, a frame spends 1 % on header, CRC and flags.
    host
        Module in m2xfp.fpga.host that cuts arrays into requests: ``groups`` for any unit whose rows
        do not depend on one another.
    asks
        Streams whose first beat asks for another stream's, which is not taken before: a unit that
        keeps that beat in a register can have it from a host that sends one after the other.
    memory
        Bytes of block RAM behind the buses of a unit that has AXI4 buses, a power of two; 0 for
        others.
    """

    name: str
    config: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    buffer: int = 2048
    host: str = "groups"
    asks: tuple[str, ...] = ()
    memory: int = 0


@dataclass(frozen=True)
class Unit:
    """One row of the catalog.

    Members
    -------
    name
        Name in all rooms: rtl/units/<name>.py, golden/units/<name>.py, tb/units/<name>.py,
        tests/units/test_<name>.py.
    purpose
        One line.
    component
        Called with keyword arguments, gives the Amaranth component; its signature is the unit's
        parameters (`m2xfp.rtl.parameters`).
    configs
        Named parameter sets; what they leave out has the component's default. The first one is the
        default.
    sweep
        For ``m2xfp explore``; None for a unit that is not swept unless asked for.
    board
        For FPGA builds; None for a unit that no board carries.
    """

    name: str
    purpose: str
    component: Callable[..., Component]
    configs: Mapping[str, Mapping[str, Any]]
    sweep: Sweep | None = None
    board: Board | None = None

    @property
    def golden(self) -> str:
        """Dotted name of the golden function that the unit equals: numpy bits in and out."""
        return f"m2xfp.golden.units.{self.name}.{self.name}"

    @property
    def testbench(self) -> str:
        """Dotted name of the module that loads, encodes and decodes arrays, see tb/bench.py."""
        return f"m2xfp.tb.units.{self.name}"

    @property
    def default(self) -> str:
        """Name of the default configuration."""
        return next(iter(self.configs))

    def instance(
        self,
        config: str | None = None,
        changes: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
    ) -> "Instance":
        """Return the unit with all parameters bound.

        Parameters
        ----------
        config
            A configuration; None for the default one.
        changes
            Parameters that differ from it.
        name
            Name of the Verilog module; by default that of the unit, the configuration and the
            changes.

        Raises
        ------
        UnknownNameError
            A configuration or parameter that does not exist.
        InputError
            A value that the component refuses, or a name that is no Verilog identifier.
        """
        config = self.default if config is None else config
        if config not in self.configs:
            raise UnknownNameError(f"configuration of {self.name}", config, self.configs)
        given = dict(changes or {})
        parameters = bind(self.component, {**self.configs[config], **given})
        known = parameters_of(self.component)
        label = "+".join(
            [config, *(f"{key}={known[key].write(value)}" for key, value in given.items())]
        )
        top = re.sub(r"[^A-Za-z0-9]+", "_", f"{self.name}_{label}") if name is None else name
        _check_identifier(top)
        instance = Instance(self, label, parameters, top)
        _ = instance.component  # refuses what does not go together
        return instance

    def labelled(self, label: str) -> "Instance":
        """Return the instance whose ``config`` is ``label``, as accepted figures name it.

        Raises as `instance` does, and as reading settings does.
        """
        config, *settings = label.split("+")
        return self.instance(config, parse_settings(self.component, settings))


def _check_identifier(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in VERILOG_KEYWORDS:
        raise InputError(
            f"name={name!r}: a Verilog module is called by letters, digits and underscores, a "
            "letter first, and by no keyword"
        )


@dataclass(frozen=True)
class Instance:
    """A unit with all its parameters bound: what is emitted, simulated, measured and built.

    Members
    -------
    unit
        Its row.
    config
        Name of the configuration, with the changes behind it.

    Parameters
    ----------
        Every parameter of the component, by its own name.
    top
        Name of the Verilog module.
    """

    unit: Unit
    config: str
    parameters: Mapping[str, Any]
    top: str

    @classmethod
    def of(cls, facts: Facts) -> "Instance":
        """Return the instance that ``facts`` are of, by the catalog."""
        row = find_unit(facts.unit)
        known = parameters_of(row.component)
        parameters = {
            name: known[name].parse(value) if isinstance(value, str) else value
            for name, value in facts.parameters.items()
        }
        return cls(row, facts.config, parameters, facts.top)

    @cached_property
    def component(self) -> Component:
        """The component, built once."""
        return self.unit.component(**self.parameters)

    @cached_property
    def facts(self) -> Facts:
        """The facts about it, made once."""
        component: Any = self.component
        beats = component.beats_per_group
        clocks = getattr(component, "clocks_per_group", beats)
        streams = streams_of(component)
        combinational = not streams and component.latency == 0
        return Facts(
            unit=self.unit.name,
            config=self.config,
            top=self.top,
            purpose=self.unit.purpose,
            version=__version__,
            parameters={name: plain(value) for name, value in self.parameters.items()},
            streams=streams,
            signals=signals_of(component),
            latency=component.latency,
            beats_per_group=beats,
            clocks_per_group=clocks,
            clocks_per_block=getattr(component, "clocks_per_block", clocks),
            groups_per_clock=getattr(component, "groups_per_clock", 1 / clocks),
            macs_per_clock=getattr(component, "macs_per_clock", None),
            results_per_group=getattr(component, "results_per_group", 1),
            long_groups=getattr(component, "long_groups", None),
            clock="" if combinational else "clk",
            reset="" if combinational else "rst",
        )


# Formats of both sides that go together in a dot product.
_PAIRS = {"act weight": ("mxfp4 mxfp4", "nvfp4 nvfp4", "m2xfp-act m2xfp-weight")}


def _multiplied(given: Mapping[str, Any]) -> tuple[str, str]:
    """Return the formats of a unit that multiplies."""
    return given["weight"], given["act"]


def _encoded(given: Mapping[str, Any]) -> tuple[str, str]:
    """Return the formats of the weight encoder, whose search is in fixed point."""
    options = {
        "adaptive": str(given["adaptive"]).lower(),
        "search": "fixed",
        "fraction_bits": given["fraction_bits"],
    }
    texts = [f"{name}={value}" for name, value in options.items() if value is not None]
    name, _, layout = given["block"].partition(":")
    return f"{name}:{','.join([*filter(None, [layout]), *texts])}", "none"


# AMXFP4 with other scales, and a window of all sums of exponents of two E5M2 scales: 58 + 19 bits
# hold any one group, the other 15 the sum of 2^15 of the largest.
_E4M3, _POT = (block_format(f"amxfp4:scale_mode={mode}") for mode in ("e4m3", "pot"))
_E5M2_EXPONENTS = Window("2..60/92", 2, 60, 92)

_MICROMIX = {"scale_rule": "ceil", "zero_scale": 126}

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
                "mxfp4-ceil-bf16x32": {"block": MXFP4, "scale_rule": "ceil"},
                "mxfp4-rtn1-bf16x32": {"block": MXFP4, "scale_rule": "rtn1"},
                "mxfp4-rtn2-bf16x32": {"block": MXFP4, "scale_rule": "rtn2"},
                "mxfp4-even-bf16x32": {"block": MXFP4, "scale_rule": "even"},
                # MicroMix's and MXQuant's segments: scales never too small, 2^-1 for zeros.
                "micromix-mxfp4-bf16x32": {"block": MXFP4, **_MICROMIX},
                "micromix-mxfp6-bf16x32": {"block": MXFP6_E3M2, **_MICROMIX},
                "micromix-mxfp8-bf16x32": {"block": MXFP8_E4M3, **_MICROMIX},
                "mxint8-bf16x32": {"block": MXINT8},
                "int4-bf16x32": {"block": INT4_SYM},
                "smx4-bf16x16": {"block": SMX4, "lanes": 16},
                "amxfp4-pot-bf16x32": {"block": block_format("amxfp4:scale_mode=pot")},
            },
            sweep=Sweep(
                axes={
                    "input_type": ("bf16", "fp32"),
                    "lanes": ("8", "16", "32"),
                    "block": ("mxfp4", "m2xfp-act:subgroup=4", "m2xfp-act"),
                    "stages": ("3", "4"),
                },
                formats=lambda given: ("none", given["block"]),
            ),
            board=Board(name="quantizer", config="bf16x8"),
        ),
        Unit(
            name="minifloat_quantizer",
            purpose="floating-point activations to packed groups with E4M3 or E5M2 scales",
            component=MinifloatQuantizer,
            configs={
                "nvfp4-bf16x16": {},
                "nvfp4-bf16x8": {"lanes": 8},
                "nvfp4-fp32x16": {"input_type": FP32},
                "nvfp4-two-level-bf16x16": {"tensor_scale": True},
                "m2nvfp4-bf16x16": {"block": M2NVFP4_ACT},
                "m2nvfp4-two-level-bf16x16": {"block": M2NVFP4_ACT, "tensor_scale": True},
                "amxfp4-bf16x32": {"block": AMXFP4, "lanes": 32},
                "amxfp4-bf16x8": {"block": AMXFP4, "lanes": 8},
                "amxfp4-e4m3-bf16x32": {
                    "block": block_format("amxfp4:scale_mode=e4m3"),
                    "lanes": 32,
                },
            },
            sweep=Sweep(
                axes={"lanes": ("8", "16"), "input_type": ("bf16", "fp32"), "block": ("nvfp4",)},
                formats=lambda given: ("none", given["block"]),
            ),
            board=Board(name="minifloat", config="nvfp4-bf16x8"),
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
            sweep=Sweep(
                axes={
                    "input_type": ("bf16",),
                    "adaptive": ("true", "false"),
                    "clocks_per_group": ("4", "12"),
                    "fraction_bits": ("5", "6", "8", "10"),
                },
                formats=_encoded,
            ),
            board=Board(name="encoder", config="bf16-adaptive-12"),
        ),
        Unit(
            name="hadamard",
            purpose="blocks of bfloat16 values to their Walsh-Hadamard transform, random signs",
            component=Hadamard,
            configs={
                "32x32": {"points": 32, "lanes": 32},
                "32x8": {"points": 32, "lanes": 8},
                "128x32": {"points": 128, "lanes": 32},
            },
            board=Board(name="hadamard", config="32x8"),
        ),
        Unit(
            name="hadamard_quantizer",
            purpose="blocks of bfloat16 values, transformed, to packed M2XFP groups (Elem-EM)",
            component=HadamardQuantizer,
            configs={
                "32x32": {"points": 32, "lanes": 32},
                "32x8": {"points": 32, "lanes": 8},
            },
            board=Board(name="hadamard_quantizer", config="32x8"),
        ),
        Unit(
            name="channel_permuter",
            purpose="rows of values with their channels in the order of a table",
            component=ChannelPermuter,
            configs={
                "bf16x8": {"lanes": 8, "max_k": 64},
                "bf16x16": {},
                "fp32x4": {"input_type": FP32, "lanes": 4, "max_k": 20},
            },
            board=Board(
                name="permuter",
                config="bf16x8",
                changes={"max_k": 32},
                host="whole",
                asks=("i",),
            ),
        ),
        Unit(
            name="activation_decoder",
            purpose="top-1 element of an activation subgroup and its refinement",
            component=ActivationDecoder,
            configs={"m2xfp": {}},
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
            sweep=Sweep(axes={**_PAIRS, "chains": ("1", "2", "3")}, formats=_multiplied),
        ),
        Unit(
            name="exact_accumulator",
            purpose="accumulation of exact group products in fixed point, one rounding a result",
            component=ExactAccumulator,
            configs={
                "m2xfp": {"window": USUAL_EXPONENTS},
                "m2xfp-all": {"window": ALL_EXPONENTS},
            },
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
                "mxfp6-fp32": {"act": MXFP6_E3M2, "weight": MXFP6_E3M2},
                "mxfp8-mxfp4-fp32": {"act": MXFP8_E4M3, "weight": MXFP4},
                "mxfp8-m2xfp-fp32": {"act": MXFP8_E4M3},
                "mxfp8-fp32": {"act": MXFP8_E4M3, "weight": MXFP8_E4M3},
                "mxfp8-fp32_16": {"act": MXFP8_E4M3, "weight": MXFP8_E4M3, "lanes": 16},
                "mxfp8-fp32_8": {"act": MXFP8_E4M3, "weight": MXFP8_E4M3, "lanes": 8},
            },
            sweep=Sweep(
                axes={
                    **_PAIRS,
                    "window": ("none", "usual"),
                    "chains": ("1", "3"),
                    "depth": ("1", "2"),
                },
                formats=_multiplied,
            ),
            board=Board(name="dot", config="m2xfp-fp32-single", host="dot_products"),
        ),
        Unit(
            name="switching_dot_product",
            purpose="groups of MXFP4, MXFP6, MXFP8 or M2XFP, switched group by group, to FP32",
            component=SwitchingDotProduct,
            configs={
                "micromix-16": {},
                "micromix-8": {"fp8_lanes": 8},
                "micromix-16-exact": {"chains": 1, "window": Window("200..280/160", 200, 280, 160)},
                "m2xfp-16": {"pairs": "m2xfp"},
                "m2xfp-8": {"pairs": "m2xfp", "fp8_lanes": 8},
                "m2xfp-fp8-8": {"pairs": "m2xfp-fp8", "fp8_lanes": 8},
                "all-8": {"pairs": "all", "fp8_lanes": 8},
            },
            board=Board(name="switching", config="micromix-8", changes={"chains": 2}, host="whole"),
        ),
        Unit(
            name="asymmetric_dot_product",
            purpose="groups with a scale for each sign (AMXFP4) to running dot products",
            component=AsymmetricDotProduct,
            configs={
                "e5m2-half": {},
                "e5m2-full": {"sums": 2, "chains": 6},
                "e5m2-half-exact": {"chains": 1, "window": _E5M2_EXPONENTS},
                "e5m2-full-exact": {"sums": 2, "chains": 1, "window": _E5M2_EXPONENTS},
                "e5m2-both-quarter": {"weight": AMXFP4},
                "e5m2-both-half": {"weight": AMXFP4, "sums": 2, "chains": 6},
                "e4m3-half": {"act": _E4M3, "weight": block_format("mxfp4:scale_mode=e4m3")},
                "pot-half": {"act": _POT, "weight": MXFP4},
            },
            board=Board(
                name="asymmetric",
                config="e5m2-half",
                changes={"chains": 1},
                host="dot_products",
            ),
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
        ),
        Unit(
            name="mixed_gemm",
            purpose="products whose k is cut into segments of MXFP4, MXFP6, MXFP8 or M2XFP",
            component=MixedGemm,
            configs={
                "micromix-2x2": {"rows": 2, "columns": 2, "max_k": 512, "chains": 3},
                "micromix-8-2x2": {
                    "fp8_lanes": 8,
                    "rows": 2,
                    "columns": 2,
                    "max_k": 512,
                    "chains": 4,
                    "tile": 32,
                    "results": "fp32",
                },
                "m2xfp-1x2": {
                    "pairs": "m2xfp",
                    "rows": 1,
                    "columns": 2,
                    "max_k": 256,
                    "chains": 2,
                    "tile": 64,
                    "results": "bf16",
                },
            },
            board=Board(name="mixed_gemm", config="m2xfp-1x2", host="whole"),
        ),
        Unit(
            name="accelerator",
            purpose="products and packing of matrices from memory to memory, over AXI4",
            component=Accelerator,
            configs={
                "m2xfp-2x2": {"rows": 2, "columns": 2, "max_k": 512, "bus": "128", "chunk": 8},
                "m2xfp-1x32": {"bus": "1024", "chunk": 128, "outstanding": 64},
            },
            board=Board(
                name="accelerator",
                config="m2xfp-2x2",
                changes={
                    **{"rows": 1, "columns": 2, "quantizer": BF16, "encoder": None},
                    **{"chunk": 2, "slots": 2, "outstanding": 4, "queue": 4},
                },
                host="matrices",
                memory=1 << 16,
            ),
        ),
    )
}


def find_unit(name: str) -> Unit:
    """Return the unit called ``name``; UnknownNameError lists those that exist."""
    if name not in UNITS:
        raise UnknownNameError("unit", name, UNITS)
    return UNITS[name]


def select(unit: str | None = None, config: str | None = None) -> Iterator[Instance]:
    """Yield an instance for all units and configurations that match; None stands for every one.

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
        row.instance(name)
        for row in units
        for name in row.configs
        if config is None or name == config
    )
