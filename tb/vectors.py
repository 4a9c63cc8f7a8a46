"""Beats of streams, jobs and vectors: what goes into a unit together with what must come out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Beats", "Job", "Vectors"]


@dataclass(frozen=True)
class Beats:
    """Beats of a stream.

    Members
    -------
    data
        uint8 [beats, bytes]: a row is TDATA, low byte first.
    last
        bool [beats]: TLAST of each beat; None as input stands for all zeros.
    """

    data: NDArray[np.uint8]
    last: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Return the number of beats."""
        return len(self.data)

    def part(self, start: int, stop: int) -> "Beats":
        """Return the beats ``start`` up to ``stop``."""
        return Beats(self.data[start:stop], None if self.last is None else self.last[start:stop])


@dataclass(frozen=True)
class Job:
    """Input beats of a unit and the output beats that they must give.

    Members
    -------
    inputs, outputs
        Beats by stream name.
    groups
        Number of equal pieces that the job can be cut into: on every stream each piece has the
        same number of beats, and no piece depends on another.
    """

    inputs: Mapping[str, Beats]
    outputs: Mapping[str, Beats]
    groups: int

    def __post_init__(self) -> None:
        """Refuse beats that do not divide into the groups."""
        for name, beats in (*self.inputs.items(), *self.outputs.items()):
            if self.groups < 1 or len(beats) % self.groups:
                raise ValueError(f"stream {name}: {len(beats)} beats in {self.groups} groups")

    def part(self, start: int, stop: int) -> "Job":
        """Return the groups ``start`` up to ``stop`` as a job."""

        def cut(streams: Mapping[str, Beats]) -> dict[str, Beats]:
            return {
                name: beats.part(
                    start * len(beats) // self.groups, stop * len(beats) // self.groups
                )
                for name, beats in streams.items()
            }

        return Job(cut(self.inputs), cut(self.outputs), stop - start)

    def save(self, path: Path) -> None:
        """Write the job to an .npz file, for a testbench in another process."""
        arrays: dict[str, NDArray[np.generic]] = {"groups": np.array(self.groups)}
        for side, streams in (("in", self.inputs), ("out", self.outputs)):
            for name, beats in streams.items():
                arrays[f"{side}.data.{name}"] = beats.data
                if beats.last is not None:
                    arrays[f"{side}.last.{name}"] = beats.last
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Read what `save` has written."""
        with np.load(path) as arrays:

            def streams(side: str) -> dict[str, Beats]:
                return {
                    key.split(".", 2)[2]: Beats(
                        arrays[key], arrays.get(key.replace(".data.", ".last.", 1))
                    )
                    for key in arrays
                    if key.startswith(f"{side}.data.")
                }

            return cls(streams("in"), streams("out"), int(arrays["groups"]))


@dataclass(frozen=True)
class Vectors:
    """What a unit without streams is given, and what must come out in the same clock.

    Members
    -------
    inputs, outputs
        uint64 [clocks, lanes] by port name; lanes are independent runs.
    compared
        Bits of each output that are compared, shaped like it.
    """

    inputs: Mapping[str, NDArray[np.uint64]]
    outputs: Mapping[str, NDArray[np.uint64]]
    compared: Mapping[str, NDArray[np.uint64]]
