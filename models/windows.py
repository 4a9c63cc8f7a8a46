"""Which tokens a perplexity predicts, and from what: windows, stride, first token, words, bytes.

Perplexities of one model differ with these conventions, so a result names them.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.models.evaluate import cut_windows, spread

__all__ = ["Windows", "cut"]


@dataclass(frozen=True)
class Windows:
    """Windows of a text.

    Members
    -------
    tokens
        int64 [n, context].
    predicted
        The last so many tokens of a window are predicted, the others are given.
    stride
        Tokens between the starts of two windows.
    start
        Token of the tokenizer that each window starts with, or None.
    """

    tokens: Tensor
    predicted: int
    stride: int
    start: int | None = None

    def some(self, count: int | None) -> "Windows":
        """Return so many of the windows, evenly spread; all for None."""
        return self if count is None else replace(self, tokens=spread(self.tokens, count))

    def lengths(self, tokenizer: Any) -> tuple[int, int]:
        """Return the words and the bytes that are predicted; words lie between white space."""
        words = size = 0
        for row in self.tokens[:, -self.predicted :].tolist():
            if tokenizer is None:
                text = bytes(row).decode(errors="replace")
                size += len(row)
            else:
                text = tokenizer.decode(row, clean_up_tokenization_spaces=False)
                size += len(text.encode())
            words += len(re.findall(r"\S+", text))
        return words, size

    def facts(self, tokenizer: Any) -> dict[str, Any]:
        """Return the conventions, for a report."""
        words, size = self.lengths(tokenizer)
        return {
            "context": self.tokens.shape[1],
            "windows": self.tokens.shape[0],
            "stride": self.stride,
            "predicted_tokens_a_window": self.predicted,
            "start_token": self.start,
            "words": words,
            "bytes": size,
        }


def cut(
    tokens: Tensor, context: int, stride: int | None = None, start: int | None = None
) -> Windows:
    """Cut tokens [length] into windows; the rest at the end is left out.

    Parameters
    ----------
    tokens
        The text.
    context
        Tokens of a window, with the one that it starts with.
    stride
        Tokens from the start of a window to that of the next; None for windows that do not overlap.
        Where they do, each predicts its last ``stride`` tokens, and what lies before them is given.
    start
        A token to put in front of every window: that which starts a text for this tokenizer.

    Raises
    ------
    InputError
        A text shorter than a window, or a stride that is none.
    """
    own = context - (start is not None)
    if start is not None and len(tokens) and tokens[0] == start:
        tokens = tokens[1:]  # the tokenizer has put it in front of the text already
    if stride is None:
        found = cut_windows(tokens, own)
    else:
        if not 1 <= stride <= own:
            raise InputError(f"stride {stride}: pass 1 to {own}, the tokens of a window")
        cut_windows(tokens, own)  # or tell what is wrong
        found = tokens.long().unfold(0, own, stride)
    if start is not None:
        found = torch.cat((found.new_full((len(found), 1), start), found), 1)
    step = stride or own
    return Windows(found.contiguous(), min(step, context - 1), step, start)
