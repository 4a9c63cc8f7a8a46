"""Checkpoints of other libraries: their layouts, read and written bit for bit.

A layout is one record (``Layout``): the names of a weight's tensors, how they become a packed
tensor of this project's and the other way, and what the model's configuration says about them.
``convert_folder`` takes whole folders from one layout to another.
"""
