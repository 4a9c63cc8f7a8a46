"""Recipes: steps that leave a model what it is, and one that quantizes it with less error."""

import copy
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from m2xfp.commands.eval import command
from m2xfp.errors import InputError, M2xfpError
from m2xfp.golden import get_format
from m2xfp.golden.formats.products import matmul
from m2xfp.golden.formats.rotation import rotate_blocks
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.attention import QuantAttention
from m2xfp.models.cases import Case
from m2xfp.models.linear import QuantLinear, quant_layers
from m2xfp.models.lm import LanguageModel, ModelConfig, save_model
from m2xfp.models.packed_model import load_quantized, save_quantized
from m2xfp.models.quantized import set_arithmetic
from m2xfp.models.recipes.apply import apply_recipe, prepare
from m2xfp.models.recipes.calibration import calibration_text, calibration_windows
from m2xfp.models.recipes.gptq import Moments, compensated, corrected_weight, objective
from m2xfp.models.recipes.recipe import Calibration, Recipe, parse_steps, read_recipe, recipe_of
from m2xfp.models.recipes.structure import logits, observe
from m2xfp.models.rotations import InputRotation, StreamRotation

FORMATS = (
    *("mxfp4", "m2xfp-weight", "m2xfp-act", "nvfp4", "nvfp4:tensor_scale=auto", "smx4", "amxfp4"),
    *("mxint8", "int4", "mxfp6-e3m2", "mxfp8-e4m3", "m2nvfp4-weight", "mxfp4:ties=zero"),
)
STEPS = (
    *("rotate", "rotate:mode=online:seed=3", "awq:grid=1:octave=2", "smooth"),
    *("rotate,awq:grid=1:octave=2", "smooth,rotate", "rotate:mode=online,awq:grid=1:octave=2"),
)


def small(seed: int = 0, **shape: int) -> LanguageModel:
    """Return a model whose norms have factors."""
    torch.manual_seed(seed)
    usual = {"width": 96, "layers": 2, "heads": 3, "hidden": 160, "vocabulary": 64, "context": 64}
    model = LanguageModel(ModelConfig(**{**usual, **shape})).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.rand_like(parameter) + 0.5
        else:
            parameter.data *= 6
    return model


def tokens(count: int = 4, length: int = 48) -> Tensor:
    return torch.randint(0, 64, (count, length), generator=torch.Generator().manual_seed(1))


def linear(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]


def moments(width: int, rows: int = 400, seed: int = 0) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.eye(width) + 0.2 * torch.randn(width, width, generator=generator)
    found = Moments.empty(width)
    found.add(torch.randn(rows, width, generator=generator) @ mixed)
    found.cross = None
    return found


@pytest.mark.parametrize("steps", STEPS)
def test_steps_leave_the_logits(steps: str) -> None:
    model, seen = small(), tokens()
    before = logits(model, seen)
    formats = get_format("m2xfp-weight"), get_format("m2xfp-act")
    prepare(model, parse_steps(steps), seen, linear(model), *formats)
    assert (logits(model, seen) - before).abs().max() < 2e-4 * before.abs().max()
    weights = {n: p.clone() for n, p in model.named_parameters()}
    assert any(not torch.equal(p, dict(small().named_parameters())[n]) for n, p in weights.items())


