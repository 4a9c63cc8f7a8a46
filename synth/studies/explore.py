"""Sweeps over a unit's parameters: silicon and accuracy of every combination, on Dask.

A point is an instance of a unit on one library. Its figures are those of a synthesis report; its
accuracy is the perplexity of the bundled language model with its tensors in the format that the
point computes. Every point is kept in a file as soon as it is known, so that a sweep goes on where
it was interrupted.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2xfp.errors import InputError, MissingToolError, UnknownNameError
from m2xfp.facts import Facts
from m2xfp.files import read_sealed, sources_digest, write_sealed
from m2xfp.rtl.catalog import Instance, Unit
from m2xfp.rtl.parameters import Parameter, parameters_of
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import FlowOptions
from m2xfp.synth.report.figures import Row, measure

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Outcome", "Point", "explore", "front", "parse_sweep", "points_of"]

EXPLORED = Path("build/explore")
WINDOWS = 32  # windows of 512 bytes that perplexities are measured on; with 8, chance decides

Axes = Mapping[str, Sequence[str]]
"""Values by parameter, or by parameters that change together, as ``Sweep.axes`` has them."""


def parse_sweep(
    unit: Unit, texts: Iterable[str], fixed: Iterable[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Read ``NAME=VALUE,VALUE,...`` texts, over the unit's own sweep.

    A text replaces what the unit's own sweep has of its parameters. ``"NAME NAME=V V,V V"`` gives
    parameters that change together.

    Parameters
    ----------
    unit
        What is swept.
    texts
        Values of ``--sweep``.
    fixed
        Parameters that are given otherwise, and so not swept.

    Raises
    ------
    UnknownNameError
        A parameter that the unit does not have.
    InputError
        Text that is not ``NAME=VALUE,...``, a value that the parameter cannot have, a parameter
        that is swept twice, or nothing to sweep.
    """
    known = parameters_of(unit.component)
    given: dict[str, tuple[str, ...]] = {}
    for text in texts:
        names, equals, values = text.partition("=")
        # A comma inside a format's options, as in m2xfp-act:group=64,subgroup=4, is none of ours.
        parts = tuple(value for value in re.split(r",(?![a-z_]+=)", values) if value)
        if not equals or not parts:
            raise InputError(f"--sweep {text}: give NAME=VALUE,VALUE,...")
        for value in parts:
            _parse(known, names, value)
        given[names] = parts
    own = unit.sweep.axes if unit.sweep is not None else {}
    taken = [name for names in given for name in names.split()]
    for name in {*taken, *fixed}:
        if taken.count(name) > 1 or (name in fixed and name in taken):
            raise InputError(f"{name}: give one of --sweep and --set, and give it once")
    kept = {
        names: given.get(names, tuple(values))  # in its place, so that points keep their order
        for names, values in own.items()
        if names in given or not {*names.split()} & {*taken, *fixed}
    }
    axes = {**kept, **given}
    if not axes:
        raise InputError(
            f"{unit.name} has no sweep of its own; name parameters: --sweep NAME=VALUE,VALUE,... "
            f"with names of: {', '.join(known)}"
        )
    return axes


def _parse(known: Mapping[str, Parameter], names: str, text: str) -> dict[str, Any]:
    """Return the values of one point of an axis by parameter."""
    keys, values = names.split(), text.split()
    for key in keys:
        if key not in known:
            raise UnknownNameError("parameter", key, known)
    if len(keys) != len(values):
        raise InputError(f"--sweep {names}={text}: give {len(keys)} values with spaces between")
    return {key: known[key].parse(value) for key, value in zip(keys, values, strict=True)}


@dataclass(frozen=True)
class Point:
    """An instance of a unit in a sweep.

    Members
    -------
    instance
        The unit with all parameters bound.
    swept
        What was swept of them, as texts by name.
    """

    instance: Instance
    swept: Mapping[str, str]

    @property
    def formats(self) -> tuple[str, str] | None:
        """Formats of weights and activations that say how accurate it is; None if nothing does."""
        sweep = self.instance.unit.sweep
        return sweep.formats(self.instance.facts.parameters) if sweep is not None else None


def points_of(
    unit: Unit, config: str | None, changes: Mapping[str, Any], axes: Axes
) -> list[Point]:
    """Return the points of a sweep that the unit can be built for, in order, each once.

    A combination that the component refuses is left out.

    Parameters
    ----------
    unit, config, changes
        What the points start from, as for ``Unit.instance``.
    axes
        What is varied, see ``parse_sweep``.

    Raises
    ------
    InputError
        The component refuses all combinations; the text has its reason for the last one.
    """
    known = parameters_of(unit.component)
    found: dict[str, Point] = {}
    reason: InputError | None = None
    for values in itertools.product(*axes.values()):
        swept: dict[str, Any] = {}
        for names, text in zip(axes, values, strict=True):
            swept |= _parse(known, names, text)
        try:
            instance = unit.instance(config, {**changes, **swept})
        except InputError as error:
            reason = error
            continue
        texts = {name: known[name].write(value) for name, value in swept.items()}
        found.setdefault(repr(sorted(texts.items())), Point(instance, texts))
    if not found:
        raise InputError(
            f"{unit.name} can be built for none of the combinations of this sweep: {reason}"
        )
    return list(found.values())


