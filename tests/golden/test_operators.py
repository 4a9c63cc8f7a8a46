"""What compilers, exporters and function transforms of PyTorch make of the golden operations."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from choices import usual_first
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from m2xfp.errors import InputError
from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden import Format, PackedTensor, computing, dot, get_format, matmul
from m2xfp.golden.formats.mixed import _segment_format
from m2xfp.golden.formats.products import batched_matmul, packed_linear
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.attention import QuantAttention
from m2xfp.models.inputs import InputQuantizer
from m2xfp.models.linear import QuantLinear

# Forward-mode derivatives make PyTorch use what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")

FORMATS = (
    *BLOCK_FORMATS,
    "nvfp4:tensor_scale=auto",
    "m2xfp-act:subgroup=4",
    "nvfp4:tensor_scale=0.3",
)
USUAL = ("m2xfp-act", "m2xfp-weight", "int4-asym", "nvfp4:tensor_scale=auto")
ACCUMULATORS = ("fp32", "fp32_subgroup", "exact")
ARITHMETICS = (Arithmetic(), *(Arithmetic("hardware", name) for name in ACCUMULATORS))


def values(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without a graph break; what remains of inductor has nothing to do with us."""
    torch._dynamo.reset()
    found: Callable[..., Any] = torch.compile(function, fullgraph=True, backend="aot_eager")
    return found


def expect_equal(found: PackedTensor, wanted: PackedTensor) -> None:
    assert found.format == wanted.format
    assert found.shape == wanted.shape
    assert found.planes().keys() == wanted.planes().keys()
    for name, plane in wanted.planes().items():
        assert torch.equal(found.planes()[name], plane), name


# --- the straight-through derivative --------------------------------------------------------------


def clipped_by_definition(fmt: Format, x: Tensor) -> Tensor:
    """Where x lies beyond half a step more than the largest value, from the formats' descriptions.

    For formats of one scale a group: E2M1 without metadata, Elem-EM and Sg-EM.
    """
    packed = fmt.quantize(x)
    codes, scales, fields = packed.unpack()
    size = fmt.block.group
    scale = (scales.double() - 127).exp2()
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)).double()
    limit = torch.full_like(x, 7.0)  # 6, and half of the step from 4
    if fmt.block.metadata.name != "none":
        per = fmt.block.metadata.subgroup
        limit = limit.unflatten(-1, (-1, per))
        if fmt.block.metadata.name == "sg-em":
            limit = limit * (1 + fields.unsqueeze(-1) / 4)
        else:  # the first of the largest codes has values up to 7 in steps of 1/2
            first = (codes & 7).unflatten(-1, (-1, per)).argmax(-1, keepdim=True)
            limit = limit.scatter(-1, first, 7.25)
        limit = limit.flatten(-2)
    return (x.abs() > limit * scale).flatten(-2)[..., : packed.shape[-1]]


@pytest.mark.parametrize("name", ["mxfp4", "m2xfp-act", "m2xfp-weight"])
def test_where_values_are_clipped(name: str) -> None:
    fmt = get_format(name)
    x = torch.cat([values(500, 64, seed=1), values(300, 64, seed=2) ** 3])
    found = fmt.clipped(x)
    assert torch.equal(found, clipped_by_definition(fmt, x))
    assert 3 < found.sum() < 0.2 * found.numel()
    with computing("plain"):
        assert torch.equal(fmt.clipped(x), found)