@pytest.mark.parametrize("steps", STEPS)
def test_steps_leave_the_logits_of_a_model_whose_heads_share_values(steps: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=192,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.rand_like(parameter) + 0.5
    before = logits(model, tokens())
    formats = get_format("m2xfp-weight"), get_format("m2xfp-act")
    prepare(model, parse_steps(steps), tokens(), linear(model), *formats)
    assert (logits(model, tokens()) - before).abs().max() < 2e-4 * before.abs().max()


def test_rotations_are_orthogonal_and_their_products_stay() -> None:
    for width in (1, 3, 96, 576, 128):
        matrix = StreamRotation(width, 2, "", "").matrix
        assert torch.allclose(matrix @ matrix.T, torch.eye(width, dtype=torch.float64))
        assert float(matrix.abs().max()) <= (2 / width) ** 0.5 + 1e-9
    x, w = torch.randn(5, 256), torch.randn(7, 256)
    for block in (32, 64, 128):
        rotation = InputRotation(256, block, 1)
        assert torch.allclose(rotation.values(x) @ rotation.weight(w).T, x @ w.T, atol=1e-3)
        both = rotation.values(x) @ rotation.values(w).T * rotation.product_factor
        assert torch.allclose(both, x @ w.T, atol=1e-3)
        assert torch.allclose(rotation.unrotated(rotation.weight(w)), w, atol=1e-5)


def test_a_rotated_layer_computes_as_the_hardware() -> None:
    """The Hadamard unit, the quantizer and the exact product of packed groups, by hand."""
    model = apply_recipe(
        small(),
        Recipe(parse_steps("rotate:mode=online:seed=5")),
        tokens(),
        "m2xfp-weight",
        "m2xfp-act",
        arithmetic=Arithmetic("hardware"),
        progress=False,
    )
    layer = dict(quant_layers(model))["layers.1.mlp.down_proj"]
    x = torch.randn(6, 160)
    rotation = InputRotation(160, 32, 5)
    flips = (rotation._rotation.signs < 0).view(-1, 32)
    turned = rotate_blocks(x.bfloat16().unflatten(-1, (-1, 32)), flips).flatten(-2)
    assert layer.packed is not None
    expected = matmul(get_format("m2xfp-act").quantize(turned.float()), layer.packed)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_gptq_with_an_identity_is_plain_rounding(name: str) -> None:
    fmt, weight = get_format(name), torch.randn(24, 72)
    weight[0] = (weight[0] * 4).round() / 4  # ties
    weight[1] = 0.0
    weight += 0.0  # a negative zero becomes a positive one
    identity = Moments(torch.eye(72, dtype=torch.float64))
    for order in (False, True):
        found = compensated(weight, identity, fmt, damping=0.0, order=order)
        for own, plain in zip(
            found.planes().values(), fmt.quantize(weight).planes().values(), strict=True
        ):
            assert torch.equal(own, plain)


@pytest.mark.parametrize("name", FORMATS)
def test_gptq_is_below_plain_rounding(name: str) -> None:
    fmt, weight, seen = get_format(name), torch.randn(24, 96), moments(96)
    plain = objective(fmt.quantize(weight).dequantize(), weight, seen.hessian)
    found = compensated(weight, seen, fmt)
    assert objective(found.dequantize(), weight, seen.hessian) < 0.9 * plain
    again = compensated(weight, seen, fmt)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.planes().values(), again.planes().values(), strict=True)
    )
    # The bytes are legal ones: decoded, they are quantized to themselves by no other arithmetic.
    assert found.dequantize().isfinite().all()


def test_scales_that_are_tried_make_it_better() -> None:
    weight, seen, fmt = torch.randn(48, 96), moments(96), get_format("mxfp4")
    found = [
        objective(compensated(weight, seen, fmt, shrink=tries).dequantize(), weight, seen.hessian)
        for tries in ((1.0,), (1.0, 0.9, 0.8, 1.1))
    ]
    assert found[1] < found[0]


def test_the_corrected_weight_is_the_best_for_other_inputs() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(500, 32), torch.randn(8, 32)
    given = get_format("mxfp4").fake_quantize(x)
    seen = Moments.empty(32)
    seen.add(given, x)
    best = corrected_weight(weight.double(), seen, 0.0, "w")
    expected = torch.linalg.lstsq(given.double(), (x @ weight.T).double()).solution.T
    assert torch.allclose(best, expected, atol=1e-5)


def test_a_whole_recipe_is_better_than_plain_rounding_and_travels(tmp_path: Path) -> None:
    seen, other = tokens(6), tokens(2, 32)
    whole = small()
    expected = logits(whole, other)
    recipe = Recipe(parse_steps("rotate,awq:grid=2:octave=2,gptq"))
    formats = "m2xfp-weight", "m2xfp-act"

    def error(model: nn.Module) -> float:
        return float((logits(model, other) - expected).square().mean())

    made = apply_recipe(copy.deepcopy(whole), recipe, seen, *formats, progress=False)
    again = apply_recipe(copy.deepcopy(whole), recipe, seen, *formats, progress=False)
    plain = apply_recipe(
        copy.deepcopy(whole), Recipe(parse_steps("smooth:strength=0")), seen, *formats
    )
    assert error(made) < error(plain)
    assert all(isinstance(made.get_submodule(name), QuantLinear) for name in linear(whole))
    assert torch.equal(logits(made, other), logits(again, other))
    save_quantized(tmp_path / "model.safetensors", made)
    back = load_quantized(tmp_path / "model.safetensors")
    assert torch.equal(logits(back, other), logits(made, other))
    set_arithmetic(back, Arithmetic("hardware"))
    set_arithmetic(made, Arithmetic("hardware"))
    assert torch.equal(logits(back, other), logits(made, other))
    with pytest.raises(InputError, match="rotated already"):
        load_quantized(tmp_path / "model.safetensors", back)


