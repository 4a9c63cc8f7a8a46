"""What a conversion writes, planned from headers alone.

Each job makes a few tensors that belong together, and knows their types and shapes beforehand.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import UnknownNameError
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.models.exchange.gguf import GGUF_LAYOUTS
from m2xfp.models.exchange.joining import (
    check_values,
    in_power_of_two,
    joined_packed,
    joined_values,
    sorted_parts,
)
from m2xfp.models.exchange.layouts import LAYOUTS, TWO_LEVELS
from m2xfp.models.exchange.model import Skeleton
from m2xfp.models.exchange.names import Place
from m2xfp.models.exchange.record import Layout, Packed, Quantized
from m2xfp.models.exchange.shards import Outline
from m2xfp.models.exchange.source import Entry, Source

__all__ = ["Job", "Plan", "Target", "find_target", "header_of", "planned"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Target:
    """What a checkpoint becomes: packed in a format here, in a foreign layout, or plain.

    Members
    -------
    name
        As it was asked for.
    format
        Of quantized weights; None for a plain checkpoint.
    layout
        The foreign layout, None for a packed folder of this project.
    dtype
        Of a plain checkpoint.
    """

    name: str
    format: Format | None = None
    layout: Layout | None = None
    dtype: torch.dtype | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is one file, NAME.gguf, and no folder."""
        return self.name in GGUF_LAYOUTS


def find_target(name: str) -> Target:
    """Return a target: a layout, a type of PyTorch's, or a format of ``m2xfp formats``."""
    layouts = {**LAYOUTS, **GGUF_LAYOUTS}
    if name in layouts:
        return Target(name, layouts[name].whole, layouts[name])
    if name in _DTYPES:
        return Target(name, dtype=_DTYPES[name])
    try:
        return Target(name, get_format(name))
    except UnknownNameError as error:
        known = (*layouts, *_DTYPES, *error.known)
        raise UnknownNameError("target", name, known) from error


@dataclass(frozen=True)
class Job:
    """Tensors to write that are made together.

    Members
    -------
    outlines
        Their types and shapes by name, in the order of writing.
    make
        Makes them.
    nbytes
        Bytes that are read for them.
    texts
        What the header of the file says of them.
    """

    outlines: Mapping[str, Outline]
    make: Callable[[], Mapping[str, Tensor]]
    nbytes: int
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def written(self) -> int:
        """Bytes that are written."""
        return sum(t.itemsize * torch.Size(shape).numel() for t, shape in self.outlines.values())


