"""Boards: designs, bitstreams and the host's end of the link."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2xfp.fpga.host.device import Device
    from m2xfp.fpga.host.serial_transport import SerialTransport

__all__ = ["Device", "SerialTransport"]


def __getattr__(name: str) -> Any:
    """Import what talks to boards when it is asked for, so that building needs no torch."""
    if name == "Device":
        from m2xfp.fpga.host.device import Device

        return Device
    if name == "SerialTransport":
        from m2xfp.fpga.host.serial_transport import SerialTransport

        return SerialTransport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
