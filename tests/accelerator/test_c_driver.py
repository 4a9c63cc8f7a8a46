"""The driver in C: compiled with every warning an error, and run on the simulated accelerator."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from m2xfp.accelerator.driver import driver_files, simulated_library
from m2xfp.facts import EmittedFiles
from m2xfp.formats import block_format
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import matmul
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.emit import emit

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


def layer(m: int, n: int, k: int, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return operands of a layer, and write them where the example reads them."""
    rng = torch.Generator().manual_seed(k)
    x = torch.randn(m, k, generator=rng).bfloat16()
    w = (torch.randn(n, k, generator=rng) / 9).bfloat16()
    given = torch.cat((x.flatten(), w.flatten())).view(torch.int16).numpy()
    file.write_bytes(given.tobytes())
    return x, w


def planes(packed: PackedTensor) -> list[bytes]:
    return [plane.numpy().tobytes() for plane in packed.planes().values()]


@needs_gcc
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 32), (7, 5, 96), (3, 9, 512)])
def test_a_linear_layer(folder: Path, tmp_path: Path, m: int, n: int, k: int) -> None:
    x, w = layer(m, n, k, tmp_path / "in")
    done = run(folder, m, n, k, tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{m} x {n} x {k}: 3 descriptors\n"
    acts, weights = get_format("m2xfp-act").quantize(x), get_format("m2xfp-weight").quantize(w)
    results = matmul(acts, weights).numpy().tobytes()
    wanted = [*planes(acts), *planes(weights), results]
    found = (tmp_path / "out").read_bytes()
    assert len(found) == len(b"".join(wanted))
    for name, content in zip(("codes", "scales", "meta") * 2 + ("results",), wanted, strict=True):
        assert found.startswith(content), name
        found = found[len(content) :]


@needs_gcc
@pytest.mark.slow
def test_results_are_packed(tmp_path: Path, sim_dir: Path) -> None:
    """Of a build that packs results: the same product once more, as activations."""
    formats = {"act": "m2xfp-act:group=8", "weight": "m2xfp-weight:group=8"}
    small = {"rows": 1, "columns": 8, "max_k": 64, "chunk": 4}
    given = {name: block_format(text) for name, text in formats.items()}
    files = emit(find_unit("accelerator").instance("m2xfp-2x2", given | small), tmp_path / "rtl")
    driver_files(tmp_path)
    simulated_library(files, tmp_path, sim_dir)
    subprocess.run(["make", "-C", tmp_path, "example"], check=True)
    x, w = layer(5, 24, 64, tmp_path / "in")
    done = run(tmp_path, 5, 24, 64, tmp_path / "in", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, "5 x 24 x 64: 4 descriptors\n"), done.stderr
    acts, weights = (get_format(formats[n]).quantize(v) for n, v in (("act", x), ("weight", w)))
    results = matmul(acts, weights)
    packed = get_format(formats["act"]).quantize(results)
    wanted = [*planes(acts), *planes(weights), results.numpy().tobytes(), *planes(packed)]
    assert (tmp_path / "out").read_bytes() == b"".join(wanted)


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
