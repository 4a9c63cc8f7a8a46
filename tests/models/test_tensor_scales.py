"""Second-level scales: of a weight, of a token or calibrated, and never of a batch."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.golden import PackedTensor, computing, get_format
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.attention import QuantAttention
from m2xfp.models.cases import Case
from m2xfp.models.inputs import weight_format
from m2xfp.models.linear import QuantLinear
from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
from m2xfp.models.quality import sqnr
from m2xfp.models.quantized import quantize_model


def activations(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    sizes = torch.rand(*shape[:-1], 1, generator=generator).exp2()
    return torch.randn(*shape, generator=generator) * sizes


@pytest.mark.parametrize("name", ["nvfp4", "m2nvfp4-act", "m2nvfp4-weight"])
def test_a_token_is_quantized_as_it_is_alone(name: str) -> None:
    x = activations(3, 5, 70)
    token, alone = (get_format(name, tensor_scale=level) for level in ("token", "auto"))
    packed = token.quantize(x)
    assert packed.tensor_scale is not None
    assert packed.tensor_scale.shape == (3, 5)
    rows = [[alone.quantize(row[None]) for row in part] for part in x]
    for i, part in enumerate(rows):
        for j, row in enumerate(part):
            assert torch.equal(packed.codes[i, j], row.codes[0])
            assert torch.equal(packed.scales[i, j], row.scales[0])
            assert packed.tensor_scale[i, j] == row.tensor_scale
            assert torch.equal(token.fake_quantize(x)[i, j], row.dequantize()[0])
            assert torch.equal(token.clipped(x)[i, j], alone.clipped(x[i, j]))
    values = packed.dequantize()
    assert torch.equal(values, token.fake_quantize(x))
    assert torch.equal(torch.vmap(token.fake_quantize)(x), values)
    assert torch.equal(torch.vmap(token.quantize)(x).dequantize(), values)
    assert torch.equal(torch.vmap(lambda p: p.dequantize())(packed), values)
    empty = token.quantize(torch.zeros(0, 32))
    assert empty.dequantize().shape == (0, 32)


def test_tensor_scales_of_tokens_are_checked_and_saved(tmp_path: Path) -> None:
    fmt = get_format("nvfp4", tensor_scale="token")
    packed = fmt.quantize(activations(4, 32))
    packed.save(tmp_path / "x")
    again = PackedTensor.load(tmp_path / "x")
    assert torch.equal(again.dequantize(), packed.dequantize())
    planes = packed.planes()
    for wrong in (torch.ones(()), torch.ones(3)):
        with pytest.raises(InputError, match="one number a row"):
            PackedTensor.from_planes(fmt, {**planes, "tensor_scale": wrong}, (4, 32))
    bad = torch.tensor([1.0, 1.0, float("nan"), 1.0])
    with pytest.raises(InputError, match="must be positive and finite"):
        PackedTensor.from_planes(fmt, {**planes, "tensor_scale": bad}, (4, 32))
    with computing("fused"), pytest.raises(InputError, match="one for each row"):
        fmt.quantize(torch.ones(2, 32))


@pytest.mark.parametrize("option", ["activations", "cache", "operands"])
def test_scales_of_a_batch_are_refused(option: str) -> None:
    formats = {"cache": "mxfp4"} if option == "operands" else {}
    with pytest.raises(InputError, match=rf"{option}: nvfp4 .*depend.*tensor_scale=token"):
        Case.parse(**{**formats, option: "nvfp4:tensor_scale=auto"})
    command = [f"--{name}={text}" for name, text in formats.items()]
    done = CliRunner().invoke(cli, ["eval", *command, f"--{option}", "nvfp4:tensor_scale=auto"])
    assert isinstance(done.exception, InputError)


def test_losses_do_not_depend_on_the_batch() -> None:
    """The bundled model's activations, cache and operands by tokens: row by row as together."""
    model = quantize_model(load_model(), "nvfp4", "nvfp4:tensor_scale=token")
    tokens = as_tokens(HELD_OUT.read_bytes()[: 3 * 48]).long().view(3, 48)
    fmt = get_format("nvfp4", tensor_scale="token")
    with torch.no_grad(), QuantAttention(fmt, fmt):
        together = model(tokens)
        alone = torch.cat([model(row[None]) for row in tokens])
    # Matrix products of other sizes may differ in their last bits, which a rounding can enlarge.
    assert (together - alone).abs().median() < 1e-5
    whole = get_format("nvfp4", tensor_scale="auto")
    x = torch.linspace(7, -3, 64).view(2, 32)  # the largest stands in the other row
    assert not torch.equal(whole.fake_quantize(x)[1:], whole.fake_quantize(x[1:]))


def test_weights_have_two_levels_unless_told() -> None:
    assert weight_format("nvfp4") == get_format("nvfp4", tensor_scale="auto")
    assert weight_format("m2nvfp4-weight:subgroup=8") == get_format(
        "m2nvfp4-weight", subgroup=8, tensor_scale="auto"
    )
    for text in ("nvfp4:tensor_scale=none", "nvfp4:tensor_scale=0.5", "mxfp4"):
        assert weight_format(text) == get_format(text)
    ready = get_format("nvfp4")
    assert weight_format(ready) is ready
    assert weight_format(None) is None
    case = Case.parse("nvfp4", "nvfp4")
    assert case.facts["weights"] == "nvfp4:tensor_scale=auto"
    assert case.facts["activations"] == "nvfp4"
    assert Case.parse(**case.facts) == case
    one = Case.parse("nvfp4:tensor_scale=none")
    assert Case.parse(**one.facts) == one != Case.parse("nvfp4")
    torch.manual_seed(0)
    layer = nn.Linear(256, 256, bias=False)
    nn.init.normal_(layer.weight, std=0.002)
    weight = layer.weight.detach().clone()
    quantized = quantize_model(nn.Sequential(layer), "nvfp4")[0]  # type: ignore[index]
    assert isinstance(quantized, QuantLinear)
    assert torch.equal(quantized.weight, weight_format("nvfp4").fake_quantize(weight))  # type: ignore[union-attr]
    assert sqnr(get_format("nvfp4"), weight) < 1
    assert sqnr(weight_format("nvfp4"), weight) > 20  # type: ignore[arg-type]


def test_hardware_takes_two_levels_on_one_side_and_no_scales_of_tokens() -> None:
    how = Arithmetic("hardware")
    Case.parse("nvfp4", "nvfp4", arithmetic=how)
    Case.parse("nvfp4", "nvfp4:tensor_scale=0.01", arithmetic=how)
    with pytest.raises(InputError, match="a scale for each row"):
        Case.parse("nvfp4", "nvfp4:tensor_scale=token", arithmetic=how)
