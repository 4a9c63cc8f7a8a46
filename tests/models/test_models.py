import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.golden import Format, get_format
from m2xfp.models.attention import QuantAttention
from m2xfp.models.inputs import InputQuantizer
from m2xfp.models.linear import QuantLinear
from m2xfp.models.lm import LanguageModel, ModelConfig
from m2xfp.models.packed_model import load_quantized, save_quantized
from m2xfp.models.quantized import linear_layers, quantize_model

SHAPE = ModelConfig(width=64, layers=2, heads=2, hidden=96, context=32)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(SHAPE).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.2)
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(1))


class Other(nn.Module):
    """A model of another make: nested, with biases, sizes that are no multiples of 32, a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 40)
        self.blocks = nn.ModuleDict({"a": nn.Sequential(nn.Linear(40, 70), nn.ReLU())})
        self.inner = nn.Linear(70, 40, bias=False)
        self.norm = nn.BatchNorm1d(40)
        self.head = nn.Linear(40, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.inner(self.blocks["a"](self.table(tokens)))))


@pytest.fixture
def other() -> Other:
    torch.manual_seed(2)
    return Other().eval()


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, "m2xfp-weight", "mxfp4"])
@pytest.mark.parametrize("activations", [None, "m2xfp-act"])
def test_layer_computes_on_quantized_operands(
    weights: str | None, activations: str | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(70, 5).to(dtype)
    x = torch.randn(3, 4, 70, dtype=dtype)
    model = quantize_model(nn.Sequential(layer), weights, activations)
    w = get_format(weights).quantize(layer.weight).dequantize(dtype) if weights else layer.weight
    y = get_format(activations).quantize(x).dequantize(dtype) if activations else x
    assert torch.equal(model(x), F.linear(y, w, layer.bias))
    assert isinstance(model[0], QuantLinear)
    assert (model[0].in_features, model[0].out_features) == (70, 5)
    assert f"weights={weights}, activations={activations}" in repr(model)


def test_layer_refuses_planes_of_another_shape() -> None:
    packed = get_format("mxfp4").quantize(torch.ones(2, 32))
    with pytest.raises(InputError, match=r"\(2, 32\).*\(2, 31\)"):
        QuantLinear(torch.ones(2, 31), packed=packed)


class Counting:
    """A format that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def fake_quantize(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 1


def test_one_tensor_is_quantized_once() -> None:
    counting = Counting()
    quantizer = InputQuantizer(counting)
    x = torch.zeros(3)
    assert quantizer(x) is quantizer(x)
    assert counting.calls == 1
    x += 5  # the same tensor, with other values
    assert torch.equal(quantizer(x), torch.full((3,), 6.0))
    assert counting.calls == 2
    assert quantizer(x.clone()).tolist() == [6.0] * 3
    assert counting.calls == 3
    quantizer(torch.ones(2))  # gone at once, and its result with it
    assert quantizer._result is None


def test_inference_tensors_are_quantized_each_time() -> None:
    quantizer = InputQuantizer(Counting())
    with torch.inference_mode():
        x = torch.zeros(3)
        quantizer(x)
        x += 1
        assert quantizer(x).tolist() == [2.0] * 3


@torch.no_grad()
def test_models_can_be_copied_and_pickled(model: LanguageModel, tokens: Tensor) -> None:
    quantize_model(model, "m2xfp-weight", "m2xfp-act")
    expected = model(tokens)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(tokens), expected)


# --- whole models ---------------------------------------------------------------------------------


def test_every_linear_layer_is_replaced(other: Other) -> None:
    assert list(linear_layers(other)) == ["blocks.a.0", "inner", "head"]
    assert quantize_model(other, "mxfp4", "mxfp4", skip=["head"]) is other
    assert isinstance(other.blocks["a"][0], QuantLinear)
    assert isinstance(other.inner, QuantLinear)
    assert type(other.head) is nn.Linear
    assert other.blocks["a"][0].inputs is other.inner.inputs  # one quantizer shares results