def test_another_seed_gives_other_bits() -> None:
    made = [
        apply_recipe(
            small(), Recipe(parse_steps(f"rotate:seed={seed}")), tokens(), "mxfp4", progress=False
        )
        for seed in (0, 1)
    ]
    codes = [dict(quant_layers(model))["layers.0.mlp.up_proj"].codes for model in made]
    assert not torch.equal(*codes)


@pytest.mark.parametrize("how", ["float", "hardware"])
def test_rotated_attention_is_that_attention(how: str) -> None:
    torch.manual_seed(0)
    model, seen = small(), tokens(2, 32)
    expected = logits(model, seen)
    formats = ("mxint8", "mxint8") if how == "float" else ("mxfp8-e4m3", "mxfp8-e4m3")
    with QuantAttention(*formats, Arithmetic(how), seed=3) as attention:
        found = logits(model, seen)
    assert attention.calls == 2
    assert (found - expected).abs().max() < 0.15 * expected.abs().max()
    assert not torch.equal(found, expected)


def test_renormalizing_is_of_quantized_attention() -> None:
    recipe = Recipe(parse_steps("renormalize,gptq"))
    formats = get_format("m2xfp-weight"), get_format("m2xfp-act")
    with pytest.raises(InputError, match="give --cache"):
        Case(*formats, recipe=recipe)
    assert Case(*formats, *formats, recipe=recipe).attention().renormalize
    assert not Case(*formats, *formats, recipe=Recipe(parse_steps("gptq"))).attention().renormalize


