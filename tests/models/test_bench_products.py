"""``m2xfp bench --products``: what it measures and prints."""

import re

import torch
from click.testing import CliRunner

from m2xfp.commands.bench import command
from m2xfp.models import bench_products as module
from m2xfp.models.bench_products import bench_layers, bench_products, products_table
from m2xfp.results import read_figures

CPU = torch.device("cpu")


def test_products_and_layers_are_measured():
    products = (("m2xfp-act", "m2xfp-weight", "fp32"), ("nvfp4", "nvfp4", "exact"))
    measured = [*bench_products(CPU, (8, 16, 64), products), *bench_layers(CPU, (1, 2), ((8, 64),))]
    assert [m.what for m in measured] == [
        "m2xfp-act x m2xfp-weight, fp32",
        "nvfp4 x nvfp4, exact",
        *["layer, weights alone", "layer, hardware"] * 2,
    ]
    assert [m.shape for m in measured[1:4]] == [(8, 16, 64), (1, 8, 64), (1, 8, 64)]
    assert all(m.tflops > 0 and m.of_torch > 0 and m.first_seconds > 0 for m in measured)
    assert {m.reference for m in measured} == {"float32"}


def test_the_command_writes_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(
        module, "bench_products", lambda device, shape: bench_products(CPU, (2, 2, 32), ())
    )
    monkeypatch.setattr(module, "bench_layers", lambda *args: bench_layers(CPU, (1,), ((4, 32),)))
    result = CliRunner().invoke(command, ["--products", "--device", "cpu", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    figures = read_figures(tmp_path / "products-cpu.json")
    assert products_table(figures) in result.output
    assert re.search(r"\| layer, hardware +\| 1 x 4 x 32 \|", result.output)
    assert len(figures["measurements"]) == 2