def test_patterns_skip_layers(model: LanguageModel) -> None:
    quantize_model(model, "mxfp4", skip=["*.mlp.*", "layers.0.self_attn.q_proj"])
    left = list(linear_layers(model))
    assert len(left) == 7
    assert all("mlp" in name or name == "layers.0.self_attn.q_proj" for name in left)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"weights": "mxfp5"}, UnknownNameError, "unknown format 'mxfp5'"),
        ({"activations": "m2xfp-weight"}, InputError, "pass m2xfp-act"),
        ({"activations": "m2nvfp4-weight"}, InputError, "pass m2nvfp4-act"),
        ({"weights": "mxfp4", "skip": ["heads"]}, InputError, "'heads'; there are: blocks.a.0, in"),
    ],
)
def test_errors_leave_the_model_alone(
    other: Other, options: dict, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        quantize_model(other, **options)
    assert len(linear_layers(other)) == 3


def test_models_without_linear_layers_are_refused(other: Other) -> None:
    with pytest.raises(InputError, match=r"ReLU has no layer that can be quantized"):
        quantize_model(nn.ReLU(), "mxfp4")
    quantize_model(other, "mxfp4")
    with pytest.raises(InputError, match=r"Other has no layer that can be quantized"):
        quantize_model(other, "mxfp4")


@torch.no_grad()
def test_nan_in_weights_is_named_and_counted(other: Other) -> None:
    other.inner.weight[0, :3] = torch.tensor([torch.nan, torch.inf, 1.0])
    other.blocks["a"][0].weight[2, 7] = -torch.inf
    with pytest.raises(
        InputError, match=r"blocks.a.0.weight has 1, inner.weight has 2; .*allow_nan"
    ):
        quantize_model(other, "mxfp4")
    assert len(linear_layers(other)) == 3
    quantize_model(other, "mxfp4", skip=["head"], allow_nan=True)
    nan = other.inner.weight.isnan()
    assert nan[0, :32].all()
    assert nan.sum() == 32


# --- checkpoints ----------------------------------------------------------------------------------

PAIRS = [
    ("m2xfp-weight", "m2xfp-act"),
    ("mxfp4", None),
    (None, "m2xfp-act"),
    ("mxfp6-e3m2", "mxfp8-e4m3"),
    (get_format("nvfp4", tensor_scale="auto"), get_format("m2xfp-act", subgroup=4)),
    ("amxfp4", "int4-asym"),
]


@pytest.mark.parametrize(("weights", "activations"), PAIRS)
@torch.no_grad()
def test_checkpoint_gives_the_same_outputs(
    model: LanguageModel,
    tokens: Tensor,
    tmp_path: Path,
    weights: Format | str | None,
    activations: Format | str | None,
) -> None:
    quantize_model(model, weights, activations, skip=["*.0.mlp.up_proj"])
    expected = model(tokens)
    save_quantized(tmp_path / "m.safetensors", model)
    loaded = load_quantized(tmp_path / "m.safetensors")
    assert torch.equal(loaded(tokens), expected)
    assert list(linear_layers(loaded)) == ["layers.0.mlp.up_proj"]
    again = tmp_path / "again.safetensors"
    save_quantized(again, loaded)
    assert again.read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_checkpoint_holds_planes_and_the_format(model: LanguageModel, tmp_path: Path) -> None:
    from safetensors import safe_open

    layer = model.layers[0].mlp.down_proj
    packed = get_format("m2xfp-weight", subgroup=4).quantize(layer.weight)
    save_quantized(
        tmp_path / "m", quantize_model(model, get_format("m2xfp-weight", subgroup=4), "mxfp4")
    )
    name = "layers.0.mlp.down_proj"
    with safe_open(tmp_path / "m", framework="pt") as file:
        facts = json.loads(file.metadata()["m2xfp"])
        assert f"{name}.weight" not in file.keys()  # noqa: SIM118
        for plane, expected in packed.planes().items():
            assert torch.equal(file.get_tensor(f"{name}.{plane}"), expected)
        assert file.get_tensor(f"{name}.codes").shape == (64, 48)
        assert file.get_tensor(f"{name}.meta").shape == (64, 2 * 3)
    assert facts["layers"][name] == {
        "weights": {"format": "m2xfp-weight", "options": {"subgroup": 4}},
        "activations": {"format": "mxfp4", "options": {}},
        "shape": [64, 96],
        "dtype": "float32",
    }


@torch.no_grad()
def test_checkpoint_of_another_architecture(other: Other, tmp_path: Path) -> None:
    tokens = torch.tensor([0, 3, 6])
    quantize_model(other, "m2xfp-weight", "m2xfp-act", skip=["head"])
    save_quantized(tmp_path / "m", other)
    loaded = load_quantized(tmp_path / "m", Other())
    assert torch.equal(loaded(tokens), other(tokens))
    assert not loaded.training
    with pytest.raises(InputError, match="pass a model of its"):
        load_quantized(tmp_path / "m")
    with pytest.raises(InputError, match="does not fit LanguageModel"):
        load_quantized(tmp_path / "m", LanguageModel(SHAPE))


def test_checkpoint_in_bfloat16(model: LanguageModel, tokens: Tensor, tmp_path: Path) -> None:
    model.bfloat16()
    quantize_model(model, "m2xfp-weight")
    save_quantized(tmp_path / "m", model)
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path / "m")(tokens), model(tokens))


