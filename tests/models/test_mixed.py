"""Mixed formats of whole models: calibration, plans, layers and the command."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from m2xfp.cli import cli
from m2xfp.errors import InputError, M2xfpError
from m2xfp.golden.formats.mixed import Calibration, micromix_split, mixed_matmul, mxquant_splits
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.lm import LanguageModel, ModelConfig, save_model
from m2xfp.models.mixed import (
    MixedCase,
    MixedLinear,
    Rule,
    calibrate,
    check_channels,
    load_plan,
    prepared,
)
from m2xfp.models.quantized import linear_layers


class Two(nn.Module):
    """Two layers, of which the second reads the first one's results."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embedding = nn.Embedding(16, 256)
        self.first, self.second = nn.Linear(256, 128, bias=False), nn.Linear(128, 16)
        for value in self.parameters():
            value.data = torch.randn(value.shape, generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.second(self.first(self.embedding(tokens)))


def tokens(count: int) -> torch.Tensor:
    return torch.randint(0, 16, (count, 8), generator=torch.Generator().manual_seed(2))


def test_splits_are_the_golden_models_of_what_layers_read() -> None:
    """Gathered window by window, the splits are those of all activations together."""
    model = Two()
    layers = check_channels(model, (), 128)
    windows = tokens(6)
    read = model.embedding(windows).detach()
    after = model.first(read).detach()
    plan = calibrate(model, layers, Rule("mxquant", share=0.3), windows, batch=6)
    for split, wanted in zip(plan.splits.values(), mxquant_splits([read, after], 0.3), strict=True):
        assert split.sizes == wanted.sizes
        assert torch.equal(split.order, wanted.order)
    rule = Rule("micromix", strength=6.0)
    plan = calibrate(model, {"first": layers["first"]}, rule, windows, batch=6)
    wanted = micromix_split(read, 6.0)
    assert plan.splits["first"].sizes == wanted.sizes
    assert torch.equal(plan.splits["first"].order, wanted.order)


def test_parts_add_up() -> None:
    x = torch.randn(12, 256, generator=torch.Generator().manual_seed(3))
    whole, parts = Calibration(2.0), Calibration(2.0)
    whole.add(x)
    for part in x.split(5):
        parts.add(part)
    assert parts.shares() == whole.shares()
    assert sum(whole.shares()) == x.numel()
    assert torch.allclose(parts.scores, x.double().abs().mean(0))


@pytest.mark.parametrize("rule", ["mxquant:share=0.3", "mxquant:share=0.3,activations=mxfp8-e4m3"])
def test_layers_multiply_as_the_golden_model(rule: str) -> None:
    """With the hardware's arithmetic bit for bit, else the products of the decoded values."""
    model = Two()
    layer, asked = model.first, Rule.parse(rule)
    x = model.embedding(tokens(2)).detach()
    (split,) = mxquant_splits([x], 0.3)
    assert len([size for size in split.sizes if size]) == 2
    a, w = split.quantize(x, asked.activations), split.quantize(layer.weight.detach())
    found = MixedLinear(layer, split, asked, Arithmetic("hardware"))(x)
    assert torch.equal(found, mixed_matmul(a, w).float())
    found = MixedLinear(layer, split, asked)(x)
    assert torch.equal(found, a.dequantize() @ w.dequantize().T)


def test_plans_come_back(tmp_path: Path) -> None:
    model = Two()
    layers = check_channels(model, (), 64)
    rule = Rule.parse("mxquant:share=0.2,tile=64")
    plan = calibrate(model, layers, rule, tokens(4))
    (tmp_path / "splits.json").write_text(plan.as_json())
    again = load_plan(tmp_path / "splits.json")
    assert again.rule == rule
    case, other = (MixedCase.of(each, layers, Arithmetic()) for each in (plan, again))
    assert case.bits_per_value == other.bits_per_value
    with prepared(case, Two()) as one, prepared(other, Two()) as two:
        assert torch.equal(one(tokens(3)), two(tokens(3)))
        assert not linear_layers_left(one)


def linear_layers_left(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Linear) for module in model.modules())


def test_bits_a_value_are_those_of_the_segments() -> None:
    model = Two()
    layers = check_channels(model, (), 128)
    plan = calibrate(model, layers, Rule("mxquant", share=0.0), tokens(4))
    assert MixedCase.of(plan, layers, Arithmetic()).bits_per_value == 4.25
    plan = calibrate(model, layers, Rule("mxquant", share=1.0), tokens(4))
    assert MixedCase.of(plan, layers, Arithmetic()).bits_per_value == 6.25


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("awq", "micromix"),
        ("micromix:share=0.1", "strength"),
        ("mxquant:share=2", "0 to 1"),
        ("micromix:strength=0", "above 0"),
        ("mxquant:tile=48", "32, 64, 128"),
        ("mxquant:weights=nvfp4", "mxfp4, mxfp6-e3m2"),
        ("mxquant:share", "OPTION=VALUE"),
    ],
)
def test_rules_that_are_none(text: str, match: str) -> None:
    with pytest.raises(M2xfpError, match=match):
        Rule.parse(text)


