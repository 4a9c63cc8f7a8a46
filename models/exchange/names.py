"""Names in a checkpoint and in its model: where transformers puts each tensor of a file.

Most are called alike. Experts that stand one by one in the checkpoint stand in one tensor in the
model, gate and up projections side by side.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from m2xfp.errors import InputError

__all__ = ["Names", "Place"]


@dataclass(frozen=True)
class Place:
    """Where a tensor of a checkpoint stands in the model.

    Members
    -------
    parameter
        Name of the parameter or buffer.
    expert
        Which of the experts in it, None if it is the whole parameter.
    source, sources
        Which of so many tensors that stand one after the other in the rows of an expert.
    """

    parameter: str
    expert: int | None = None
    source: int = 0
    sources: int = 1


class Names:
    """The names of one model.

    Parameters
    ----------
    model
        A model of transformers, on the meta device.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        found = get_model_conversion_mapping(model)
        self._renamings = [one for one in found if isinstance(one, WeightRenaming)]
        self._converters = [one for one in found if isinstance(one, WeightConverter)]
        self._prefix = getattr(model, "base_model_prefix", None)
        self._state: Mapping[str, Any] = model.state_dict()

    def place(self, name: str) -> Place:
        """Return where a tensor belongs.

        Raises
        ------
        InputError
            transformers changes the tensor on its way in a manner that is not known here.
        """
        from transformers.core_model_loading import apply_renamings, rename_source_key

        if name in self._state:
            return Place(name)
        target, pattern = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self._state
        )
        if pattern is None:
            return Place(target)
        converter = next(one for one in self._converters if pattern in one.source_patterns)
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
        if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            raise InputError(
                f"{name}: transformers makes {target} of it by {', '.join(n for n, _ in steps)}, "
                "which is not known here; load the model and save it packed (m2xfp eval --save)"
            )
        numbered = re.escape(pattern).replace(r"\*", r"(\d+)")
        expert = re.search(numbered, apply_renamings(name, self._renamings))
        if expert is None:
            raise InputError(f"{name}: no number of an expert is found in it")
        sources = list(converter.source_patterns)
        return Place(target, int(expert[1]), sources.index(pattern), len(sources))
