"""One of several processes that share products and a model; run by ``tests/models/test_split.py``.

Arguments: rank, how many, a file to meet at, the backend. Each holds what it computed with the
others against what it computes alone, and fails if a bit differs.
"""

import sys
from pathlib import Path

import torch
from product_checks import Case, operands
from torch import distributed, nn

from m2xfp.golden import matmul
from m2xfp.golden.formats.parallel import Share, split_matmul
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.evaluate import window_nats
from m2xfp.models.lm import HELD_OUT, as_tokens, load_model
from m2xfp.models.quantized import quantize_model, set_arithmetic
from m2xfp.models.split import SplitLinear, split_model

M2XFP = ("m2xfp-act", "m2xfp-weight")
CASES = (
    Case(M2XFP, m=9, n=70, spread=20, nan=0.02, seed=1),
    Case(M2XFP, "exact", m=3, n=33, spread=60, seed=2),
    Case(("nvfp4", "nvfp4"), m=5, n=64, levels=True, seed=3),
    Case(M2XFP, "fp32_subgroup", m=1, n=1, seed=4),  # fewer rows than processes
)


def check_products(device: torch.device) -> None:
    """Products, in every result type."""
    for case in CASES:
        qa, qw = (q.to(device) for q in operands(case))
        share = Share.of(case.n)
        part = share.take(qw)
        assert part.shape[0] <= -(-case.n // share.size)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            whole = matmul(qa, qw, case.accumulator, dtype)
            found = split_matmul(qa, part, share, case.accumulator, dtype)
            assert found.shape == whole.shape
            kind = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(found.contiguous().view(kind), whole.view(kind)), (case, dtype)


def check_model(device: torch.device) -> None:
    """The bundled model in the hardware's arithmetic: losses of whole passes."""
    windows = as_tokens(HELD_OUT.read_bytes())[: 2 * 32].reshape(2, 32).long().to(device)
    model = quantize_model(load_model(), weights="m2xfp-weight", activations="m2xfp-act")
    set_arithmetic(model, Arithmetic("hardware"))
    model = model.to(device)
    shared = window_nats(model, windows, 1)  # windows are shared
    with torch.no_grad():
        logits = model(windows)
    weights = sum(p.nbytes for p in model.parameters())
    model = split_model(model)
    assert any(isinstance(m, SplitLinear) for m in model.modules())
    assert sum(p.nbytes for p in model.parameters()) < weights
    with torch.no_grad():
        assert torch.equal(model(windows), logits)
    assert torch.equal(window_nats(model, windows, 1), shared)
    layer = nn.Linear(64, 3)  # an odd number of outputs, with a bias, and the model itself
    single = quantize_model(layer, weights="mxfp4", activations="mxfp4").to(device)
    set_arithmetic(single, Arithmetic("hardware", "exact"))
    distributed.broadcast(single.bias.data, 0)
    for plane in (single.codes, single.scales):
        distributed.broadcast(plane.data, 0)
    x = torch.linspace(-1, 1, 128, device=device).reshape(2, 64)
    assert torch.equal(split_model(single)(x), single(x))


def main(rank: int, size: int, meeting: Path, backend: str) -> None:
    """Join the others and compute with them."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=size
    )
    try:
        check_products(device)
        check_model(device)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