def test_what_is_never_clipped_and_what_always_is() -> None:
    x = values(40, 64)
    for name in ("mxfp4:scale_rule=ceil", "int4-asym", "mxint8:scale_rule=ceil", "nvfp4"):
        assert not get_format(name).clipped(x).any(), name
    x[0, 3], x[1, 40] = float("nan"), float("inf")
    found = get_format("mxfp4:scale_rule=ceil").clipped(x)
    assert found[0, :32].all()
    assert found[1, 32:].all()
    assert int(found.sum()) == 64
    tiny = torch.tensor([[448.0 * 6, *[0.0] * 15], [1e-6, *[0.0] * 15]])
    assert get_format("nvfp4").clipped(tiny).sum() == 1  # its scale is zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_the_derivative_is_one_but_for_clipped_values(name: str, dtype: torch.dtype) -> None:
    fmt = get_format(name)
    x, w = values(3, 4, 40).to(dtype), values(3, 4, 40, seed=1).to(dtype)
    wanted, result = torch.where(fmt.clipped(x), 0, w), fmt.fake_quantize(x)
    leaf = x.clone().requires_grad_()
    found = fmt.fake_quantize(leaf)
    assert torch.equal(found, result)
    found.backward(w)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, wanted)

    def weighted(y: Tensor) -> Tensor:
        return (fmt.fake_quantize(y) * w).sum()

    assert torch.equal(grad(weighted)(x), wanted)
    primal, tangent = jvp(fmt.fake_quantize, (x,), (w,))
    assert torch.equal(primal, result)
    assert torch.equal(tangent, wanted)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(fmt.fake_quantize(forward_ad.make_dual(x, w)))
        assert torch.equal(dual.primal, result)
        assert torch.equal(dual.tangent, wanted)


