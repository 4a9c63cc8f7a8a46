"""Scales of channels as a step: what is hard to quantize moves between inputs and weights.

The inputs of layers are divided by s and their weights multiplied, channel by channel, so that the
model stays what it is. The division goes into the norm in front, or into the layer that makes the
values (``up_proj`` of ``down_proj``). ``smooth`` is SmoothQuant (arXiv 2211.10438): s from the
largest magnitudes of both. ``awq`` is AWQ's search (arXiv 2306.00978): s is the mean magnitude to a
power, and of several powers the one that changes the layers' outputs least, here with weights and
inputs quantized as they will be, and together with a factor on all channels, since a shared scale
that is a power of two holds values best that lie well between two of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format
from m2xfp.models.recipes.recipe import Awq, Smooth
from m2xfp.models.recipes.structure import Norm, Structure, heads_of, logits, observe, watching
from m2xfp.models.rotations import InputRotation, input_rotations, stream_rotation
from m2xfp.models.windows import evenly

__all__ = ["scale_channels"]


@dataclass
class _Site:
    """Layers that read the same values, and what makes these.

    Members
    -------
    readers
        Names of the layers.
    norm, maker
        The norm that they read, or the name of the layer whose results reach them channel by
        channel.
    rotation
        What rotates the values in front of the layers, behind the scales.
    channels
        Which of the maker's results each value of the layers is, where heads share them: int64
        [in]; all zero where all must have one scale, since rotated heads lie between.
    """

    readers: list[str]
    norm: Norm | None
    maker: str | None
    rotation: InputRotation | None
    channels: Tensor | None = None


_MAKERS = {"down_proj": "up_proj", "o_proj": "v_proj"}
"""Layers by their own names, as Llama has them, whose inputs are linear in another's results."""


def _sites(model: nn.Module, structure: Structure, names: list[str]) -> Iterator[_Site]:
    """Yield where scales can go in between."""
    rotated, modules = input_rotations(model), dict(model.named_modules())
    heads = {reader: width for _, reader, width in heads_of(model, structure)}
    for norm in structure.norms:
        found = {rotated.get(name) for name in norm.readers}
        if len(found) == 1:
            yield _Site(norm.readers, norm, None, found.pop())
    for writer in structure.writers:
        parent, _, own = writer.rpartition(".")
        maker = f"{parent}.{_MAKERS.get(own)}"
        if writer in names and maker in modules:
            made, read = _weight(model, maker).shape[0], _weight(model, writer).shape[1]
            channels = None
            if own == "o_proj" and stream_rotation(model) is not None:
                channels = torch.zeros(read, dtype=torch.int64)
            elif made != read:
                if writer not in heads:
                    continue
                place = torch.arange(read)
                head = place // heads[writer] // (read // made)
                channels = head * heads[writer] + place % heads[writer]
            yield _Site([writer], None, maker, rotated.get(writer), channels)