def test_checkpoint_refuses_what_is_none(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no quantized layer"):
        save_quantized(tmp_path / "m", model)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"no file .*give a safetensors file"):
        load_quantized(tmp_path / "m")
    (tmp_path / "noise").write_bytes(b"\1" * 40)
    with pytest.raises(InputError, match="no safetensors file"):
        load_quantized(tmp_path / "noise")
    get_format("mxfp4").quantize(torch.ones(32)).save(tmp_path / "tensor")
    with pytest.raises(InputError, match="holds no quantized model"):
        load_quantized(tmp_path / "tensor")


# --- attention ------------------------------------------------------------------------------------


class Exact:
    """A format that changes nothing."""

    name = "exact"
    level = None
    block = get_format("mxfp4").block

    def fake_quantize(self, x: Tensor) -> Tensor:
        return x


ATTENTIONS: list[Callable[[Tensor], dict]] = [
    lambda q: {},
    lambda q: {"is_causal": True},
    lambda q: {"scale": 0.3},
    lambda q: {"attn_mask": torch.rand(q.shape[-2], q.shape[-2]) > 0.3},
    lambda q: {"attn_mask": torch.randn(2, 1, q.shape[-2], q.shape[-2])},
    lambda q: {"enable_gqa": True, "is_causal": True},
]


@pytest.mark.parametrize("number", range(len(ATTENTIONS)))
def test_attention_without_quantization_is_the_original(number: int) -> None:
    torch.manual_seed(number)
    q = torch.randn(2, 4, 10, 16)
    options = ATTENTIONS[number](q)
    heads = 2 if "enable_gqa" in options else 4
    k, v = torch.randn(2, heads, 10, 16), torch.randn(2, heads, 10, 16)
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    for renormalize in (False, True):
        with QuantAttention(Exact(), Exact(), renormalize=renormalize) as mode:
            found = F.scaled_dot_product_attention(q, k, v, **options)
        assert mode.calls == 1
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_that_see_no_key_give_zero() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 32)
    mask = torch.tensor([True, False, True, True])[:, None].expand(4, 4)
    for renormalize in (False, True):
        with QuantAttention(renormalize=renormalize):
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert (found[0, 0, 1] == 0).all()
        assert found.isfinite().all()


def test_attention_quantizes_along_what_is_summed() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 50, 40) * torch.rand(3, 50, 40).exp()
    weight, act = get_format("m2xfp-weight"), get_format("m2xfp-act")
    scores = torch.stack(
        [act.fake_quantize(row) @ weight.fake_quantize(k).T for row in q]  # along the head
    )
    scores = (scores * 40**-0.5).masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf)
    columns = torch.stack([weight.fake_quantize(v[:, i].clone()) for i in range(40)])  # tokens
    expected = act.fake_quantize(scores.softmax(-1)) @ columns.T
    plain = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    with QuantAttention():
        found = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - plain).abs().max() > 1e-3
    after = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    assert torch.equal(after, plain)


@pytest.mark.parametrize("how", ["float", "hardware"])
@pytest.mark.parametrize(
    ("cache", "operands", "one"),
    [("m2xfp-weight", "m2xfp-act", 1.0), ("nvfp4", "nvfp4", 33 / 32), ("mxfp4", "mxfp4", 1.0)],
)
def test_renormalized_attention(cache: str, operands: str, one: float, how: str) -> None:
    """The sum of the quantized probabilities, by hand; heads share keys and values."""
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 40, 32), torch.randn(2, 40, 32), torch.randn(2, 40, 32)
    held, given = get_format(cache), get_format(operands)
    assert float(held.fake_quantize(torch.ones(1, 40))[0, 0]) == one
    keys = held.fake_quantize(k).repeat_interleave(2, 0)
    values = held.fake_quantize(v.transpose(-1, -2).contiguous()).repeat_interleave(2, 0)
    scores = given.fake_quantize(q) @ keys.transpose(-1, -2) * 32**-0.5
    scores = scores.masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    probabilities = given.fake_quantize(scores.softmax(-1))
    assert (probabilities.sum(-1) - 1).abs().max() > 0.01
    expected = probabilities @ values.transpose(-1, -2) / probabilities.sum(-1, keepdim=True)
    with QuantAttention(cache, operands, how, renormalize=True):
        found = F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, enable_gqa=True
        )[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_operands_are_not_searched() -> None:
    with pytest.raises(InputError, match="operands: m2xfp-weight searches"):
        QuantAttention("mxfp4", "m2xfp-weight")


@torch.no_grad()
def test_whole_model_with_quantized_attention(model: LanguageModel, tokens: Tensor) -> None:
    plain = model(tokens)
    with QuantAttention() as mode:
        found = model(tokens)
    assert mode.calls == SHAPE.layers
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, rtol=0.5, atol=0.5 * plain.abs().max().item())
