"""Sweeps over a unit's parameters: silicon and accuracy of every combination, on Dask.

A point is a unit with one set of parameters on one library. Its figures are those of a synthesis
report; its accuracy is the perplexity of the bundled language model with its tensors in the format
that the point computes. Every point is kept in a file as soon as it is known, so that a sweep goes
on where it was interrupted.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2xfp import formats
from m2xfp.errors import InputError, MissingToolError, UnknownNameError
from m2xfp.files import sources_digest, write_atomic
from m2xfp.rtl.catalog import Unit, find_unit
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import FlowOptions
from m2xfp.synth.report.figures import Row, measure

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "SPACES",
    "Outcome",
    "Point",
    "Space",
    "explore",
    "front",
    "parse_sweep",
    "points_of",
]

EXPLORED = Path("build/explore")
_ANY = "any"  # value of a parameter that plays no part
WINDOWS = 8  # windows of 512 bytes that perplexities are measured on


@dataclass(frozen=True)
class Space:
    """What can be swept of a unit.

    Members
    -------
    defaults
        The sweep if none is given, as text by parameter.
    keywords
        Turns the texts of a point into the component's keyword arguments.
    golden
        The formats that the point computes: (weights, activations), as ``m2xfp eval`` takes them.
    """

    defaults: Mapping[str, tuple[str, ...]]
    keywords: Callable[[Mapping[str, str]], dict[str, Any]]
    golden: Callable[[Mapping[str, str]], tuple[str, str]]


def _whole(name: str, text: str) -> int:
    if not text.isdigit():
        raise InputError(f"{name}={text}: give whole numbers")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text not in {"true", "false"}:
        raise InputError(f"{name}={text}: give true or false")
    return text == "true"


def _quantizer_keywords(given: Mapping[str, str]) -> dict[str, Any]:
    block = formats.block_format(given["block"])
    if block.metadata.bits:
        # Named as golden's options are written, which is how the run for power finds the format.
        block = replace(
            block,
            name=_quantizer_golden(given)[1],
            metadata=replace(block.metadata, subgroup=_whole("subgroup", given["subgroup"])),
        )
    return {
        "input_type": formats.input_type(given["input_type"]),
        "lanes": _whole("lanes", given["lanes"]),
        "block": block,
        "stages": _whole("stages", given["stages"]),
    }


def _quantizer_golden(given: Mapping[str, str]) -> tuple[str, str]:
    has_metadata = formats.block_format(given["block"]).metadata.bits
    return "none", given["block"] + (f":subgroup={given['subgroup']}" if has_metadata else "")


def _encoder_keywords(given: Mapping[str, str]) -> dict[str, Any]:
    keywords: dict[str, Any] = {
        "input_type": formats.input_type(given["input_type"]),
        "adaptive": _flag("adaptive", given["adaptive"]),
        "clocks_per_group": _whole("clocks_per_group", given["clocks_per_group"]),
    }
    if "fraction_bits" in given:
        keywords["fraction_bits"] = _whole("fraction_bits", given["fraction_bits"])
    return keywords


def _encoder_golden(given: Mapping[str, str]) -> tuple[str, str]:
    options = [f"adaptive={given['adaptive']}", "search=fixed"]
    if "fraction_bits" in given:
        options.append(f"fraction_bits={given['fraction_bits']}")
    return f"m2xfp-weight:{','.join(options)}", "none"


# Formats of activations and weights that go together in a dot product.
_PAIRS = {
    "mxfp4": ("mxfp4", "mxfp4"),
    "nvfp4": ("nvfp4", "nvfp4"),
    "m2xfp": ("m2xfp-act", "m2xfp-weight"),
}


def _pair(given: Mapping[str, str]) -> tuple[str, str]:
    if given["format"] not in _PAIRS:
        raise UnknownNameError("format of a dot product", given["format"], _PAIRS)
    return _PAIRS[given["format"]]


def _accumulator_keywords(given: Mapping[str, str]) -> dict[str, Any]:
    act, weight = map(formats.block_format, _pair(given))
    return {"act": act, "weight": weight, "chains": _whole("chains", given["chains"])}


def _dot_keywords(given: Mapping[str, str]) -> dict[str, Any]:
    windows = {"fp32": None, "exact": formats.USUAL_EXPONENTS}
    if given["accumulator"] not in windows:
        raise UnknownNameError("accumulator", given["accumulator"], windows)
    return _accumulator_keywords(given) | {
        "depth": _whole("depth", given["depth"]),
        "window": windows[given["accumulator"]],
    }


def _dot_golden(given: Mapping[str, str]) -> tuple[str, str]:
    act, weight = _pair(given)
    return weight, act


SPACES: dict[str, Space] = {
    "activation_quantizer": Space(
        {
            "input_type": ("bf16", "fp32"),
            "lanes": ("8", "16", "32"),
            "block": ("mxfp4", "m2xfp-act"),
            "subgroup": ("4", "8"),
            "stages": ("3", "4"),
        },
        _quantizer_keywords,
        _quantizer_golden,
    ),
    "weight_encoder": Space(
        {
            "input_type": ("bf16",),
            "adaptive": ("true", "false"),
            "clocks_per_group": ("4", "12"),
            "fraction_bits": ("5", "6", "8", "10"),
        },
        _encoder_keywords,
        _encoder_golden,
    ),
    "dot_product": Space(
        {
            "format": tuple(_PAIRS),
            "accumulator": ("fp32", "exact"),
            "chains": ("1", "3"),
            "depth": ("1", "2"),
        },
        _dot_keywords,
        _dot_golden,
    ),
    "fp32_accumulator": Space(
        {"format": tuple(_PAIRS), "chains": ("1", "2", "3")}, _accumulator_keywords, _dot_golden
    ),
}


def parse_sweep(unit: str, texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read ``name=value,value,...``; parameters that are not given keep their default sweep.

    Raises
    ------
    UnknownNameError
        A unit that cannot be swept, or a parameter that it does not have.
    InputError
        Text that is not ``name=value,...``.
    """
    if unit not in SPACES:
        raise UnknownNameError("unit to explore", unit, SPACES)
    sweep = dict(SPACES[unit].defaults)
    for text in texts:
        name, equals, values = text.partition("=")
        if name not in sweep:
            raise UnknownNameError(f"parameter of {unit}", name, sweep)
        parts = tuple(value for value in values.split(",") if value)
        if not equals or not parts:
            raise InputError(f"--sweep {text}: give NAME=VALUE,VALUE,...")
        sweep[name] = parts
    return sweep


