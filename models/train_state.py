"""The state of a training that was interrupted: one file, and what is believed of it.

The file ends with the hash of all that stands before it, since neither zip nor torch notices a
changed byte. Only numbers are taken from it: what the optimisers are set to comes from the program.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError, unreadable
from m2xfp.files import write_atomic
from m2xfp.plain import typed

__all__ = ["Spent", "read_state", "sealed", "write_state"]

_SEAL = sha256().digest_size
_MEMBERS = {"identity", "model", "optimizers", "spent"}
_MOST_STEPS = 1 << 48  # beyond, seeds of steps have no room


@dataclass(frozen=True)
class Spent:
    """What a run has spent of its budget.

    Members
    -------
    step
        Steps that are done.
    progress
        Share of the budget.
    seconds
        Since the beginning.
    """

    step: int
    progress: float
    seconds: float

    def __post_init__(self) -> None:
        """Refuse numbers that no run has."""
        if not (0 <= self.step < _MOST_STEPS and 0 <= self.progress <= 1 and self.seconds >= 0):
            raise InputError(f"{self} is no part of a budget")


def sealed(content: object) -> bytes:
    """Return what a file of a state holds."""
    with io.BytesIO() as file:
        torch.save(content, file)
        data = file.getvalue()
    return data + sha256(data).digest()


def write_state(
    path: Path,
    identity: dict[str, Any],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    spent: Spent,
) -> None:
    """Write the state of a run in one step."""
    content = {
        "identity": identity,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict()["state"] for optimizer in optimizers],
        "spent": asdict(spent),
    }
    write_atomic(path, sealed(content))


def read_state(
    path: Path,
    identity: dict[str, Any],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> Spent:
    """Put the state of an interrupted run into a model and its optimisers.

    Raises
    ------
    InputError
        There is no such file, it was damaged, or it is of another run.
    """
    if not path.is_file():
        raise InputError(f"there is no interrupted run {str(path)!r}; start one without --resume")
    data = path.read_bytes()
    try:
        if sha256(data[:-_SEAL]).digest() != data[-_SEAL:]:
            raise InputError("it was cut off or changed since")
        device = next(model.parameters()).device
        saved = torch.load(io.BytesIO(data[:-_SEAL]), map_location=device, weights_only=True)
        if not isinstance(saved, dict) or saved.keys() != _MEMBERS:
            raise InputError(f"it does not hold {', '.join(sorted(_MEMBERS))}")
        known = saved["identity"]
        if known == identity:
            return _restore(saved, model, optimizers)
    except Exception as error:  # torch's reader raises of every kind on bytes that are no pickle
        verdict = "is no state of an interrupted run; start anew without --resume"
        raise unreadable(path, verdict, error) from error
    raise InputError(
        f"{str(path)!r} is a run of {str(known)[:300]}, not of {identity}; "
        "remove it or give the same options"
    )


def _restore(
    saved: dict[str, Any], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Spent:
    """Put what was saved into place; any exception for what does not fit."""
    spent = typed(Spent, saved["spent"], "spent")
    for name, value in model.state_dict().items():
        _check(name, saved["model"][name], value, value.shape)
    model.load_state_dict(saved["model"])
    for optimizer, content in zip(optimizers, saved["optimizers"], strict=True):
        own = optimizer.state_dict()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        if content.keys() - set(range(len(trained))):
            raise InputError("an optimiser has values of parameters that there are not")
        layout = _layout(optimizer)
        for index, values in content.items():
            if values.keys() != layout.keys():
                raise InputError(f"an optimiser has {', '.join(map(str, values))} of a parameter")
            for name, like in layout.items():
                shape = trained[index].shape if like.ndim else like.shape
                _check(name, values[name], like, shape)
                values[name] = values[name].clone(memory_format=torch.contiguous_format)
        optimizer.load_state_dict({"state": content, "param_groups": own["param_groups"]})
    return spent


def _layout(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser keeps of a matrix, found out with a small one."""
    matrix = nn.Parameter(torch.zeros(2, 2))
    matrix.grad = torch.zeros(2, 2)
    other = type(optimizer)([matrix], lr=0.0)  # type: ignore[call-arg]
    other.step()
    return dict(other.state[matrix])


def _check(name: str, value: object, like: Tensor, shape: torch.Size) -> None:
    """Raise InputError unless a value is a plain tensor of that shape and the type of ``like``."""
    if (
        not isinstance(value, Tensor)
        or value.is_meta
        or value.layout != torch.strided
        or (value.dtype, value.shape) != (like.dtype, shape)
    ):
        raise InputError(f"{name} is no tensor of {like.dtype} {tuple(shape)}")
