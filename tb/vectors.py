"""Beats of streams, and test vectors: what goes into a unit together with what must come out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Beats", "TestVectors"]


@dataclass(frozen=True)
class Beats:
    """Beats of a stream, or the words of a port in one clock after the other.

    Members
    -------
    data
        uint8 [beats, bytes]: a row is TDATA, or the port's word, low byte first.
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
class TestVectors:
    """Input beats of a unit and the output beats that they must give.

    Members
    -------
    inputs, outputs
        Beats by stream name; of a unit without streams by port name, a beat a clock.
    groups
        Number of equal pieces that the vectors can be cut into: on every stream each piece has the
        same number of beats, and no piece depends on another.
    compared
        uint8 [beats, bytes] by name of an output of which not every bit is compared: those that
        are.
    """

    __test__ = False  # pytest: not a class of tests

    inputs: Mapping[str, Beats]
    outputs: Mapping[str, Beats]
    groups: int
    compared: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse beats that do not divide into the groups."""
        for name, beats in (*self.inputs.items(), *self.outputs.items()):
            if self.groups < 1 or len(beats) % self.groups:
                raise ValueError(f"stream {name}: {len(beats)} beats in {self.groups} groups")

    def part(self, start: int, stop: int) -> "TestVectors":
        """Return the groups ``start`` up to ``stop`` as vectors."""

        def cut(streams: Mapping[str, Beats]) -> dict[str, Beats]:
            return {
                name: beats.part(
                    start * len(beats) // self.groups, stop * len(beats) // self.groups
                )
                for name, beats in streams.items()
            }

        masks = {name: Beats(mask) for name, mask in self.compared.items()}
        return TestVectors(
            cut(self.inputs),
            cut(self.outputs),
            stop - start,
            {name: mask.data for name, mask in cut(masks).items()},
        )

    def differing(self, name: str, found: Beats) -> NDArray[np.int64]:
        """Return which beats of an output are not as expected; ValueError for another number."""
        wanted = self.outputs[name]
        if len(found) != len(wanted):
            raise ValueError(f"output {name}: {len(found)} beats came out of {len(wanted)}")
        wrong = found.data ^ wanted.data
        if name in self.compared:
            wrong &= self.compared[name]
        differ = wrong.any(axis=1)
        if wanted.last is not None and found.last is not None:
            differ |= found.last != wanted.last
        return np.flatnonzero(differ)

    def save(self, path: Path) -> None:
        """Write the vectors to an .npz file, for a testbench in another process."""
        arrays: dict[str, NDArray[np.generic]] = {"groups": np.array(self.groups)}
        for side, streams in (("in", self.inputs), ("out", self.outputs)):
            for name, beats in streams.items():
                arrays[f"{side}.data.{name}"] = beats.data
                if beats.last is not None:
                    arrays[f"{side}.last.{name}"] = beats.last
        for name, mask in self.compared.items():
            arrays[f"compared.data.{name}"] = mask
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "TestVectors":
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

            masks = {name: mask.data for name, mask in streams("compared").items()}
            return cls(streams("in"), streams("out"), int(arrays["groups"]), masks)
