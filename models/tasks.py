"""Tasks of the lm-evaluation-harness on a quantized Hugging Face model, through its API."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from m2xfp.errors import InputError, MissingToolError, UnknownNameError
from m2xfp.models.windows import evenly
from m2xfp.progress import on_terminal

__all__ = ["find_tasks", "run_tasks"]


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise MissingToolError(
            "the Python package lm-eval, for tasks", 'pip install "m2xfp[harness]"'
        ) from error
    return lm_eval


def find_tasks(names: Sequence[str], folder: Path | None = None) -> Any:
    """Return the harness's task manager if it knows all tasks.

    Parameters
    ----------
    names
        Tasks or groups of tasks.
    folder
        Folder with further tasks, as YAML files.

    Raises
    ------
    MissingToolError
        lm-eval is not installed.
    UnknownNameError
        A task that does not exist.
    """
    manager = _harness().tasks.TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.all_tasks:
            near = [task for task in manager.all_tasks if name.split("_")[0] in task][:12]
            raise UnknownNameError("task", name, near or ["see: lm-eval ls tasks"])
    return manager


def _each(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the tasks of a tree of groups, with their names."""
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from _each(task)
        else:
            yield name, task


def _documents(manager: Any, names: Sequence[str], most: int) -> dict[str, list[int]]:
    """Return ``most`` documents of each task, by number, evenly spread over it.

    The harness itself would take the first, which are those of the first subject or year.
    """
    with warnings.catch_warnings():  # its successor is not in older versions
        warnings.simplefilter("ignore", DeprecationWarning)
        tasks = manager.load_task_or_group(list(names))
    return {name: evenly(len(task.eval_docs), most) for name, task in _each(tasks)}


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    names: Sequence[str],
    manager: Any,
    batch: int = 1,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Return the results by task and metric.

    Parameters
    ----------
    model, tokenizer
        A Hugging Face model, quantized or not, and its tokenizer.
    names, manager
        Tasks, and what ``find_tasks`` returned for them.
    batch
        Sequences a pass.
    limit
        Documents a task, evenly spread over it; None for all.

    Raises
    ------
    InputError
        The model has no tokenizer.
    """
    if tokenizer is None:
        raise InputError(
            "tasks need a Hugging Face model with a tokenizer; the bundled model reads bytes"
        )
    harness = _harness()
    wrapped = harness.models.huggingface.HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch
    )
    if not on_terminal():  # the harness switches its bars itself
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(wrapped, name, partial(getattr(wrapped, name), disable_tqdm=True))
    found = harness.simple_evaluate(
        model=wrapped,
        tasks=list(names),
        task_manager=manager,
        samples=None if limit is None else _documents(manager, names, limit),
        verbosity="WARNING",
    )
    return {
        task: {
            metric.removesuffix(",none"): float(value)
            for metric, value in values.items()
            if isinstance(value, int | float)
        }
        for task, values in (found or {"results": {}})["results"].items()
    }
