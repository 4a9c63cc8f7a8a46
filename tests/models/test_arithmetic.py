"""Models that multiply as the hardware does, and layers whose weights stay packed."""

import copy

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.golden import computing, dot, get_format, matmul
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.attention import QuantAttention
from m2xfp.models.evaluate import Case, quantized, window_nats
from m2xfp.models.inputs import InputQuantizer
from m2xfp.models.linear import QuantLinear
from m2xfp.models.lm import HELD_OUT, LanguageModel, as_tokens, load_model
from m2xfp.models.packed_model import load_quantized, save_quantized
from m2xfp.models.quantized import quantize_model, set_arithmetic
from m2xfp.models.windows import cut_windows
from m2xfp.synth.studies.linear_layers import linear_layers_by
from m2xfp.tb.linear import golden_linear

ACT, WEIGHT = get_format("m2xfp-act"), get_format("m2xfp-weight")
ACCUMULATORS = ("fp32", "fp32_subgroup", "exact")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accumulator", ACCUMULATORS)
def test_a_layer_is_the_golden_product(accumulator: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(70, 5).to(dtype)
    x = torch.randn(3, 4, 70, dtype=dtype)
    x[0, 0, 0] = float("nan")
    how = Arithmetic("hardware", accumulator)
    quant = QuantLinear.from_linear(layer, WEIGHT, InputQuantizer(ACT), how)
    product = matmul(ACT.quantize(x), WEIGHT.quantize(layer.weight), accumulator)
    expected = product.to(dtype) + layer.bias
    assert torch.equal(quant(x).nan_to_num(7), expected.nan_to_num(7))
    assert quant(x)[0, 0].isnan().all()
    assert f"arithmetic=hardware, accumulator={accumulator}" in repr(quant)


def _by_rows(a: Tensor, b: Tensor, accumulator: str) -> Tensor:
    """Return ACT(a) [M, K] times the rows of WEIGHT(b) [N, K], one dot product each."""
    qa, qb = ACT.quantize(a), WEIGHT.quantize(b)
    rows = [[dot(_row(qa, i), _row(qb, j), accumulator) for j in range(len(b))]
            for i in range(len(a))]  # fmt: skip
    return torch.tensor(rows).to(a.dtype)


def _row(packed, i: int):  # type: ignore[no-untyped-def]
    planes = {name: plane[i : i + 1] for name, plane in packed.planes().items()}
    return type(packed).from_planes(packed.format, planes, (1, packed.shape[-1]))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_made_of_golden_products(kv_heads: int) -> None:
    torch.manual_seed(1)
    q = torch.randn(2, 4, 6, 32, dtype=torch.bfloat16)
    k, v = (torch.randn(2, kv_heads, 6, 32, dtype=torch.bfloat16) for _ in range(2))
    with QuantAttention(WEIGHT, ACT, "hardware") as attention:
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads < 4)
    assert attention.calls == 1
    for b in range(2):
        for head in range(4):
            key, value = (x[b, head * kv_heads // 4] for x in (k, v))
            scores = _by_rows(q[b, head], key, "fp32").float() * 32**-0.5
            scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
            probabilities = scores.softmax(-1).to(torch.bfloat16)
            assert torch.equal(found[b, head], _by_rows(probabilities, value.T, "fp32"))


def test_float_attention_is_what_it_was() -> None:
    """Grouped heads repeat the quantized cache; results as of plain products."""
    torch.manual_seed(2)
    q, k, v = torch.randn(1, 4, 6, 32), torch.randn(1, 2, 6, 32), torch.randn(1, 2, 6, 32)
    with QuantAttention(WEIGHT, ACT):
        found = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    key = WEIGHT.fake_quantize(k).repeat_interleave(2, -3)
    value = WEIGHT.fake_quantize(v.mT).repeat_interleave(2, -3)
    scores = (ACT.fake_quantize(q) @ key.mT).float() * 32**-0.5
    assert torch.equal(found, ACT.fake_quantize(scores.softmax(-1)) @ value.mT)


@torch.no_grad()
def test_the_bundled_model_loses_what_it_does_through_the_verilog() -> None:
    """``tests/units/test_gemm_core.py`` holds ``golden_linear`` against the emitted core."""
    windows = cut_windows(as_tokens(HELD_OUT.read_bytes()[:96]), 48)
    model = load_model().to(torch.bfloat16)
    with linear_layers_by(model, golden_linear):
        expected = window_nats(model, windows, batch=1)
    case = Case(WEIGHT, ACT, arithmetic=Arithmetic("hardware"))
    with quantized(case, model) as ready:
        found = window_nats(ready, windows, batch=1)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_every_product_of_a_model_is_the_plain_paths() -> None:
    """Attention included, and whatever path computes."""
    tokens = as_tokens(HELD_OUT.read_bytes()[:40]).long()[None]
    case = Case.parse(
        "m2xfp-weight", "m2xfp-act", "m2xfp-weight", arithmetic=Arithmetic("hardware")
    )
    with quantized(case, load_model()) as model:
        found = model(tokens)
        with computing("plain"):
            assert torch.equal(model(tokens), found)


def test_what_hardware_cannot_multiply() -> None:
    with pytest.raises(InputError, match="give a format for the weights and one for"):
        quantize_model(nn.Sequential(nn.Linear(4, 4)), "mxfp4", arithmetic="hardware")
    with pytest.raises(InputError, match="groups of 32, nvfp4 of 16"):
        Case.parse("nvfp4", "m2xfp-act", arithmetic=Arithmetic("hardware"))
    with pytest.raises(InputError, match="fp32_subgroup needs one size"):
        Case.parse("mxfp4", "mxfp4", arithmetic=Arithmetic("hardware", "fp32_subgroup"))
    with pytest.raises(InputError, match="int4-asym has a zero point"):
        QuantAttention("int4-asym", "int4-asym", "hardware")
    with pytest.raises(InputError, match="arithmetic='chip'; choose one of: float, hardware"):
        QuantLinear(torch.ones(1, 1), arithmetic="chip")
    with pytest.raises(InputError, match="accumulator='fp16'; choose one of"):
        Arithmetic("hardware", "fp16")
    with pytest.raises(InputError, match="an accumulator is one of"):
        Arithmetic("float", "exact")


def test_cases_say_how_they_multiply() -> None:
    case = Case.parse("mxfp4", "mxfp4", arithmetic=Arithmetic("hardware", "exact"))
    assert case.label == "W mxfp4 A mxfp4 hardware exact"
    assert case.facts["arithmetic"] == "hardware"
    assert case.facts["accumulator"] == "exact"
    assert "arithmetic" not in Case.parse("mxfp4", "mxfp4").facts


def test_the_command() -> None:
    line = ["eval", "--windows", "1", "--context", "32", "--arithmetic", "hardware"]
    done = CliRunner().invoke(cli, [*line, "--cache", "m2xfp-weight"])
    assert done.exit_code == 0, done.output
    assert "hardware fp32" in done.output
    done = CliRunner().invoke(cli, ["eval", "--accumulator", "exact"])
    assert done.exit_code == 2
    assert "--accumulator goes with --arithmetic hardware" in done.output


# --- packed weights -------------------------------------------------------------------------------


def test_weights_stay_packed() -> None:
    layer = nn.Linear(256, 64, bias=False)
    quant = QuantLinear.from_linear(layer, WEIGHT)
    held = sum(x.nbytes for x in (*quant.parameters(), *quant.buffers()))
    assert held == 256 * 64 * 4.5 / 8
    assert torch.equal(quant.weight, WEIGHT.fake_quantize(layer.weight))
    assert {name for name, _ in quant.named_parameters()} == {"codes", "scales", "meta"}


def test_a_change_of_type_leaves_planes_alone() -> None:
    fmt = get_format("nvfp4", tensor_scale="auto")
    layer = nn.Linear(64, 8)
    quant = QuantLinear.from_linear(layer, fmt)
    packed = fmt.quantize(layer.weight)
    quant = copy.deepcopy(quant).to(torch.bfloat16)
    assert quant.weight.dtype == torch.bfloat16
    assert torch.equal(quant.weight, packed.dequantize(torch.bfloat16))
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    assert torch.equal(quant(x), F.linear(x, quant.weight, layer.bias.bfloat16()))


def test_large_weights_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    layer = nn.Linear(64, 37)
    quant = QuantLinear.from_linear(layer, WEIGHT)
    x = torch.randn(5, 64)
    whole = quant(x)
    monkeypatch.setattr("m2xfp.models.linear._DECODED", 64 * 10)
    assert torch.allclose(quant(x), whole, rtol=1e-6, atol=1e-6)


def test_a_saved_model_can_multiply_as_the_hardware(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model: LanguageModel = load_model()
    tokens = as_tokens(HELD_OUT.read_bytes()[:8]).long()[None]
    how = Arithmetic("hardware", "fp32_subgroup")
    quantize_model(model, WEIGHT, ACT, arithmetic=how)
    save_quantized(tmp_path / "m", model)
    again = load_quantized(tmp_path / "m")
    set_arithmetic(again, how)
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))
