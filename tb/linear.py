"""Matrix products and linear layers through the emitted GEMM core, and in the golden model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bulk.simulator import BulkSimulator, Run
from m2xfp.tb.parts.gemm_arrays import (
    GemmStreams,
    Product,
    status_names,
    status_tag,
    timing_of,
)
from m2xfp.tb.units.gemm_core import golden_product

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.golden.formats.packed import PackedTensor

__all__ = [
    "GemmSimulation",
    "Status",
    "golden_linear",
    "simulate_core",
]

Status = tuple[int, list[str]]
"""Tag of a command and the faults that its status reports."""


class GemmSimulation:
    """A GEMM core in simulation.

    Parameters
    ----------
    simulator
        The emitted core.

    Members
    -------
    facts, streams, timing
        The core, the order of its beats, and its clocks.
    clocks
        That all linear layers took so far.
    """

    def __init__(self, simulator: BulkSimulator) -> None:
        self.simulator, self.facts = simulator, simulator.facts
        self.streams = GemmStreams(self.facts)
        self.clocks = 0
        self.timing = timing_of(self.facts)

    def run(
        self,
        products: list[Product],
        *,
        stall: float = 0.0,
        seed: int = 0,
        stamps: bool = False,
        progress: bool = False,
    ) -> tuple[list[NDArray[Any]], Run]:
        """Multiply; return the results, see ``GemmStreams.results``, and the run.

        Parameters
        ----------
        products
            One command each, played one after the other.
        stall, seed, stamps, progress
            As for ``BulkSimulator.run``.

        Raises
        ------
        InputError
            Sizes that the core does not support.
        AssertionError
            Results are missing, or a status is not success.
        """
        clocks = self.timing.finish([product.sizes for product in products])[-1]
        run = self.simulator.run(
            self.streams.inputs(products),
            stall=stall,
            seed=seed,
            stamps=stamps,
            progress=progress,
            cycle_limit=int((8 * clocks + 20_000) / (1 - stall) ** 3),
        )
        statuses = self.statuses(run)
        due: list[Status] = [(n % self.streams.tags, []) for n in range(len(products))]
        assert statuses == due, f"statuses {statuses}"
        return list(self.streams.results(run.outputs["o"], products)), run

    def statuses(self, run: Run) -> list[Status]:
        """Return tag and faults of each status."""
        words = [int(row[0]) for row in run.outputs["status"].data]
        return [(status_tag(word, self.facts), status_names(word, self.facts)) for word in words]

    def product(self, x: Tensor, weight: PackedTensor) -> Product:
        """Return x [..., k] times the rows of ``weight`` [n, k] as the core takes it.

        That is patterns of its input type; or groups, quantized here, if it takes packed ones.
        """
        import torch

        from m2xfp.golden import get_format
        from m2xfp.golden.bits import round_to_bits

        act, kind = self.streams.act, self.facts.parameters["activations"]
        rows = torch.nn.functional.pad(x.flatten(0, -2), (0, -x.shape[-1] % act.group))
        acts = (
            get_format(act.name).quantize(rows).groups().numpy()
            if kind is None
            else round_to_bits(kind, rows)
        )
        return Product(acts, weight.groups().numpy(), rows.shape[1])

    def multiply(self, product: Product, *, progress: bool = False) -> NDArray[Any]:
        """Return the result of one product, see ``GemmStreams.results``, and count its clocks."""
        (found,), run = self.run([product], stamps=True, progress=progress)
        self.clocks += int(run.stamps["o"][-1] - run.stamps["cmd"][0])
        return found

    def linear(self, x: Tensor, weight: PackedTensor, *, progress: bool = False) -> Tensor:
        """Return x [..., k] times the rows of ``weight`` [n, k], in the type of the core's results.

        Raises
        ------
        InputError
            The core gives packed groups.
        """
        from m2xfp.golden.bits import from_bits

        results = self.facts.parameters["results"]
        if results == "packed":
            raise InputError(f"{self.facts.top} gives packed groups; take results=bf16 or fp32")
        found = self.multiply(self.product(x, weight), progress=progress)
        return from_bits(results, found).reshape(*x.shape[:-1], -1)

    def golden(self, product: Product) -> NDArray[Any]:
        """Return what ``multiply`` must give: the golden unit."""
        return golden_product(product, self.facts)


def golden_linear(x: Tensor, weight: PackedTensor) -> Tensor:
    """Return what ``GemmSimulation.linear`` must give of M2XFP: golden, in x's type."""
    from m2xfp.golden import get_format, matmul
    from m2xfp.golden.formats.numeric import round_once

    product = matmul(get_format("m2xfp-act").quantize(x), weight)
    return round_once(product.double(), x.dtype)  # one NaN, where torch's conversion gives several


def simulate_core(core: Instance, build_dir: Path) -> GemmSimulation:
    """Emit a GEMM core and build its simulation, unless both are there."""
    emitted = emit(core, build_dir / "verilog")
    return GemmSimulation(BulkSimulator(emitted, build_dir=build_dir))
