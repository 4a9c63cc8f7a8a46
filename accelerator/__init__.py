"""The driver of the accelerator: tensors in, packed tensors and products out, any transport."""

from m2xfp.accelerator.attention import AttentionCache
from m2xfp.accelerator.device import Device, DeviceError, Job
from m2xfp.accelerator.mapped import MappedTransport
from m2xfp.accelerator.memory import Matrix, Values
from m2xfp.accelerator.transport import SimulatedTransport, Transport

__all__ = [
    "AttentionCache",
    "Device",
    "DeviceError",
    "Job",
    "MappedTransport",
    "Matrix",
    "SimulatedTransport",
    "Transport",
    "Values",
]