@dataclass
class Plan:
    """The jobs of a conversion, and what the model's files will say."""

    jobs: list[Job] = field(default_factory=list)
    quantized: set[str] = field(default_factory=set)
    layers: dict[str, Any] = field(default_factory=dict)
    watched: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Parameter:
    """A parameter of the model, or one tensor of a checkpoint, and the entries that it is made of.

    Members
    -------
    name
        What is written is called so.
    places, entries
        Where the entries stand in what is written, in order.
    alone
        Whether it is one of several tensors of a parameter, such as an expert.
    """

    name: str
    places: tuple[Place, ...]
    entries: tuple[Entry, ...]
    alone: bool = False

    def parts(self, outline: bool = False) -> list[tuple[Place, Quantized | Tensor]]:
        """Return the tensors, or their outlines on the meta device."""
        made = [entry.outline() if outline else entry.read() for entry in self.entries]
        return list(zip(self.places, made, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes in the files."""
        return sum(entry.nbytes for entry in self.entries)


def planned(source: Source, model: Skeleton, to: Target, allow_nan: bool) -> Plan:
    """Return what is to be written, from headers alone."""
    plan = Plan()
    places = [model.place(entry.name) for entry in source.entries]
    model.check_complete([place.parameter for place in places])
    merged = to.format is not None and to.layout is None
    for parameter in _parameters(source.entries, places, merged):
        plan.jobs.append(_job(plan, parameter, model, to, allow_nan))
    return plan


def _parameters(
    entries: Iterable[Entry], places: Sequence[Place], merged: bool
) -> Iterator[_Parameter]:
    """Yield what is written: the parameters of the model, or the tensors of the checkpoint."""
    if not merged:
        for entry, place in zip(entries, places, strict=True):
            alone = Place(place.parameter)
            yield _Parameter(entry.name, (alone,), (entry,), place.expert is not None)
        return
    groups: dict[str, list[tuple[Place, Entry]]] = {}
    for entry, place in zip(entries, places, strict=True):
        groups.setdefault(place.parameter, []).append((place, entry))
    for name, group in groups.items():
        order = sorted_parts(name, [place for place, _ in group])
        yield _Parameter(
            name, tuple(group[at][0] for at in order), tuple(group[at][1] for at in order)
        )


def _job(plan: Plan, parameter: _Parameter, model: Skeleton, to: Target, allow_nan: bool) -> Job:
    """Return the job of a parameter, and note in the plan what becomes of it."""
    outlines = parameter.parts(outline=True)
    names = {place.parameter for place in parameter.places}
    held = [isinstance(part, Quantized) for _, part in outlines]
    whole = next(iter(names))
    wanted = whole in model.wanted or (all(held) and whole not in model.skipped)
    dim = model.dim(whole)
    # One of several experts stands as [out, in], as the model holds it if groups run along -1.
    one = parameter.alone
    fits = to.format is not None and wanted and dim is not None
    if fits and to.layout is not None:
        fits = model.holds(to.layout, whole, one)
    if not fits:
        return _plain_job(parameter, to.dtype or model.dtype, dim, _texts(parameter, to, None))
    assert to.format is not None
    plan.quantized.add(whole)
    kept = all(
        isinstance(p, Quantized) and p.packed.format.key == to.format.key for _, p in outlines
    )
    told = _Weight(parameter, to, model.dtype, -1 if one else dim, kept, allow_nan)
    if to.layout is None:
        _note(plan, whole, model, told, outlines)
    outline = told.packed(outlines, outline=True)
    made = told.tensors(outline, model)
    shapes = {name: (one.dtype, tuple(one.shape)) for name, one in made.items()}
    return Job(
        shapes,
        lambda: told.tensors(told.packed(parameter.parts()), model),
        parameter.nbytes,
        _texts(parameter, to, outline, model.dtype),
    )


def _texts(
    parameter: _Parameter, to: Target, packed: Packed | None, dtype: torch.dtype = torch.float32
) -> dict[str, str]:
    """Return what a file's header says of a parameter."""
    if to.layout is None or to.layout.text is None:
        return {}
    return {parameter.name: to.layout.text(packed, dtype)}


@dataclass(frozen=True)
class _Weight:
    """A weight to be written quantized."""

    parameter: _Parameter
    to: Target
    dtype: torch.dtype
    dim: int | None
    kept: bool
    allow_nan: bool

    def packed(
        self, parts: Sequence[tuple[Place, Quantized | Tensor]], outline: bool = False
    ) -> Packed:
        """Return it in the target's format."""
        fmt = self.to.format
        assert fmt is not None
        if not outline:
            for entry, (_, part) in zip(self.parameter.entries, parts, strict=True):
                check_values(entry.name, part, self.allow_nan)
        if self.kept:
            return joined_packed(parts)
        values = joined_values(parts)
        if self.dim == -2 and not isinstance(parts[0][1], Quantized):
            values = values.transpose(-1, -2).contiguous()
        if outline:
            return fmt.quantize(torch.empty(values.shape, device="meta"))
        if self.to.layout is not None and fmt.key == TWO_LEVELS:
            return in_power_of_two(values)
        return fmt.quantize(values)

    def tensors(self, packed: Packed, model: Skeleton) -> dict[str, Tensor]:
        """Return the tensors to write, by name."""
        name = self.parameter.name
        if self.to.layout is not None:
            return self.to.layout.put(name, packed)
        base = model.layer(name) if model.is_replaced(name) else name
        return {f"{base}.{plane}": tensor for plane, tensor in packed.planes().items()}


def _plain_job(
    parameter: _Parameter, dtype: torch.dtype, dim: int | None, texts: Mapping[str, str]
) -> Job:
    """Return the job of a tensor that is written plain: as it is, or decoded."""

    def make(outline: bool) -> dict[str, Tensor]:
        parts = parameter.parts(outline)
        if outline:
            parts = [
                (place, torch.empty(part.packed.shape, dtype=dtype, device="meta"))
                if isinstance(part, Quantized)
                else (place, part)
                for place, part in parts
            ]
        values = joined_values(parts, dtype)
        if dim == -2 and isinstance(parameter.entries[0].outline(), Quantized):
            values = values.transpose(-1, -2).contiguous()
        return {parameter.name: values}

    made = make(outline=True)
    shapes = {name: (one.dtype, tuple(one.shape)) for name, one in made.items()}
    return Job(shapes, lambda: make(outline=False), parameter.nbytes, texts)


def _note(
    plan: Plan,
    name: str,
    model: Skeleton,
    weight: _Weight,
    outlines: Sequence[tuple[Place, Quantized | Tensor]],
) -> None:
    """Note a packed weight for the header, as ``save_quantized`` writes it."""
    fmt = weight.to.format
    assert fmt is not None
    first = outlines[0][1]
    dtype = weight.dtype if isinstance(first, Quantized) else first.dtype
    facts = {"format": fmt.name, "options": dict(fmt.options)}
    kind = str(dtype).removeprefix("torch.")
    shape = list(weight.packed(outlines, outline=True).shape)
    layer = model.layer(name)
    if model.is_replaced(name):
        plan.layers[layer] = {"weights": facts, "activations": None, "shape": shape, "dtype": kind}
        return
    watched = plan.watched.setdefault(layer, {"activations": None, "inputs": [], "weights": {}})
    own = name[len(layer) :].lstrip(".")
    watched["inputs"].append(own)
    watched["weights"][own] = {**facts, "shape": shape, "dim": weight.dim, "dtype": kind}


def header_of(plan: Plan, model: Skeleton) -> dict[str, Any]:
    """Return the header of a packed folder."""
    produced = {name for job in plan.jobs for name in job.outlines}
    return {
        "layers": plan.layers,
        "watched": plan.watched,
        "attentions": [],
        "aliases": model.aliases(produced),
    }
