"""Mixed-precision products through the emitted GEMM, and in the golden model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.parts.gemm_arrays import status_names
from m2xfp.tb.parts.mixed_arrays import MixedProduct, MixedStreams, Part

if TYPE_CHECKING:
    from m2xfp.golden.formats.mixed import MixedTensor

__all__ = ["MixedSimulation", "product_of", "simulate_mixed"]


def product_of(acts: MixedTensor, weights: MixedTensor) -> MixedProduct:
    """Return quantized activations [m, k] times the rows of weights [n, k], as the unit takes it.

    Both follow one split.
    """
    return MixedProduct(
        tuple(
            Part(
                act.format.block,
                weight.format.block,
                act.groups().flatten(0, -3).numpy(),
                weight.groups().numpy(),
            )
            for act, weight in zip(acts.segments, weights.segments, strict=True)
        )
    )


class MixedSimulation:
    """A mixed GEMM in simulation.

    Parameters
    ----------
    simulator
        The emitted unit.

    Members
    -------
    facts, streams
        The unit, and the order of its beats.
    clocks
        That all products took so far.
    """

    def __init__(self, simulator: BulkSimulator) -> None:
        self.simulator, self.facts = simulator, simulator.facts
        self.streams = MixedStreams(self.facts)
        self.clocks = 0

    def multiply(self, product: MixedProduct, *, progress: bool = False) -> NDArray[Any]:
        """Return the result, patterns [m, n], and count its clocks.

        Raises
        ------
        InputError
            A product that the unit refuses, with the limits.
        AssertionError
            The status is not success.
        """
        self.streams.check(product)
        run = self.simulator.run(
            self.streams.inputs([product]),
            stamps=True,
            progress=progress,
            cycle_limit=8 * self.streams.due([product])[0] + 20_000,
        )
        (status,) = run.outputs["status"].data
        faults = status_names(int.from_bytes(status.tobytes(), "little"), self.facts)
        assert not faults, f"status {faults}"
        self.clocks += int(run.stamps["o"][-1] - run.stamps["cmd"][0])
        (found,) = self.streams.results(run.outputs["o"], [product])
        return found


def simulate_mixed(core: Instance, build_dir: Path) -> MixedSimulation:
    """Emit a mixed GEMM and build its simulation, unless both are there."""
    emitted = emit(core, build_dir / "verilog")
    return MixedSimulation(BulkSimulator(emitted, build_dir=build_dir))
