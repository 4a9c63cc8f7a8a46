"""The driver in C: compiled with every warning an error, and run on the simulated accelerator."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from m2xfp.accelerator.driver import driver_files, simulated_library
from m2xfp.facts import EmittedFiles
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.products import matmul

needs_gcc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, accelerator_files: EmittedFiles, sim_dir: Path
) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    driver_files(folder)
    simulated_library(accelerator_files, folder, sim_dir)
    subprocess.run(["make", "-C", folder, "example"], check=True)
    return folder


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(folder / "example"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@needs_gcc
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 32), (7, 5, 96), (3, 9, 512)])
def test_a_linear_layer(folder: Path, tmp_path: Path, m: int, n: int, k: int) -> None:
    rng = torch.Generator().manual_seed(k)
    x = torch.randn(m, k, generator=rng).bfloat16()
    w = (torch.randn(n, k, generator=rng) / 9).bfloat16()
    given = torch.cat((x.flatten(), w.flatten())).view(torch.int16).numpy()
    (tmp_path / "in").write_bytes(given.tobytes())
    done = run(folder, m, n, k, tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{m} x {n} x {k}: 3 descriptors\n"
    acts, weights = get_format("m2xfp-act").quantize(x), get_format("m2xfp-weight").quantize(w)
    parts = [plane for packed in (acts, weights) for plane in packed.planes().values()]
    wanted = [plane.numpy().tobytes() for plane in (*parts, matmul(acts, weights))]
    found = (tmp_path / "out").read_bytes()
    assert len(found) == len(b"".join(wanted))
    for name, content in zip(("codes", "scales", "meta") * 2 + ("results",), wanted, strict=False):
        assert found.startswith(content), name
        found = found[len(content) :]


@needs_gcc
def test_errors_are_told(folder: Path, tmp_path: Path) -> None:
    np.zeros(2 * 1024, np.uint16).tofile(tmp_path / "in")
    done = run(folder, 1, 1, 1024, tmp_path / "in", tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "descriptor 0: error -3\n")  # k is too large
    done = run(folder, 1, 1, 48, tmp_path / "in", tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "descriptor 1: error 4\n")  # no whole groups
    done = run(folder, 4096, 1, 512, tmp_path / "in", tmp_path / "out")
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


@needs_gcc
def test_the_header_is_cplusplus_as_well(folder: Path) -> None:
    header = folder / "m2xfp_simulated.h"
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-xc++"]
    subprocess.run([*command, header], check=True)
