"""The explorer: a page that quantizes values in every format, and plots what the units cost.

One file that loads nothing: its arithmetic is the golden model's own C++ (golden/kernels), as
WebAssembly, with the plans of `m2xfp.golden.kernels.plan`; its figures are those of
docs/results. The page itself only unpacks bits and draws.
"""

import json
import math
import shlex
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import plotly.offline
import torch

from m2xfp.errors import tool_failure
from m2xfp.files import cache_environment, read_sealed, write_sealed
from m2xfp.formats import BLOCK_FORMATS, FloatElement, IntElement
from m2xfp.golden import get_format
from m2xfp.golden.formats.elements import decode, decode_magnitude
from m2xfp.golden.kernels.native import LIBRARY
from m2xfp.golden.kernels.plan import plan_of
from m2xfp.processes import run
from m2xfp.rtl.catalog import find_unit

__all__ = ["VARIANTS", "arithmetic", "described", "explorer_page", "points"]

_HERE = Path(__file__).parent

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {}) for name in BLOCK_FORMATS),
    *((name, {"tensor_scale": "auto"}) for name in ("nvfp4", "m2nvfp4-act", "m2nvfp4-weight")),
    *(("mxfp4", {"scale_rule": rule}) for rule in ("ceil", "rtn1", "rtn2", "even")),
    ("mxfp4", {"ties": "away"}),
    ("m2xfp-weight", {"adaptive": False}),
    *(("amxfp4", {"scale_mode": mode}) for mode in ("pot", "e4m3")),
)
"""The formats that the page offers, with their options."""

_OPTIONS = ("clock_gating",)  # of the flow, as `m2xfp synth` has them
_SHOWN = ("mxfp4", "m2xfp-act", "m2xfp-weight", "nvfp4")
_FLAGS = (
    *("-target", "wasm32-wasi", "-mexec-model=reactor", "-O2", "-g0", "-s", "-std=c++17"),
    *("-ffp-contract=off", "-fno-exceptions", "-fno-rtti"),
    *(f"-Wl,--export={name}" for name in ("m2xfp_run", "m2xfp_largest", "malloc")),
)


def arithmetic(cache: Path) -> bytes:
    """Return the golden model's C++ as a WebAssembly module; compiled once, kept in ``cache``.

    Raises
    ------
    ToolError
        The compiler failed; the message has what it said.
    """
    source = LIBRARY.source
    key = sha256(source.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:24]
    kept = cache / f"explorer-{key}.wasm"
    found = read_sealed(kept)
    if found is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache) as folder:  # another process may compile at the same time
        made = Path(folder) / "explorer.wasm"
        command = [sys.executable, "-m", "ziglang", "c++", *_FLAGS, "-o", str(made), str(source)]
        done = run(command, environment=cache_environment())
        module = made.read_bytes() if not done.returncode else b""
    if done.returncode:
        raise tool_failure("zig c++", str(source), done.stdout, done.returncode, cache)
    write_sealed(kept, module)
    return module


def _number(value: float) -> float | str:
    """Return a number for JSON, which has no infinities and no NaN."""
    return value if math.isfinite(value) else str(value)


def described() -> list[dict[str, Any]]:
    """Return what the page needs to know of each format of ``VARIANTS``, in order.

    That is how its planes are laid out, the values of all codes and scales, and the plan that
    the arithmetic is specialised by.
    """
    return [_described(name, options) for name, options in VARIANTS]


