"""The bundled model generates text on an accelerator, and what the golden model gives for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from m2xfp.accelerator.device import Device
from m2xfp.accelerator.engine import DeviceEngine
from m2xfp.accelerator.transport import SimulatedTransport
from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.models.generate import (
    Engine,
    Generator,
    GoldenEngine,
    Step,
    generate,
    pack_weights,
)
from m2xfp.models.lm import LanguageModel
from m2xfp.progress import track

__all__ = [
    "Generated",
    "Text",
    "differences",
    "generate_golden",
    "generate_on",
    "generate_simulated",
]


@dataclass(frozen=True)
class Text:
    """What is to be generated.

    Members
    -------
    prompt
        What the model reads first.
    tokens
        How many tokens follow.
    temperature, seed
        As for ``m2xfp.models.generate.generate``.
    """

    prompt: bytes
    tokens: int
    temperature: float = 0.0
    seed: int = 0

    def check(self, context: int) -> None:
        """Raise InputError unless it fits a model that reads so many bytes."""
        if not self.prompt or len(self.prompt) + self.tokens > context:
            raise InputError(
                f"{len(self.prompt)} bytes of prompt and {self.tokens} tokens: this model reads "
                f"{context} bytes in all, at least one of them a prompt"
            )


@dataclass(frozen=True)
class Generated:
    """What an engine has generated.

    Members
    -------
    steps
        Tokens and logits.
    cache
        Packed keys and values of each block, at the end.
    seconds
        How long it took.
    counts
        Of an accelerator: the clocks of ``Device.counts`` and the bytes ``read`` and ``written``.
    """

    steps: list[Step]
    cache: list[tuple[PackedTensor, PackedTensor]]
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def text(self) -> bytes:
        """What follows the prompt."""
        return bytes(step.token for step in self.steps)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache."""
        return sum(part.nbytes for pair in self.cache for part in pair)

    @property
    def logits(self) -> int:
        """How many logits there are."""
        return sum(step.logits.numel() for step in self.steps)

    def summary(self) -> str:
        """Return a line about clocks, utilisation and bytes."""
        counts = self.counts
        share = counts["work"] / max(1, counts["cycles"])
        words = [f"{len(self.steps)} tokens", f"{counts['cycles']} clocks"]
        words += [f"array busy in {share:.1%}"]
        words += [f"{counts[name]} bytes {name}" for name in ("read", "written") if name in counts]
        return ", ".join([*words, f"{self.seconds:.1f} s"])


def _run(
    model: LanguageModel, engine: Engine, text: Text, what: str, note: Callable[[], str]
) -> tuple[list[Step], float]:
    began = time.monotonic()
    blocks = len(model.layers)
    with track(total=text.tokens * blocks, desc=what, unit="block") as bar:

        def report() -> None:
            bar.note(note())
            bar.update()

        made = generate(
            Generator(model, engine),
            text.prompt,
            text.tokens,
            temperature=text.temperature,
            seed=text.seed,
            report=report,
        )
        steps = list(made)
    return steps, time.monotonic() - began


def generate_golden(model: LanguageModel, text: Text) -> Generated:
    """Generate with the golden model: the reference."""
    engine = GoldenEngine(pack_weights(model.bfloat16()), len(model.layers))
    steps, seconds = _run(model, engine, text, "golden", str)
    return Generated(steps, engine.cache(), seconds)


def generate_on(device: Device, model: LanguageModel, text: Text) -> Generated:
    """Generate with an accelerator: linear layers, both products of attention, and the cache."""
    config = model.config
    engine = DeviceEngine(
        device,
        pack_weights(model.bfloat16()),
        layers=config.layers,
        heads=config.heads,
        width=config.width // config.heads,
        context=len(text.prompt) + text.tokens,
    )

    def counts() -> dict[str, int]:
        return device.counts | device.transport.traffic()

    def note() -> str:
        now = counts()
        moved = sum(now.get(name, 0) for name in ("read", "written"))
        return f"{now['cycles']} clocks, {device.utilisation():.0%} busy, {moved / 1e6:.1f} MB"

    steps, seconds = _run(model, engine, text, "accelerator", note)
    return Generated(steps, engine.cache(), seconds, counts())


def generate_simulated(
    files: EmittedFiles,
    model: LanguageModel,
    text: Text,
    build_dir: Path,
    *,
    latency: int = 0,
    rate: float = 0.0,
) -> Generated:
    """Generate with an emitted accelerator in Verilator, before a simulated memory."""
    transport = SimulatedTransport(files=files, latency=latency, rate=rate, build_dir=build_dir)
    try:
        return generate_on(Device(transport), model, text)
    finally:
        transport.close()


def differences(found: Generated, wanted: Generated) -> list[str]:
    """Return what differs in any bit: tokens, logits, bytes of the cache."""
    said = []
    for index, (own, other) in enumerate(zip(found.steps, wanted.steps, strict=True)):
        if own.token != other.token:
            said.append(f"token {index} is {own.token} instead of {other.token}")
        different = own.logits.view(torch.int16) != other.logits.view(torch.int16)
        if different.any():
            said.append(f"{int(different.sum())} logits before token {index} differ")
    for layer, pairs in enumerate(zip(found.cache, wanted.cache, strict=True)):
        for name, own_part, other_part in zip(("keys", "values"), *pairs, strict=True):
            planes, others = own_part.planes(), other_part.planes()
            for plane, content in others.items():
                if not torch.equal(planes[plane], content):
                    said.append(f"{plane} of the cached {name} of block {layer} differ")
    return said
