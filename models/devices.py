"""Where to compute: the device that a command line names, and the processes of torchrun."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed

from m2xfp.errors import InputError
from m2xfp.plain import whole_number

__all__ = ["describe_device", "find_device", "joined_processes"]


def find_device(name: str) -> torch.device:
    """Return a device by its name; ``auto`` is a CUDA device where there is one.

    Under torchrun ``cuda`` is the device of this process.

    Raises
    ------
    InputError
        No such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: PyTorch sees no CUDA device here; pass --device cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def describe_device(device: torch.device) -> str:
    """Return a device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"


def _world_size() -> int:
    """Return how many processes torchrun has started; InputError for no such number."""
    text = os.environ.get("WORLD_SIZE", "1")
    try:
        return whole_number(text)
    except InputError as error:
        raise InputError(f"WORLD_SIZE={text!r}: {error}, or unset it") from error


@contextmanager
def joined_processes(device: torch.device) -> Iterator[int]:
    """Join the process group that torchrun has started, if it has; give the rank."""
    if _world_size() == 1:
        yield 0
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()