@dataclass(frozen=True)
class Point:
    """A unit with one set of parameters.

    Members
    -------
    unit
        Name in the catalog.

    Parameters
    ----------
        Text by parameter, in the order of the unit's space.
    """

    unit: str
    parameters: tuple[tuple[str, str], ...]

    @property
    def space(self) -> Space:
        """The space it is of."""
        return SPACES[self.unit]

    @property
    def label(self) -> str:
        """The values alone, for plots and module names."""
        return "-".join(value for _, value in self.parameters)

    @property
    def golden(self) -> tuple[str, str]:
        """Formats of weights and activations."""
        return self.space.golden(dict(self.parameters))

    def catalog_row(self) -> Unit:
        """Return the catalog's row with this point as its one configuration."""
        keywords = self.space.keywords(dict(self.parameters))
        return replace(find_unit(self.unit), configs={self.label: keywords})


def points_of(unit: str, sweep: Mapping[str, Sequence[str]]) -> list[Point]:
    """Return the points of a sweep that the unit can be built for, in order, each once.

    A combination that the component refuses is left out, as is one that differs from another in a
    parameter that plays no part in it, which then is ``any``.
    """
    found: dict[str, Point] = {}
    for values in itertools.product(*sweep.values()):
        point = Point(unit, tuple(zip(sweep, values, strict=True)))
        try:
            row = point.catalog_row()
            row.instance(point.label)
        except InputError:
            continue
        what = repr(row.configs[point.label])
        same = found.get(what, point)
        found[what] = Point(
            unit,
            tuple(
                (name, value if value == other else _ANY)
                for (name, value), (_, other) in zip(point.parameters, same.parameters, strict=True)
            ),
        )
    if not found:
        raise InputError(f"{unit} can be built for none of the combinations of this sweep")
    return list(found.values())


@dataclass(frozen=True)
class Outcome:
    """What is known of a point.

    Members
    -------
    unit, parameters, pdk
        The point and the library.
    weights, activations
        Formats of the accuracy.
    bits_per_value
        Of the format that it makes.
    perplexity_ratio
        Perplexity of the bundled model over that without quantization; None if not asked for.
    row
        The figures of its synthesis report.
    """

    unit: str
    parameters: dict[str, str]
    pdk: str
    weights: str
    activations: str
    bits_per_value: float
    perplexity_ratio: float | None
    row: dict[str, Any] = field(repr=False)


