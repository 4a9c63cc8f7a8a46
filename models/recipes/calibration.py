"""The windows of text that a recipe's steps look at."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.models.corpus import training_text
from m2xfp.models.lm import HELD_OUT
from m2xfp.models.recipes.recipe import Calibration, Recipe
from m2xfp.models.texts import read_text

__all__ = ["calibration_text", "calibration_windows", "read_windows"]

_BYTES_A_TOKEN = 8
"""More than a token of usual tokenizers has in most texts."""


def calibration_text(calibration: Calibration) -> bytes:
    """Return the text of a calibration.

    InputError if it is not the one of which the recipe has the hash.
    """
    if calibration.text is None:
        text = training_text(HELD_OUT.read_bytes())
    else:
        text = read_text(calibration.text)
    found = sha256(text).hexdigest()
    if calibration.sha256 not in (None, found):
        raise InputError(
            f"calibration: the text has the SHA-256 {found}, and the recipe was made with "
            f"{calibration.sha256}; give that text, or take sha256 out of the recipe"
        )
    return text


def calibration_windows(
    text: bytes, tokenize: Callable[[bytes], Tensor], calibration: Calibration, by_bytes: bool
) -> Tensor:
    """Return pieces of a text, chosen at random, as int64 tokens [windows, context].

    Parameters
    ----------
    text, tokenize
        The text, and what makes tokens of a part of it.
    calibration
        How many, how long, and the seed.
    by_bytes
        Whether a token is a byte.

    Raises
    ------
    InputError
        The text is too short.
    """
    context, count = calibration.context, calibration.windows
    size = context * (1 if by_bytes else _BYTES_A_TOKEN)
    generator = torch.Generator().manual_seed(calibration.seed)
    windows: list[Tensor] = []
    places = torch.randperm(len(text) // size, generator=generator).tolist()
    for place in places:
        piece = text[place * size : (place + 1) * size]
        if not by_bytes:
            piece = piece.decode(errors="ignore").encode()
        tokens = tokenize(piece)
        if len(tokens) >= context:
            windows.append(tokens[:context].long())
        if len(windows) == count:
            return torch.stack(windows)
    raise InputError(
        f"calibration: the text has {len(text)} bytes, which make {len(windows)} windows of "
        f"{context} tokens, and {count} are asked for; give a longer text, or fewer or shorter "
        "windows"
    )


def read_windows(
    recipe: Recipe, tokenize: Callable[[bytes], Tensor], by_bytes: bool
) -> tuple[Recipe, Tensor]:
    """Return a recipe that has the hash of its text, and the windows that its steps look at.

    Raises
    ------
    InputError
        What ``calibration_text`` and ``calibration_windows`` raise.
    """
    text = calibration_text(recipe.calibration)
    told = replace(recipe.calibration, sha256=sha256(text).hexdigest())
    windows = calibration_windows(text, tokenize, told, by_bytes)
    return replace(recipe, calibration=told), windows
