"""Boards: designs, bitstreams and the host's end of the link."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2xfp.fpga.host.device import Device

__all__ = ["Device"]


def __getattr__(name: str) -> Any:
    """Import ``Device`` when it is asked for, so that building a bitstream needs no torch."""
    if name == "Device":
        from m2xfp.fpga.host.device import Device

        return Device
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