def test_derivatives_of_derivatives() -> None:
    fmt = get_format("mxfp4")
    x = torch.tensor([0.3, 1.4, 7.9, -2.2])
    assert fmt.clipped(x).tolist() == [False, False, True, False]
    curvature = hessian(lambda y: fmt.fake_quantize(y).square().sum())(x)
    assert torch.equal(curvature, torch.diag(torch.tensor([2.0, 2.0, 0.0, 2.0])))
    assert torch.equal(jacfwd(fmt.fake_quantize)(x), torch.diag(torch.tensor([1.0, 1, 0, 1])))
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(fmt.fake_quantize(leaf).square().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    assert second.tolist() == [2.0, 2.0, 0.0, 2.0]


def test_packed_results_take_no_gradient() -> None:
    x = values(4, 64).requires_grad_()
    packed = get_format("nvfp4:tensor_scale=auto").quantize(x)
    assert not any(plane.requires_grad for plane in packed.planes().values())
    assert not packed.dequantize().requires_grad
    assert not matmul(packed, packed).requires_grad


def test_training_through_a_quantizer() -> None:
    """Quantization-aware training reaches what rounding after training does not."""
    fmt, x = get_format("mxfp4"), values(256, 4) @ values(4, 32)
    wanted = x @ values(8, 32, seed=1).T
    weight = values(8, 32, seed=1).requires_grad_()
    losses = []
    optimizer = torch.optim.Adam([weight], 0.01)
    for _ in range(60):
        loss = (x @ fmt.fake_quantize(weight).T - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.7 * losses[0]


# --- vmap -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["plain", "auto"])
@pytest.mark.parametrize("name", FORMATS)
def test_vmap_is_one_call_for_each(name: str, path: str) -> None:
    """With tensor_scale=auto each has its own scale, as it has alone."""
    fmt = get_format(name)
    x = values(3, 4, 40) * torch.tensor([1.0, 30.0, 0.01])[:, None, None]
    with computing(path):
        alone = [fmt.fake_quantize(part) for part in x]
        wanted = torch.stack(alone)
        assert torch.equal(vmap(fmt.fake_quantize)(x), wanted)
        across = vmap(fmt.fake_quantize, in_dims=2, out_dims=2)(x.permute(1, 2, 0))
        assert torch.equal(across.permute(2, 0, 1), wanted)
        assert torch.equal(vmap(lambda y: fmt.quantize(y).dequantize())(x), wanted)
        assert torch.equal(vmap(fmt.clipped)(x), torch.stack([fmt.clipped(part) for part in x]))
        packed = vmap(fmt.quantize)(x)
        for i, part in enumerate(x):
            for plane, one in fmt.quantize(part).planes().items():
                assert torch.equal(packed.planes()[plane][i], one)
        assert vmap(fmt.fake_quantize)(x[:0]).shape == (0, 4, 40)

    def loss(y: Tensor, v: Tensor) -> Tensor:
        return (fmt.fake_quantize(y) * v).sum()

    w = values(3, 4, 40, seed=1)
    gradients = torch.stack([torch.where(fmt.clipped(a), 0, b) for a, b in zip(x, w, strict=True)])
    assert torch.equal(vmap(grad(loss))(x, w), gradients)


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize("names", [("m2xfp-act", "m2xfp-weight"), ("nvfp4:tensor_scale=auto",) * 2])
def test_vmap_of_products(names: tuple[str, str], accumulator: str) -> None:
    if "nvfp4" in names[0] and accumulator == "fp32_subgroup":
        accumulator = "fp32"
    one, other = (get_format(name) for name in names)
    a, w = values(3, 2, 4, 40), values(3, 5, 40, seed=1)

    def product(x: Tensor, y: Tensor) -> Tensor:
        return matmul(one.quantize(x), other.quantize(y), accumulator)

    def rows(x: Tensor) -> Tensor:
        return dot(one.quantize(x), other.quantize(x), accumulator)

    def each(x: Tensor) -> Tensor:
        return batched_matmul(one.quantize(x), other.quantize(x), accumulator)

    pairs = list(zip(a, w, strict=True))
    assert torch.equal(vmap(product)(a, w), torch.stack([product(x, y) for x, y in pairs]))
    left = vmap(product, in_dims=(0, None))(a, w[0])
    assert torch.equal(left, torch.stack([product(x, w[0]) for x in a]))
    right = vmap(product, in_dims=(None, 0))(a[0], w)
    assert torch.equal(right, torch.stack([product(a[0], y) for y in w]))
    assert torch.equal(vmap(rows)(a), torch.stack([rows(x) for x in a]))
    assert torch.equal(vmap(each)(a), torch.stack([each(x) for x in a]))
    vectors = vmap(product, in_dims=(0, None))(a[:, 0, 0], w[0])
    assert torch.equal(vectors, torch.stack([product(x, w[0]) for x in a[:, 0, 0]]))


# --- FakeTensor, meta, compilers ------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_shapes_without_data(name: str) -> None:
    fmt, x = get_format(name), values(3, 4, 40)
    wanted = fmt.quantize(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of reading the data of a FakeTensor
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(x)]
    for y in (*fakes, x.to("meta")):
        packed = fmt.quantize(y)
        for plane, one in wanted.planes().items():
            found = packed.planes()[plane]
            assert (found.shape, found.dtype) == (one.shape, one.dtype)
        assert packed.dequantize(torch.bfloat16).shape == (3, 4, 40)
        assert packed.dequantize(torch.bfloat16).dtype == torch.bfloat16
        assert fmt.fake_quantize(y).shape == (3, 4, 40)
        if fmt.block.scaling == "symmetric" and name != "mxfp8-e5m2":
            assert matmul(packed, fmt.quantize(y[0])).shape == (3, 4, 4)
            assert dot(packed, packed).shape == (3, 4)


@pytest.mark.parametrize("name", usual_first(FORMATS, USUAL))
def test_one_graph(name: str) -> None:
    """No graph break, and the same bits; packed tensors come and go as they are."""
    fmt, x = get_format(name), values(3, 4, 40)
    whole = compiled(lambda y: (fmt.fake_quantize(y) * 2, fmt.quantize(y)))
    values_found, packed = whole(x)
    assert torch.equal(values_found, fmt.fake_quantize(x) * 2)
    expect_equal(packed, fmt.quantize(x))
    back = compiled(lambda q: q.dequantize(torch.bfloat16) + 1)
    assert torch.equal(back(packed), packed.dequantize(torch.bfloat16) + 1)
    traced = make_fx(lambda y: fmt.fake_quantize(y) + 1, tracing_mode="symbolic")(x)
    assert "m2xfp.fake_quantize" in traced.code
    assert torch.equal(traced(values(5, 7, 40)), fmt.fake_quantize(values(5, 7, 40)) + 1)
    leaf = x.clone().requires_grad_()
    (whole(leaf)[0] * x).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.where(fmt.clipped(x), 0, 2 * x))


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
def test_products_in_one_graph(accumulator: str) -> None:
    one, other = get_format("m2xfp-act"), get_format("m2xfp-weight")
    a, w = values(3, 4, 40), values(3, 5, 40, seed=1)

    def products(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        qa, qw = one.quantize(x), other.quantize(y)
        return (
            batched_matmul(qa, qw, accumulator, torch.bfloat16),
            matmul(qa, other.quantize(y[0]), accumulator),
            dot(qa, one.quantize(x), accumulator) if accumulator != "exact" else x,
        )

    for found, wanted in zip(compiled(products)(a, w), products(a, w), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.slow
def test_inductor() -> None:
    """With the usual backend, which compiles what is around our operators."""
    layer = layer_of(ARITHMETICS[1])
    x = values(3, 4, 64)
    torch._dynamo.reset()
    found = torch.compile(lambda y: layer(y.relu() * 2).exp(), fullgraph=True)(x)
    torch.testing.assert_close(found, layer(x.relu() * 2).exp())


@pytest.mark.parametrize("name", ["quantize", "fake_quantize", "clipped", "dequantize", "matmul"])
def test_what_pytorch_checks_of_an_operator(name: str) -> None:
    fmt = get_format("nvfp4:tensor_scale=auto")
    x = values(3, 4, 40)
    q = fmt.quantize(x)
    planes = (q.codes, q.scales, q.meta, q.tensor_scale)
    arguments: dict[str, tuple[Any, ...]] = {
        "dequantize": (*planes, 40, fmt.key, torch.bfloat16),
        "matmul": (
            *(*planes, fmt.key),
            *(q.codes[0], q.scales[0], None, q.tensor_scale, fmt.key),
            *(40, "fp32", 16, torch.float32),
        ),
    }
    operator = getattr(torch.ops.m2xfp, name).default
    torch.library.opcheck(operator, arguments.get(name, (x, fmt.key)))


# --- layers ---------------------------------------------------------------------------------------


def layer_of(arithmetic: Arithmetic, bias: bool = True) -> QuantLinear:
    torch.manual_seed(0)
    inputs = InputQuantizer(get_format("m2xfp-act"))
    layer = torch.nn.Linear(64, 8, bias=bias)
    return QuantLinear.from_linear(layer, get_format("m2xfp-weight"), inputs, arithmetic)


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
def test_layers_in_one_graph(arithmetic: Arithmetic) -> None:
    layer, x = layer_of(arithmetic), values(3, 4, 64)
    wanted = layer(x)
    assert torch.equal(compiled(layer)(x), wanted)
    assert torch.equal(vmap(layer)(x), wanted)
    assert torch.equal(functional_call(layer, dict(layer.named_parameters()), (x,)), wanted)
    if arithmetic.hardware:
        return
    gradients = []
    for function in (compiled(layer), layer):
        leaf = x.clone().requires_grad_()
        function(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0] is not None
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
def test_exported_layers_travel(arithmetic: Arithmetic, strict: bool) -> None:
    """A program saved and loaded, for any number of rows."""
    model = torch.nn.Sequential(layer_of(arithmetic), torch.nn.ReLU())
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(
        model, (values(3, 64),), dynamic_shapes=({0: rows},), strict=strict
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file)
    assert "m2xfp" in str(again.graph)
    x = values(7, 64, seed=3)
    assert torch.equal(again.module()(x), model(x))


def test_attention_in_one_graph() -> None:
    for arithmetic in (Arithmetic(), Arithmetic("hardware")):
        quantized = QuantAttention("m2xfp-weight", "m2xfp-act", arithmetic)

        def attention(q: Tensor, mode: QuantAttention = quantized) -> Tensor:
            with mode:
                return torch.nn.functional.scaled_dot_product_attention(q, q, q)

        q = values(1, 2, 6, 32)
        torch.testing.assert_close(compiled(attention)(q), attention(q))


def test_the_input_quantizer_keeps_no_graph() -> None:
    quantizer = InputQuantizer(get_format("mxfp4"))
    x = values(4, 32).requires_grad_()
    with torch.no_grad():
        quantizer(x)
    found = quantizer(x)
    assert found.requires_grad
    found.sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not quantizer(x).requires_grad


def test_packed_linear_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = get_format("m2xfp-weight").quantize(values(37, 64)), values(5, 64, seed=1)
    whole = packed_linear(x, weight)
    monkeypatch.setattr("m2xfp.golden.formats.products._CHUNK_WEIGHTS", 64 * 10)
    torch.testing.assert_close(packed_linear(x, weight), whole, rtol=1e-5, atol=1e-4)
    none = get_format("mxfp4").quantize(torch.empty(0, 64))
    assert packed_linear(x, none).shape == (5, 0)


def test_packed_linear_is_the_decoded_product() -> None:
    weight = get_format("m2xfp-weight").quantize(values(5, 64))
    x = values(3, 2, 64, seed=1).bfloat16()
    wanted = torch.nn.functional.linear(x.flatten(0, 1), weight.dequantize(torch.bfloat16))
    assert torch.equal(packed_linear(x, weight), wanted.reshape(3, 2, 5))
    assert torch.equal(compiled(packed_linear)(x, weight), wanted.reshape(3, 2, 5))
    found = vmap(lambda y: packed_linear(y, weight))(x)
    torch.testing.assert_close(found, wanted.reshape(3, 2, 5))


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_key_is_a_name(name: str) -> None:
    fmt = get_format(name)
    assert get_format(fmt.key) == fmt
    assert copy.deepcopy(fmt) == fmt


def test_formats_put_together_by_hand_have_keys_too() -> None:
    from m2xfp.golden.formats.format import format_of

    fmt = _segment_format("mxfp4")
    assert fmt != get_format("mxfp4:scale_rule=ceil")
    assert format_of(fmt.key) == fmt
    x = torch.zeros(1, 32)
    assert fmt.quantize(x).scales.item() == 126
    assert compiled(fmt.quantize)(x).scales.item() == 126
    again = Format(fmt.name, fmt.options, fmt.block, fmt.coder)
    assert (again.key, hash(again)) == (fmt.key, hash(fmt))
    named = Format("mxfp4", (), *(getattr(get_format("mxfp4"), n) for n in ("block", "coder")))
    assert named.key == "mxfp4"
    with pytest.raises(InputError, match="put together by hand"):
        format_of("mxfp4#0123456789abcdef")


@pytest.mark.gpu
@pytest.mark.parametrize("name", USUAL)
def test_on_cuda(name: str) -> None:
    fmt, x = get_format(name), values(3, 4, 64).to("cuda", torch.bfloat16)
    assert torch.equal(compiled(fmt.fake_quantize)(x), fmt.fake_quantize(x))
    expect_equal(compiled(fmt.quantize)(x), fmt.quantize(x))
    wanted = torch.stack([fmt.fake_quantize(part) for part in x])
    assert torch.equal(vmap(fmt.fake_quantize)(x), wanted)
    assert torch.equal(grad(lambda y: fmt.fake_quantize(y).sum())(x), (~fmt.clipped(x)).to(x.dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
def test_layers_on_cuda(arithmetic: Arithmetic, rows: int) -> None:
    layer = layer_of(arithmetic).to("cuda", torch.bfloat16)
    x = values(rows, 64).to("cuda", torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(compiled(layer)(x), layer(x))