def _measure(point: Point, pdk: Pdk, options: FlowOptions, build: Path) -> Row:
    """Run by a worker: the silicon of a point."""
    return measure(point.catalog_row().instance(point.label), pdk, options, power=True, build=build)


def _perplexity(weights: str, activations: str, build: Path) -> float:
    """Run by a worker: the perplexity of the bundled model."""
    from m2xfp.models.evaluate import Case, bundled_losses, cut_windows, perplexity
    from m2xfp.models.lm import HELD_OUT, as_tokens

    windows = cut_windows(as_tokens(HELD_OUT.read_bytes()), 512)
    chosen = windows[:: max(1, len(windows) // WINDOWS)][:WINDOWS]
    return perplexity(bundled_losses(Case.parse(weights, activations), chosen, build))


@contextmanager
def _client(scheduler: str | None, workers: int) -> Iterator["Client"]:
    """Connect to a Dask scheduler, or start workers on this machine."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingToolError(
            "the Python package distributed (Dask)", "pip install 'm2xfp[explore]'"
        ) from error
    if scheduler:
        try:
            with Client(scheduler, timeout="20s") as client:
                yield client
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"scheduler {scheduler!r} does not answer: {error}") from error
        return
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def explore(
    points: Sequence[Point],
    pdks: Sequence[Pdk],
    options: FlowOptions,
    *,
    accuracy: bool = True,
    scheduler: str | None = None,
    workers: int = 2,
    folder: Path = EXPLORED,
) -> list[Outcome]:
    """Measure every point on every library; what is in ``folder`` already is not measured again.

    Parameters
    ----------
    points, pdks, options
        What, onto what, how.
    accuracy
        Whether to evaluate the bundled model too.
    scheduler
        Address of a Dask scheduler, whose workers must see the same files; None starts processes
        on this machine.
    workers
        How many.
    folder
        Where outcomes are kept.
    """
    from tqdm import tqdm

    folder = folder.absolute()
    kept: dict[tuple[Point, str], Path] = {
        (point, pdk.name): folder / f"{_key(point, pdk, options)}.json"
        for point in points
        for pdk in pdks
    }
    cases = dict.fromkeys([("none", "none"), *(point.golden for point in points)])
    ratios: dict[tuple[str, str], float | None] = dict.fromkeys(cases)
    missing = [key for key, path in kept.items() if not path.exists()]
    if missing or accuracy:
        by_name = {pdk.name: pdk for pdk in pdks}
        with _client(scheduler, workers) as client:
            from distributed import as_completed

            tasks: dict[Any, Any] = {
                client.submit(
                    _measure, point, by_name[name], options, folder / "synth", pure=False
                ): (point, name)
                for point, name in missing
            }
            if accuracy:
                tasks |= {
                    client.submit(_perplexity, *case, folder, pure=False): case for case in cases
                }
            perplexities: dict[Any, float] = {}
            with tqdm(total=len(tasks), desc="Exploring", unit="task", disable=None) as bar:
                for done in as_completed(list(tasks)):
                    result, task = done.result(), tasks[done]
                    if isinstance(result, Row):
                        write_atomic(kept[task], json.dumps(asdict(result)))
                    else:
                        perplexities[task] = result
                    bar.update()
            for case, value in perplexities.items():
                ratios[case] = value / perplexities["none", "none"]
    return [
        Outcome(
            unit=point.unit,
            parameters=dict(point.parameters),
            pdk=name,
            weights=point.golden[0],
            activations=point.golden[1],
            bits_per_value=_bits(point),
            perplexity_ratio=ratios[point.golden],
            row=json.loads(path.read_text()),
        )
        for (point, name), path in kept.items()
    ]


def _bits(point: Point) -> float:
    from m2xfp.models.evaluate import Case

    bits = Case.parse(*point.golden).bits_per_value
    return float(bits) if bits else 0.0


def _key(point: Point, pdk: Pdk, options: FlowOptions) -> str:
    """Return a hash of all that decides a point's figures: sources, library, flow, parameters."""
    facts = sha256(repr((point, pdk.name, options)).encode())
    facts.update(sources_digest("m2xfp.formats", "m2xfp.rtl", "m2xfp.tb", "m2xfp.synth"))
    for path in pdk.liberty:
        facts.update(sha256(path.read_bytes()).digest())
    return facts.hexdigest()[:24]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other beats in both coordinates; small is good."""
    best: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not best or points[index][1] < points[best[-1]][1]:
            best.append(index)
    return best
