"""Faults in a unit's netlist: which of them its regression notices, and why not the others."""
