"""The bundled language model with every linear layer in the Verilog of the GEMM core."""

from dataclasses import dataclass
from pathlib import Path

from m2xfp.rtl.catalog import Instance

__all__ = ["WINDOW", "PerplexityRun", "compare_perplexity"]

WINDOW = 128
"""Bytes of text that the model reads at a time in Verilog: some 20 s of simulation."""


@dataclass(frozen=True)
class PerplexityRun:
    """Perplexity of the same text, by the Verilog and by the golden model.

    Members
    -------
    windows
        Windows of ``WINDOW`` bytes of held-out text.
    verilog, golden
        Perplexity a byte.
    clocks
        That the Verilog took.
    equal
        Whether the losses are equal to the last bit, window by window.
    """

    windows: int
    verilog: float
    golden: float
    clocks: int
    equal: bool

    def __str__(self) -> str:
        """Return the result in words."""
        return (
            f"Perplexity a byte on {self.windows} windows of {WINDOW} bytes, every linear layer "
            "with M2XFP activations and weights:\n"
            f"  Verilog  {self.verilog!r} in {self.clocks} clocks\n"
            f"  golden   {self.golden!r}\n"
            f"{'equal' if self.equal else 'NOT equal'} to the last bit, window by window"
        )


def compare_perplexity(windows: int, build: Path, core: Instance | None = None) -> PerplexityRun:
    """Measure the bundled model on so many windows of held-out text, in Verilog and in golden.

    ``core`` is a GEMM core of M2XFP from bf16 to bf16, by default ``default_core()``.
    """
    import torch

    from m2xfp.models.evaluate import perplexity
    from m2xfp.models.lm import HELD_OUT, as_tokens
    from m2xfp.models.windows import cut_windows, spread
    from m2xfp.synth.studies.linear_layers import compare_losses

    text = spread(cut_windows(as_tokens(HELD_OUT.read_bytes()), WINDOW), windows)
    verilog, golden, clocks = compare_losses(build, text, core=core)
    return PerplexityRun(
        windows, perplexity(verilog), perplexity(golden), clocks, torch.equal(verilog, golden)
    )