@torch.no_grad()
def scale_channels(
    model: nn.Module,
    windows: Tensor,
    names: list[str],
    step: Awq | Smooth,
    weights: Format | None,
    inputs: Format | None,
) -> None:
    """Scale the channels that layers read, in place; the model's outputs stay up to rounding.

    Parameters
    ----------
    model
        With RMS norms; computed with in float32.
    windows
        Calibration tokens [n, length].
    names
        Layers that will be quantized.
    step
        How to choose the scales.
    weights, inputs
        Formats that the search of ``awq`` quantizes with.

    Raises
    ------
    InputError
        A model of another structure, or no format for ``awq`` to search with.
    """
    if isinstance(step, Awq) and weights is None and inputs is None:
        raise InputError("awq: the search needs a format of the weights or of the activations")
    structure = observe(model, windows[:1])
    sites = list(_sites(model, structure, names))
    if not sites:
        raise InputError(
            f"{type(model).__name__} has no place for scales of channels: no layer reads a norm"
        )
    seen: dict[str, list[Tensor]] = {}
    a_window = -(-step.rows // len(windows))

    def see(name: str, given: Tensor, _: object) -> None:
        rows = given.flatten(0, -2)
        seen.setdefault(name, []).append(rows[evenly(len(rows), a_window)])

    firsts = {site.readers[0]: model.get_submodule(site.readers[0]) for site in sites}
    with watching(firsts, see, first=True):
        for window in windows:
            logits(model, window[None])
    for site in sites:
        x = torch.cat(seen.pop(site.readers[0])).float()
        held = [_unrotated(_weight(model, name), site) for name in site.readers]
        if isinstance(step, Smooth):
            scale = _smooth(x, held, site, step.strength)
        else:
            scale = _searched(x, held, site, step, weights, inputs)
        _apply(model, site, scale)


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def _centred(scale: Tensor) -> Tensor:
    """Return scales around 1; channels that are always zero keep theirs."""
    scale = torch.where(scale > 0, scale, 1.0)
    return (scale / (scale.amax() * scale.amin()).sqrt()).clamp(2.0**-10, 2.0**10)


def _shared(values: Tensor, site: _Site) -> Tensor:
    """Return the mean of what channels have that must have one scale."""
    if site.channels is None:
        return values
    channels = site.channels.to(values.device)
    count = int(channels.max()) + 1
    empty = values.new_zeros(count)
    total = empty.index_add(0, channels, values)
    return (total / empty.index_add(0, channels, torch.ones_like(values)))[channels]


def _smooth(x: Tensor, weights: list[Tensor], site: _Site, strength: float) -> Tensor:
    inputs = _shared(x.abs().amax(0), site)
    largest = _shared(torch.stack([w.float().abs().amax(0) for w in weights]).amax(0), site)
    both = (inputs > 0) & (largest > 0)
    found = inputs.pow(strength) / largest.clamp(min=1e-20).pow(1 - strength)
    return _centred(torch.where(both, found, 0.0))


def _unrotated(weight: Tensor, site: _Site) -> Tensor:
    return weight if site.rotation is None else site.rotation.unrotated(weight)


def _rotated(weight: Tensor, site: _Site) -> Tensor:
    return weight if site.rotation is None else site.rotation.weight(weight)


def _searched(
    x: Tensor,
    weights: list[Tensor],
    site: _Site,
    step: Awq,
    fmt: Format | None,
    inputs: Format | None,
) -> Tensor:
    """Return the scales under which the outputs change least."""
    mean = _shared(x.abs().mean(0), site)
    target = [x @ w.float().T for w in weights]
    best, least = torch.ones_like(mean), torch.inf
    for part, octave in product(range(step.grid + 1), range(step.octave)):
        power = _centred(mean.pow(part / step.grid)) if part else torch.ones_like(mean)
        scale = power * 2.0 ** (-octave / step.octave)
        given = x / scale if site.rotation is None else site.rotation.values(x / scale)
        given = given if inputs is None else inputs.fake_quantize(given)
        loss = 0.0
        for weight, wanted in zip(weights, target, strict=True):
            scaled = weight.float() * scale
            if site.rotation is not None:  # as its method ``weight`` does, and faster
                scaled = site.rotation.values(scaled) * site.rotation.product_factor
            held = scaled if fmt is None else fmt.fake_quantize(scaled)
            loss += float((given @ held.T - wanted).square().sum())
        if loss < least:
            best, least = scale, loss
    return best


def _apply(model: nn.Module, site: _Site, scale: Tensor) -> None:
    if site.norm is not None:
        site.norm.set_gain(site.norm.gain() / scale)
    if site.maker is not None:
        layer = model.get_submodule(site.maker)
        weight = _weight(model, site.maker)
        made = scale
        if site.channels is not None:
            made = scale.new_empty(len(weight))
            made[:] = scale[0]  # of all of them, or
            made[site.channels.to(scale.device)] = scale
        weight.copy_(weight / made[:, None])
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            bias.copy_(bias / made)
    for name in site.readers:
        weight = _weight(model, name)
        weight.copy_(_rotated(_unrotated(weight, site) * scale, site))
