"""The bundled model generates text on the emitted accelerator: every bit is golden's."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from m2xfp.models.lm import LanguageModel, as_tokens, load_model
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
        generate_golden(model, Text(b"The", 6, temperature=1.5, seed=seed)).text
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


def test_the_command_on_the_emitted_verilog(sim_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: emitted, run, summed up, compared; the log has a line for the bar."""
    seen: list[Generated] = []

    def kept(*given: Any, **options: Any) -> Generated:
        seen.append(generate_simulated(*given, **options))
        return seen[0]

    monkeypatch.setattr("m2xfp.accelerator.generation.generate_simulated", kept)
    given = ["generate", "T", "--tokens", "2", "--build-dir", str(sim_dir.parent)]
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0, done.output
    counts, text = seen[0].counts, seen[0].text.decode()
    cycles, moved = counts["cycles"], counts["read"] + counts["written"]
    assert done.stdout.splitlines()[0] == f"T{text}".splitlines()[0]
    assert (
        f"\naccelerator_m2xfp_2x2: 2 tokens, {cycles} clocks, "
        f"array busy in {counts['work'] / cycles:.1%}, {counts['read']} bytes read, "
        f"{counts['written']} bytes written, "
    ) in done.stdout
    assert done.stdout.endswith(
        f"\nequal to the golden model's: 2 tokens, {seen[0].logits} logits, "
        f"{seen[0].cache_bytes} bytes of cache\n"
    )
    bar = re.search(
        r"accelerator: 8 of 8 blocks, \d+\.\d s, (\d+) clocks, (\d+)% busy, (\d+\.\d) MB",
        done.stderr,
    )
    assert bar is not None
    # Its last note comes with the last block, after which nothing runs on the accelerator.
    assert bar.groups() == (
        str(cycles),
        f"{counts['work'] / cycles:.0%}"[:-1],
        f"{moved / 1e6:.1f}",
    )


def test_a_difference_ends_the_command_with_1(
    accelerator_files: EmittedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(files: EmittedFiles, model: LanguageModel, text: Text, *_: Any, **__: Any) -> Any:
        found = generate_golden(model, text)
        first = replace(found.steps[0], token=found.steps[0].token ^ 1)
        counts = {"cycles": 100, "work": 25, "read": 10, "written": 7}
        return replace(found, steps=[first, *found.steps[1:]], counts=counts)

    monkeypatch.setattr("m2xfp.rtl.verilog.emit.emit", lambda *_: accelerator_files)
    monkeypatch.setattr("m2xfp.accelerator.generation.generate_simulated", wrong)
    done = CliRunner().invoke(cli, ["generate", "The", "--tokens", "2"])
    assert done.exit_code == 1
    assert (
        "2 tokens, 100 clocks, array busy in 25.0%, 10 bytes read, 7 bytes written" in done.stdout
    )
    assert "\ntoken 0 is " in done.stdout
    assert "equal to" not in done.stdout
    done = CliRunner().invoke(cli, ["generate", "The", "--tokens", "2", "--no-check"])
    assert done.exit_code == 0
    assert "token 0 is" not in done.stdout
