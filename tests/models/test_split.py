"""Products and models that several processes compute together: the bits of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m2xfp.errors import InputError
from m2xfp.golden import get_format, matmul
from m2xfp.golden.formats.parallel import Share, gather_columns, split_matmul

TESTS = Path(__file__).parents[1]


def run_together(size: int, command, environment=None) -> None:
    """Run ``command(rank)`` in so many processes; all must succeed."""
    usual = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command(rank)],
            env={**usual, **(environment(rank) if environment else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * size, "\n".join(said)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_share_products_and_a_model(size, tmp_path):
    program = str(TESTS / "two_processes.py")
    run_together(
        size, lambda rank: [program, str(rank), str(size), str(tmp_path / "meeting"), "gloo"]
    )


@pytest.mark.gpu
def test_two_gpus_share_products_and_a_model(tmp_path):
    size = torch.cuda.device_count()
    if size < 2:
        pytest.skip("one GPU")
    program = str(TESTS / "two_processes.py")
    run_together(
        size, lambda rank: [program, str(rank), str(size), str(tmp_path / "meeting"), "nccl"]
    )


@pytest.mark.slow
def test_the_command_splits_a_model(tmp_path):
    """As torchrun starts it: the figures of one process."""
    arguments = [
        *(
            "-c",
            "from m2xfp.cli import main; main()",
            "eval",
            "--device",
            "cpu",
            "--windows",
            "2",
            "--context",
            "48",
        ),
        *("--weights", "m2xfp-weight", "--activations", "m2xfp-act", "--arithmetic", "hardware"),
    ]
    port = str(20000 + os.getpid() % 20000)

    def torchrun(rank: int) -> dict[str, str]:
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        return {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}

    run_together(1, lambda rank: [*arguments, "-o", str(tmp_path / "one")])
    run_together(2, lambda rank: [*arguments, "--split", "-o", str(tmp_path / "two")], torchrun)
    one, two = (
        json.loads((tmp_path / name / "perplexity.json").read_text()) for name in ("one", "two")
    )
    assert one["results"] == two["results"]


def test_shares_cover_all_rows_once():
    for total in (0, 1, 5, 64):
        for size in (1, 2, 3, 8):
            rows = [Share(total, rank, size).rows for rank in range(size)]
            assert [i for part in rows for i in range(total)[part]] == list(range(total))


def test_alone_a_share_is_all_and_bad_shapes_are_refused():
    qa = get_format("mxfp4").quantize(torch.randn(3, 64))
    share = Share.of(3)
    assert torch.equal(split_matmul(qa, share.take(qa), share), matmul(qa, qa))
    with pytest.raises(InputError, match=r"a share of \[4, K\]"):
        Share.of(4).take(qa)
    with pytest.raises(InputError, match="this share has 3 rows"):
        gather_columns(torch.zeros(2, 4), share)