@dataclass(frozen=True)
class Outcome:
    """What is known of a point.

    Members
    -------
    unit, config, parameters, pdk
        The unit, the instance's configuration, what was swept as texts by name, and the library.
    weights, activations
        Formats of the accuracy; None for a unit that the catalog names none for.
    bits_per_value
        Of the format that it makes.
    perplexity_ratio
        Perplexity of the bundled model over that without quantization; None if not measured.
    row
        The figures of its synthesis report.
    """

    unit: str
    config: str
    parameters: dict[str, str]
    pdk: str
    weights: str | None
    activations: str | None
    bits_per_value: float | None
    perplexity_ratio: float | None
    row: dict[str, Any] = field(repr=False)


def _measure(facts: Facts, pdk: Pdk, options: FlowOptions, build: Path) -> Row:
    """Run by a worker: the silicon of a point, from plain data, since formats have an identity."""
    return measure(Instance.of(facts), pdk, options, power=True, build=build)


def _perplexity(weights: str, activations: str, build: Path) -> float:
    """Run by a worker: the perplexity of the bundled model."""
    from m2xfp.models.cases import Case
    from m2xfp.models.evaluate import bundled_losses, perplexity
    from m2xfp.models.lm import HELD_OUT, as_tokens
    from m2xfp.models.windows import cut_windows, spread

    chosen = spread(cut_windows(as_tokens(HELD_OUT.read_bytes()), 512), WINDOWS)
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
    from m2xfp.progress import track

    folder = folder.absolute()
    kept = {
        (index, pdk.name): folder / f"{_key(point, pdk, options)}.json"
        for index, point in enumerate(points)
        for pdk in pdks
    }
    formats = [point.formats for point in points]
    cases = dict.fromkeys([_PLAIN, *(case for case in formats if case is not None)])
    accuracy = accuracy and any(case is not None for case in formats)
    found = {key: read_sealed(path) for key, path in kept.items()}
    rows = {key: row for key, row in found.items() if row is not None}
    missing = [key for key in kept if key not in rows]
    perplexities: dict[tuple[str, str], float] = {}
    if missing or accuracy:
        by_name = {pdk.name: pdk for pdk in pdks}
        with _client(scheduler, workers) as client:
            from distributed import as_completed

            tasks: dict[Any, Any] = {}  # a task is a key of rows, or formats
            for index, name in missing:
                what = points[index].instance.facts
                how = (by_name[name], options, folder / "synth")
                tasks[client.submit(_measure, what, *how, pure=False)] = index, name
            if accuracy:
                tasks |= {
                    client.submit(_perplexity, *case, folder, pure=False): case for case in cases
                }
            with track(total=len(tasks), desc="Exploring", unit="task") as bar:
                for done in as_completed(list(tasks)):
                    result, task = done.result(), tasks[done]
                    if isinstance(result, Row):
                        row = json.dumps(asdict(result)).encode()
                        write_sealed(kept[task], row)
                        rows[task] = row
                    else:
                        perplexities[task] = result
                    bar.update()
    return [
        _outcome(points[index], name, json.loads(rows[index, name]), perplexities)
        for index, name in kept
    ]


_PLAIN = ("none", "none")


def _outcome(
    point: Point,
    pdk: str,
    row: dict[str, Any],
    perplexities: Mapping[tuple[str, str], float],
) -> Outcome:
    from m2xfp.models.cases import Case

    formats, ratio, bits = point.formats, None, None
    if formats is not None:
        bits = Case.parse(*formats).bits_per_value
        if formats in perplexities:
            ratio = perplexities[formats] / perplexities[_PLAIN]
    weights, activations = formats or (None, None)
    return Outcome(
        unit=point.instance.unit.name,
        config=point.instance.config,
        parameters=dict(point.swept),
        pdk=pdk,
        weights=weights,
        activations=activations,
        bits_per_value=None if bits is None else float(bits),
        perplexity_ratio=ratio,
        row=row,
    )


def _key(point: Point, pdk: Pdk, options: FlowOptions) -> str:
    """Return a hash of all that decides a point's figures: sources, library, flow, parameters."""
    facts = point.instance.facts
    decides = (facts.unit, facts.config, facts.parameters, pdk.name, options)
    found = sha256(repr(decides).encode())
    found.update(sources_digest("m2xfp.formats", "m2xfp.rtl", "m2xfp.tb", "m2xfp.synth"))
    for path in pdk.liberty:
        found.update(sha256(path.read_bytes()).digest())
    return found.hexdigest()[:24]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other beats in both coordinates; small is good."""
    best: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not best or points[index][1] < points[best[-1]][1]:
            best.append(index)
    return best
