"""Registers of a pipeline that moves, or stands still, as a whole."""

from amaranth.hdl import Module, Signal, Value

__all__ = ["delayed", "register"]


def register(m: Module, enable: Value, name: str, value: Value) -> Signal:
    """Return ``value`` one enabled clock later; no reset, since a valid bit goes with it."""
    held = Signal(value.shape(), name=name, reset_less=True)
    with m.If(enable):
        m.d.sync += held.eq(value)
    return held


def delayed(
    m: Module, enable: Value, name: str, bit: Value, steps: int, *, reset: bool = False
) -> Value:
    """Return ``bit`` as it was ``steps`` enabled clocks ago; 0 after reset, or anything."""
    for step in range(steps):
        held = Signal(name=f"{name}_{step + 1}", reset_less=not reset)
        with m.If(enable):
            m.d.sync += held.eq(bit)
        bit = held
    return bit
