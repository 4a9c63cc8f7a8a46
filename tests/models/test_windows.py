"""Conventions of a perplexity: stride, the first token, words and bytes, named in the output."""

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.models.evaluate import window_nats
from m2xfp.models.windows import cut


class Counting(nn.Module):
    """Predicts the token after n with a loss that grows with the place, so places can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], dtype=torch.float32)
        logits = torch.zeros(*tokens.shape, 200)
        following = tokens.roll(-1, 1)
        values = -places[None, :, None].expand(*tokens.shape, 1)
        return logits.scatter(-1, following.unsqueeze(-1), values)


def test_windows_without_overlap_and_with() -> None:
    tokens = torch.arange(1, 101)
    plain = cut(tokens, 30)
    assert plain.tokens.tolist() == [list(range(1 + n, 31 + n)) for n in (0, 30, 60)]
    assert (plain.predicted, plain.stride) == (29, 30)
    sliding = cut(tokens, 30, stride=10)
    assert [row[0] for row in sliding.tokens.tolist()] == [1, 11, 21, 31, 41, 51, 61, 71]
    assert (sliding.predicted, sliding.stride) == (10, 10)
    # Everything after the first window's given part is predicted once.
    predicted = sliding.tokens[:, -10:].flatten().tolist()
    assert predicted == list(range(21, 101))
    assert len(sliding.some(3).tokens) == 3
    for wrong in (0, 31):
        with pytest.raises(InputError, match=f"stride {wrong}: pass 1 to 30"):
            cut(tokens, 30, stride=wrong)


def test_every_window_starts_with_the_token() -> None:
    tokens = torch.tensor([7, *range(100, 130)])
    found = cut(tokens, 11, start=7)
    assert found.tokens.tolist() == [[7, *range(n, n + 10)] for n in (100, 110, 120)]
    assert (found.predicted, found.stride) == (10, 10)
    overlapping = cut(tokens, 11, stride=5, start=7)
    assert overlapping.tokens[1].tolist() == [7, *range(105, 115)]
    assert overlapping.predicted == 5


def test_only_predicted_tokens_count() -> None:
    model, windows = Counting(), torch.arange(1, 25).view(2, 12)
    whole, last = window_nats(model, windows), window_nats(model, windows, predicted=3)
    # The token after place n has the logit -n among 199 zeros.
    losses = [math.log(199 + math.exp(-n)) + n for n in range(11)]
    assert whole.tolist() == pytest.approx([sum(losses) / 11] * 2)
    assert last.tolist() == pytest.approx([sum(losses[-3:]) / 3] * 2)


def test_words_and_bytes_of_the_bundled_model(tmp_path: Path) -> None:
    options = ["--windows", "2", "--context", "64", "--stride", "32", "--weights", "mxfp4"]
    done = CliRunner().invoke(cli, ["eval", *options, "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "perplexity.json").read_text())
    protocol, record = facts["protocol"], facts["results"][1]
    assert protocol["bytes"] == 2 * 32
    assert protocol["stride"] == protocol["predicted_tokens_a_window"] == 32
    assert record["byte_perplexity"] == pytest.approx(record["perplexity"]["value"])
    expected = record["perplexity"]["value"] ** (64 / protocol["words"])
    assert record["word_perplexity"] == pytest.approx(expected)
    assert "stride 32; 32 tokens given and 32 predicted" in done.stdout
    assert "| a word " in done.stdout
    refused = CliRunner().invoke(cli, ["eval", "--bos"])
    assert refused.exit_code == 2
    assert "needs a tokenizer" in refused.output
