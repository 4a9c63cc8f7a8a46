"""Microscaling arithmetic in hardware: one generator, four views of each unit.

``m2xfp.formats`` is the shared vocabulary, ``m2xfp.rtl`` the Amaranth hardware, ``m2xfp.golden``
the PyTorch definition, ``m2xfp.tb`` the simulation. Importing one room never imports another's
heavy libraries: generating Verilog needs no torch, evaluating a model needs no Amaranth.
"""

from m2xfp._version import __version__

__all__ = ["__version__"]
