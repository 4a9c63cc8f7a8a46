"""Training of the bundled language model: warm-up, cosine decay over a time or step budget.

Formats are judged on models without freak channels, as well-trained large models mostly are, so the
layers are trained in a way that makes few: their matrices with Muon, whose updates favour no
direction, and without gains in the norms before them (Park et al., "Outlier-Safe Pre-Training for
Robust 4-Bit Quantization of Large Language Models", 2025). The text is short and is read many
times, so dropout keeps the model from learning it by heart. Nothing is quantized during training.

A run can be interrupted: its whole state is written to one file in one step, and the windows and
the dropout of a step depend on the seed and the number of the step alone, so a resumed run goes on
as if nothing had happened.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError
from m2xfp.models.evaluate import window_nats
from m2xfp.models.lm import LanguageModel, ModelConfig, as_tokens
from m2xfp.models.train_state import Spent, read_state, write_state
from m2xfp.models.windows import cut_windows

__all__ = ["TrainConfig", "learning_rate", "optimizers_of", "train"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Members
    -------
    minutes, steps
        The budget, exactly one of the two: wall-clock minutes, compilation included, or optimiser
        steps. Only a number of steps gives the same weights on every run.
    batch
        Windows a step.
    peak
        Learning rate after the warm-up.
    warmup
        Share of the budget over which the rate rises.
    weight_decay
        Decoupled decay of matrices; norms have none.
    dropout
        Share of what a block adds to the residual stream that is dropped.
    seed
        Seed of the initial weights, of the choice of windows and of dropout.
    checkpoint_seconds
        Time between two states on disk.
    """

    minutes: float | None = None
    steps: int | None = None
    batch: int = 256
    peak: float = 8e-3
    warmup: float = 0.01
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse a budget that is missing, doubled or not positive."""
        budgets = [budget for budget in (self.minutes, self.steps) if budget is not None]
        if len(budgets) != 1 or not budgets[0] > 0:
            raise InputError(
                "give either minutes or steps, above 0 "
                f"(minutes={self.minutes}, steps={self.steps})"
            )


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Return the rate at a share of the budget: linear up to ``peak``, then a cosine down to 0."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _step_seed(config: TrainConfig, step: int) -> int:
    return config.seed * 1_000_003 + step


def _windows(text: Tensor, step: int, config: TrainConfig, context: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, int64 [batch, context], of one step."""
    generator = torch.Generator().manual_seed(_step_seed(config, step))
    starts = torch.randint(len(text) - context, (config.batch, 1), generator=generator)
    offsets = torch.arange(context + 1, device=text.device)
    window = text[starts.to(text.device) + offsets].long()
    return window[:, :-1], window[:, 1:]


def optimizers_of(model: LanguageModel, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for the embedding and the last norm.

    The gains of the norms inside the layers stay at one: they take no gradients from here on.

    Raises
    ------
    InputError
        If this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"training needs torch 2.9 or later, for Muon; this is {torch.__version__}"
        )
    for gain in model.layers.parameters():
        gain.requires_grad_(gain.ndim == 2)
    matrices = [p for p in model.layers.parameters() if p.requires_grad]
    others = [
        {"params": [model.embed_tokens.weight], "weight_decay": config.weight_decay},
        {"params": [model.norm.weight], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            matrices,
            lr=config.peak,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",  # the same rate serves both optimisers
        ),
        torch.optim.AdamW(others, lr=config.peak, betas=(0.9, 0.95), fused=True),
    ]


def train(
    shape: ModelConfig,
    config: TrainConfig,
    text: bytes,
    held_out: bytes,
    state: str | os.PathLike[str],
    device: str = "cpu",
    resume: bool = False,
    report: Callable[[float, str], None] = lambda progress, line: None,
) -> tuple[LanguageModel, dict[str, str]]:
    """Train a model and return it with the facts of the run.

    On CUDA the model is compiled and the layers run in bfloat16 under autocast; the parameters are
    float32 everywhere.

    Parameters
    ----------
    shape
        Shape of the model.
    config
        How to train.
    text
        Training text; held on the device.
    held_out
        Text whose bits per byte the reports give.
    state
        File that holds the state of the run; the caller removes it when the weights are saved.
    device
        A torch device name.
    resume
        Continue from ``state``, which must exist; the budget counts what was spent before.
    report
        Called now and then with the share of the budget spent and a line of figures.

    Raises
    ------
    InputError
        If there is no state to resume from, it is of another run, or the text is shorter than a
        window.
    """
    begin = started = written = time.monotonic()
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")
    model = LanguageModel(shape, config.dropout).to(device)
    optimizers = optimizers_of(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    identity = {
        "shape": asdict(shape),
        "batch": config.batch,
        "dropout": config.dropout,
        "seed": config.seed,
    }
    step, resumed_at = 0, 0.0
    if resume:
        spent = read_state(Path(state), identity, model, optimizers)
        step, resumed_at = spent.step, spent.progress
        begin -= spent.seconds

    if len(text) <= shape.context:
        raise InputError(
            f"the training text has {len(text)} bytes; one window needs {shape.context + 1}; give "
            "a longer text (--corpus)"
        )
    kind = torch.device(device).type
    on_cuda = kind == "cuda"
    tokens = as_tokens(text, device)
    sample = cut_windows(as_tokens(held_out), shape.context)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(kind, torch.bfloat16, enabled=on_cuda):
            logits = model(inputs)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def bits_a_byte() -> float:
        nats = window_nats(model.eval(), sample)
        model.train()
        return nats.mean().item() / math.log(2)

    compiled = torch.compile(loss_of) if on_cuda else loss_of
    first, progress = step, resumed_at
    while True:
        # A budget of time starts counting when the first step is done, since compiling takes long
        # and must not eat the warm-up: what is left is spread over the rest of the schedule.
        if config.minutes is None:
            progress = step / (config.steps or 1)
        elif step > first:
            left = max(begin + 60 * config.minutes - started, 1e-9)
            progress = resumed_at + (1 - resumed_at) * (time.monotonic() - started) / left
        if progress >= 1:
            break
        rate = learning_rate(progress, config.peak, config.warmup)
        for group in chain.from_iterable(o.param_groups for o in optimizers):
            group["lr"] = rate
        torch.manual_seed(_step_seed(config, step))  # of dropout
        loss = compiled(*_windows(tokens, step, config, shape.context))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 10 == 0 or step == first + 1:
            nats = loss.item()  # waits for the device, so that the clock does not run ahead of it
            if step == first + 1:
                started = time.monotonic()
            report(progress, f"step {step}, training {nats / math.log(2):.3f} bits a byte")
        if time.monotonic() - written > config.checkpoint_seconds:
            written = time.monotonic()
            report(progress, f"step {step}, held out {bits_a_byte():.4f} bits a byte")
            spent = Spent(step, progress, written - begin)
            write_state(Path(state), identity, model, optimizers, spent)

    facts = {
        "steps": str(step),
        "bytes_seen": str(step * config.batch * shape.context),
        "corpus_bytes": str(len(text)),
        "held_out_bits_per_byte": f"{bits_a_byte():.4f}",
        "dropout": str(config.dropout),
        "seed": str(config.seed),
        "torch": torch.__version__,
    }
    return model.eval(), facts