def test_recipes_travel_as_json(tmp_path: Path) -> None:
    steps = (
        "rotate:mode=online:seed=4:cache=false,smooth:strength=0.25,gptq:shrink=1/0.5:order=false"
    )
    recipe = Recipe(
        parse_steps(steps), Calibration("x.txt", 3, 64, 9, "0" * 64), "m2xfp-weight", "m2xfp-act"
    )
    path = tmp_path / "recipe.json"
    path.write_text(recipe.as_json())
    assert read_recipe(path) == recipe
    assert parse_steps(recipe.label) == recipe.steps
    assert recipe.formats == {"weights": ("m2xfp-weight",), "activations": ("m2xfp-act",)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["step", "steps", "seed", "mode", "recipe", "x", "damping"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
PLACES = (
    *(("recipe",), ("steps",), ("calibration",), ("weights",), ("steps", 0), ("steps", 1, "step")),
    *(("steps", 0, "seed"), ("steps", 0, "mode"), ("steps", 2, "shrink"), ("steps", 2, "damping")),
    *(("steps", 1, "grid"), ("calibration", "windows"), ("calibration", "seed"), ("new",)),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_other_json_is_refused_by_name_or_a_recipe(
    place: tuple[str | int, ...], value: object
) -> None:
    facts = json.loads(Recipe(parse_steps("rotate,awq,gptq")).as_json())
    inner = facts
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with suppress(M2xfpError):  # which names the member
        found = recipe_of(facts, "recipe")
        assert recipe_of(json.loads(found.as_json()), "recipe") == found


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("", "step"),
        ("spin", "rotate, awq, smooth, renormalize, gptq"),
        ("gptq,rotate", "last step"),
        ("rotate,rotate", "give it once"),
        ("rotate:mode=sideways", "fused or online"),
        ("rotate:seed", "SETTING=VALUE"),
        ("gptq:damping=-1", "damping=-1"),
        ("gptq:shrink=0", "shrink"),
        ("awq:grid=0", "grid"),
        ("awq:colour=3", "colour"),
    ],
)
def test_steps_that_make_no_sense(steps: str, told: str) -> None:
    with pytest.raises(M2xfpError, match=told):
        Recipe(parse_steps(steps))


def test_what_a_step_lacks_is_said_by_name() -> None:
    seen = tokens(1, 16)

    def run(steps: str, model: nn.Module, *formats: str | None) -> None:
        apply_recipe(model, Recipe(parse_steps(steps)), seen, *formats, progress=False)

    with pytest.raises(InputError, match="16 tokens, and a layer reads 160"):
        run("gptq", small(), "mxfp4")
    with pytest.raises(InputError, match="give a format of the weights"):
        run("gptq", small(), None, "mxfp4")
    with pytest.raises(InputError, match="32, 64 or 128"):
        run("rotate:mode=online", small(width=72, heads=3, hidden=160), "mxfp4")
    with pytest.raises(InputError, match="singular"):
        compensated(torch.randn(4, 64), moments(64, rows=10), get_format("mxfp4"), damping=0.0)
    with pytest.raises(InputError, match="tensor_scale=token"):
        compensated(torch.randn(4, 64), moments(64), get_format("nvfp4:tensor_scale=token"))
    model = small()
    model.layers[0].input_layernorm = nn.LayerNorm(96)
    with pytest.raises(InputError, match=r"layers.0.input_layernorm is a LayerNorm"):
        run("rotate", model, "mxfp4")


def test_a_structure_that_rotation_does_not_know_is_found_out() -> None:
    class Behind(nn.Module):
        """A norm behind a layer, as Gemma 2 has it."""

        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer, self.weight = layer, nn.Parameter(torch.rand(96) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).square() * self.weight

    model = small()
    model.layers[0].mlp.down_proj = Behind(model.layers[0].mlp.down_proj)
    with pytest.raises(InputError, match="other logits"):
        prepare(model, parse_steps("rotate"), tokens(), linear(model))


def test_what_is_observed_of_a_model() -> None:
    found = observe(small(), tokens())
    assert (found.width, found.embedding, found.last) == (96, "embed_tokens", "norm")
    assert [norm.readers for norm in found.norms][:2] == [
        [f"layers.0.self_attn.{name}_proj" for name in "qkv"],
        ["layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"],
    ]
    assert found.writers[:2] == ["layers.0.self_attn.o_proj", "layers.0.mlp.down_proj"]


def test_calibration_windows() -> None:
    text = bytes(range(64)) * 40

    def tokenize(part: bytes) -> Tensor:
        return torch.frombuffer(bytearray(part), dtype=torch.uint8)

    asked = Calibration(windows=5, context=32, seed=3)
    found = calibration_windows(text, tokenize, asked, True)
    assert found.shape == (5, 32)
    assert torch.equal(found, calibration_windows(text, tokenize, asked, True))
    with pytest.raises(InputError, match="2560 bytes, which make 80 windows of 32"):
        calibration_windows(text, tokenize, Calibration(windows=81, context=32), True)
    with pytest.raises(InputError, match="SHA-256"):
        calibration_text(Calibration(__file__, sha256="0" * 64))


def test_the_command_line_gives_a_recipe_that_gives_the_same_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    model, text = tmp_path / "model.safetensors", tmp_path / "text.txt"
    save_model(model, small(), {})
    text.write_bytes(bytes(i * i % 61 for i in range(4000)))
    given = [str(model), "--text", str(text), "--windows", "2"]
    asked = ["--weights", "m2xfp-weight", "--activations", "m2xfp-act", "--cache", "m2xfp-weight"]
    steps = ["--steps", "rotate,gptq", "--calibration", str(text), "--calibration-windows", "1"]
    saved = ["--save", str(tmp_path / "packed.safetensors")]

    def run(*more: str) -> dict[str, float]:
        command([*given, *more, "-o", str(tmp_path / "out")], "m2xfp", standalone_mode=False)
        capsys.readouterr()
        figures = json.loads((tmp_path / "out" / "perplexity.json").read_text())
        last = figures["results"][-1]
        assert last["steps"] == "rotate,gptq"
        assert figures["protocol"]["calibration"]["sha256"]
        return last["perplexity"]

    first = run(*asked, *steps, *saved)
    recipe = tmp_path / "recipe.json"
    recipe.write_bytes((tmp_path / "out" / "recipe.json").read_bytes())
    assert run("--recipe", str(recipe)) == first
    with pytest.raises(Exception, match="exclude each other"):
        run("--recipe", str(recipe), "--rotate", "hadamard")
    assert load_quantized(tmp_path / "packed.safetensors")