def test_channels_that_are_no_tiles_are_named() -> None:
    model = nn.Sequential(nn.Linear(192, 256), nn.Linear(256, 4))
    with pytest.raises(InputError, match=r"0 \(192\) are no multiple of 128"):
        check_channels(model, (), 128)
    assert list(check_channels(model, ("0",), 128)) == ["1"]
    assert len(linear_layers(model)) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("rule"),
        lambda found: found["layers"]["first"].update(sizes=[128, 64, 64]),
        lambda found: found["layers"]["first"].update(sizes=[128]),
        lambda found: found["layers"]["first"]["order"].__setitem__(0, 5),
        lambda found: found["layers"].pop("second"),
        lambda found: found.update(layers=3),
    ],
)
def test_plans_of_something_else_are_refused(change: object, tmp_path: Path) -> None:
    model = Two()
    layers = check_channels(model, (), 128)
    found = json.loads(calibrate(model, layers, Rule("mxquant"), tokens(4)).as_json())
    change(found)  # type: ignore[operator]
    (tmp_path / "splits.json").write_text(json.dumps(found))
    with pytest.raises(InputError):
        MixedCase.of(load_plan(tmp_path / "splits.json"), layers, Arithmetic())


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(cli, ["eval", *arguments])
    return found.exit_code, found.output + str(found.exception or "")


def test_command(tmp_path: Path) -> None:
    """Calibrated, kept, and given back: the same figures."""
    config = ModelConfig(width=64, layers=1, heads=2, hidden=128, context=32)
    save_model(tmp_path / "small.safetensors", LanguageModel(config), {})
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(32, 122)) * 20)
    common = [str(tmp_path / "small.safetensors"), "--text", str(text), "--windows", "3"]
    mixed = ["--mixed", "mxquant:tile=32,share=0.4"]
    calibrated = ["--calibration", str(text), "--calibration-windows", "2"]
    splits = str(tmp_path / "splits.json")
    code, told = run(
        *common, *mixed, *calibrated, "--save-splits", splits, "-o", str(tmp_path / "a")
    )
    assert code == 0, told
    code, told = run(*common, "--splits", splits, "-o", str(tmp_path / "b"))
    assert code == 0, told
    first, second = (
        json.loads((tmp_path / each / "perplexity.json").read_text())["results"][1] for each in "ab"
    )
    assert first == second
    assert first["weights"] == "mxquant:share=0.4,tile=32"
    assert first["coverage"]["share"] > 0.9

    code, told = run(*common, *mixed)
    assert code == 2
    assert "--calibration" in told
    code, told = run(*common, *mixed, "--calibration", str(text), "--calibration-windows", "99")
    assert code != 0
    assert "99 are wanted" in told
    code, told = run(*common, "--mixed", "mxquant", *calibrated)
    assert code != 0
    assert "no multiple of 128" in told
    code, told = run(*common, *mixed, *calibrated, "--weights", "mxfp4")
    assert code == 2


@pytest.mark.parametrize(
    ("characters", "windows", "rule", "told"),
    [
        (10, "1", "mxquant:tile=32", "window"),  # shorter than one window
        (200, "99", "mxquant:tile=32", "99 are wanted"),
        (200, "2", "mxquant", "no multiple of 128"),
    ],
)
def test_refused_before_any_work(
    characters: int,
    windows: str,
    rule: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither calibrated nor measured: no pass through the model."""
    config = ModelConfig(width=64, layers=1, heads=2, hidden=128, context=32)
    save_model(tmp_path / "small.safetensors", LanguageModel(config), {})
    text, short = tmp_path / "text.txt", tmp_path / "short.txt"
    text.write_bytes(bytes(range(32, 122)) * 20)
    short.write_bytes(b"x" * characters)

    def work(*_args: object) -> None:
        raise AssertionError("a pass through the model")

    monkeypatch.setattr(LanguageModel, "forward", work)
    common = [str(tmp_path / "small.safetensors"), "--text", str(text), "--windows", "3"]
    calibrated = ["--calibration", str(short), "--calibration-windows", windows]
    code, output = run(*common, "--mixed", rule, *calibrated)
    assert code != 0  # InputError, which m2xfp ends with status 2 for
    assert told in output
    assert "pass through" not in output
