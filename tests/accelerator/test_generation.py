"""The bundled model generates text on the emitted accelerator: every bit is golden's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from m2xfp.accelerator.generation import (
    Generated,
    Text,
    differences,
    generate_golden,
    generate_simulated,
)
from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.models.attention import QuantAttention
from m2xfp.models.generate import Generator, GoldenEngine, pack_weights
from m2xfp.models.lm import as_tokens, load_model
from m2xfp.models.quantized import quantize_model

TEXT = Text(b"The hardware", tokens=3)
# The third token ends a group of the cache's values.
LONG = Text(b"The hardware writes a packed t", tokens=8, temperature=0.8, seed=3)


@pytest.fixture(scope="module")
def golden() -> Generated:
    return generate_golden(load_model(), TEXT)


@pytest.mark.timeout(600)
def test_text_on_the_emitted_verilog(
    accelerator_files: EmittedFiles, sim_dir: Path, golden: Generated
) -> None:
    found = generate_simulated(accelerator_files, load_model(), TEXT, sim_dir)
    assert differences(found, golden) == []
    assert found.text == golden.text
    assert found.cache_bytes == golden.cache_bytes
    assert 0.2 < found.counts["work"] / found.counts["cycles"] < 1
    assert found.counts["read"] > 1_000_000
    assert f"{found.counts['cycles']} clocks, array busy in" in found.summary()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_longer_text_behind_a_slow_memory(accelerator_files: EmittedFiles, sim_dir: Path) -> None:
    golden = generate_golden(load_model(), LONG)
    found = generate_simulated(
        accelerator_files, load_model(), LONG, sim_dir, latency=100, rate=8.0
    )
    assert differences(found, golden) == []
    assert found.text == golden.text


def test_a_prompt_gives_the_logits_of_the_quantized_model(golden: Generated) -> None:
    model = quantize_model(
        load_model().bfloat16(), "m2xfp-weight", "m2xfp-act", arithmetic="hardware"
    )
    tokens = as_tokens(TEXT.prompt).long()[None]
    with torch.no_grad(), QuantAttention(arithmetic="hardware") as attention:
        wanted = model(tokens)[0, -1]
    assert attention.calls == 4
    assert torch.equal(golden.steps[0].logits, wanted)


def test_every_difference_is_told(golden: Generated) -> None:
    first = golden.steps[0]
    logits = first.logits.clone()
    logits[7] = -logits[7]
    steps = [replace(first, token=first.token ^ 1, logits=logits), *golden.steps[1:]]
    keys = golden.cache[1][0]
    scales = keys.scales.clone()
    scales[0, 0] ^= 1
    cache = list(golden.cache)
    cache[1] = replace(keys, scales=scales), cache[1][1]
    said = differences(replace(golden, steps=steps, cache=cache), golden)
    assert [line.split()[-1] for line in said] == [str(first.token), "differ", "differ"]
    assert "scales of the cached keys of block 1" in said[2]


def test_draws_follow_the_seed() -> None:
    model = load_model()
    texts = [
        generate_golden(model, Text(b"The", 12, temperature=1.5, seed=seed)).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_text_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="at least one of them a prompt"):
        Text(b"", 1).check(512)
    with pytest.raises(InputError, match="500 bytes of prompt and 13 tokens"):
        Text(b"x" * 500, 13).check(512)
    model = load_model().bfloat16()
    generator = Generator(model, GoldenEngine(pack_weights(model), 4))
    with pytest.raises(InputError, match="513 bytes of text"):
        generator.read(torch.zeros(513, dtype=torch.int64))


def test_the_command_with_golden() -> None:
    given = ["generate", "The hardware", "--on", "golden", "--tokens", "8"]
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0
    assert done.stdout.startswith("The hardware")
    assert len(done.stdout) == len("The hardware") + 8 + 1
