"""The driver of the accelerator: packed tensors in, products out, over any transport."""

from m2xfp.accelerator.device import Device, DeviceError, Job, Matrix
from m2xfp.accelerator.transport import SimulatedTransport, Transport

__all__ = ["Device", "DeviceError", "Job", "Matrix", "SimulatedTransport", "Transport"]