def _described(name: str, options: dict[str, Any]) -> dict[str, Any]:
    fmt = get_format(name, **options)
    block, element, scale = fmt.block, fmt.block.element, fmt.block.scale
    codes = decode(torch.arange(2**element.bits), element)
    scales: list[float | str] | None = None
    if scale.bits == 8 and scale.grid is None:
        scales = [*(2.0 ** (byte - scale.bias) for byte in range(255)), "nan"]
    elif scale.bits == 8 and scale.grid is not None:
        values = decode_magnitude(torch.arange(128), scale.grid).tolist()
        scales = [_number(value) for value in (*values, *values)]
        scales[scale.nan] = "nan"
    plan = plan_of(fmt)
    told = ", ".join(f"{key}={value}" for key, value in options.items())
    level = fmt.level is not None and scale.grid is not None
    return {
        "name": name + (f", {told}" if told else ""),
        "shown": name in _SHOWN and not options,
        "bits_per_value": float(block.bits_per_value),
        "group": block.group,
        "element": element.name,
        "element_bits": element.bits,
        "fields": _fields(element),
        "values": [_number(value) for value in codes.tolist()],
        "code_bytes": plan.code_bytes,
        "scale": scale.name,
        "scale_bytes": block.group_bytes[1],
        "scales": scales,
        "split": plan.split,
        "affine": plan.affine,
        "metadata": block.metadata.name,
        "metadata_bits": block.metadata.bits,
        "meta_bytes": plan.meta_bytes,
        "subgroup": block.metadata.subgroup,
        # The tensor scale that reaches the largest value: the largest magnitude over this.
        "reach": float(element.max_value * scale.grid.max_value) if level and scale.grid else None,
        "plan": plan.numbers(),
    }


def _fields(element: FloatElement | IntElement) -> list[int]:
    """Return the widths of a code's fields: sign, exponent, mantissa; or all of an integer."""
    if isinstance(element, IntElement):
        return [element.bits]
    return [1, element.exponent_bits, element.mantissa_bits]


def points(results: Path) -> list[dict[str, Any]]:
    """Return the figures of every unit and library in ``results``, each with its command.

    ``loss`` is how much the bundled model's perplexity grows, in percent, with the unit's
    formats: both of a product, or that of a quantizer's activations; None where no format of
    the unit was evaluated.
    """
    losses = _losses(results)
    found = []
    for path in sorted(results.glob("synth-*.json")):
        accepted = json.loads(path.read_text())
        flow = accepted["flow"]
        flags = [f"--{key.replace('_', '-')}" for key in _OPTIONS if flow.get(key)]
        flags += ["--no-full-adders"] * (not flow.get("full_adders"))  # they are the default
        for row in accepted["rows"]:
            words = ["m2xfp", "synth", row["unit"], "--config", row["config"], "--pdk", row["pdk"]]
            parameters = find_unit(row["unit"]).instance(row["config"]).parameters
            first = parameters.get("act", parameters.get("block"))
            formats = [getattr(each, "name", "none") for each in (parameters.get("weight"), first)]
            found.append(
                {
                    "unit": row["unit"],
                    "config": row["config"],
                    "library": " ".join([row["pdk"], *(flag.strip("-") for flag in flags)]),
                    "command": shlex.join([*words, *flags]),
                    "area": row["area_um2"],
                    "path": row["critical_path_ns"],
                    "flops": row["flops"],
                    "energy": row.get("energy_pj_per_group"),
                    "mac_energy": row.get("energy_pj_per_mac"),
                    "power": row.get("power_mw"),
                    "loss": losses.get(tuple(formats)),
                }
            )
    return found


def _losses(results: Path) -> dict[tuple[str, ...], float]:
    """Return the growth of perplexity in percent by the formats of weights and activations."""
    rows = json.loads((results / "perplexity.json").read_text())["results"]
    return {
        (row["weights"], row["activations"]): 100 * (row["over_unquantized"]["value"] - 1)
        for row in rows
        if row["cache"] == row["operands"] == "none" and "over_unquantized" in row
    }


def explorer_page(results: Path, cache: Path) -> str:
    """Return the page, which works from a file and without a network."""
    page = (_HERE / "explorer.html").read_text()
    data = {
        "formats": described(),
        "points": points(results),
        "module": b64encode(arithmetic(cache)).decode(),
    }
    parts = {
        "{{plotly}}": plotly.offline.get_plotlyjs(),
        "{{data}}": json.dumps(data).replace("<", "\\u003c"),
        "{{script}}": (_HERE / "explorer.js").read_text(),
    }
    for mark, text in parts.items():
        page = page.replace(mark, text)
    return page
