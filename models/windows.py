"""Which tokens a perplexity predicts, and from what: windows, stride, first token, words, bytes.

Perplexities of one model differ with these conventions, so a result names them.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError

__all__ = ["Windows", "cut", "cut_windows", "evenly", "spread"]


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


def cut_windows(tokens: Tensor, context: int) -> Tensor:
    """Cut tokens [length] into windows [n, context], int64; the rest at the end is left out.

    This is the usual protocol: the windows do not overlap, and the first token of each is given
    and not predicted.

    Raises
    ------
    InputError
        If the text is shorter than one window, or a window has nothing to predict.
    """
    if context < 2:
        raise InputError(f"context {context}; a window needs at least 2 tokens")
    count = len(tokens) // context
    if count < 1:
        raise InputError(
            f"the text has {len(tokens)} tokens, one window needs {context}; give a longer text or "
            "a smaller context"
        )
    return tokens[: count * context].view(count, context).long()


def evenly(total: int, count: int) -> list[int]:
    """Return ``count`` of the numbers below ``total``, evenly spread, or all if there are no more.

    They are cut into ``count`` equal parts, and the one in the middle of each is taken. Equal whole
    steps would leave out the end: 260 of 509 would be the first 260.
    """
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def spread(windows: Tensor, count: int) -> Tensor:
    """Return ``count`` of the windows, evenly spread, or all of them if there are no more."""
    return windows[evenly(len(windows), count)]


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
