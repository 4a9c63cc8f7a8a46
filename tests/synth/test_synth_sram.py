"""The model of buffers: its arithmetic, its sources, and what it says where it has none."""

import pytest

from m2xfp.errors import InputError
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.synth.flow.pdk import PDKS, find_pdk
from m2xfp.synth.studies.accelerator_area import measure_units
from m2xfp.synth.studies.paper import BUFFERS
from m2xfp.synth.studies.sram import CELL_28NM, SRAMS, Buffer, buffer_table


def test_areas_by_hand():
    """A macro of 2 KB is itself; 144 KB is 72 of it; a bit cell has nothing around it."""
    sky130 = SRAMS["sky130_fd_sc_hd"]
    assert sky130.area(2048) == pytest.approx(284538.5, abs=0.1)
    assert sky130.area(144 * 1024) == pytest.approx(72 * 284538.5, abs=10)
    assert SRAMS["asap7"].area(4096) == pytest.approx(16.72 * 67.2)
    assert CELL_28NM.area(324 * 1024) == pytest.approx(0.127 * 8 * 324 * 1024)


def test_models_shrink_with_the_process_and_have_a_source():
    order = ("sky130_fd_sc_hd", "nangate45", "asap7")
    sizes = [SRAMS[name].area(1024) for name in order]
    assert sizes == sorted(sizes, reverse=True)
    assert SRAMS.keys() == set(order) <= PDKS.keys()
    assert SRAMS["nangate45"].area(1024) > CELL_28NM.area(1024) > SRAMS["asap7"].area(1024)
    assert all(model.source and model.what for model in (*SRAMS.values(), CELL_28NM))


def test_the_weight_buffers_are_those_of_the_paper_at_its_size():
    weights = {buffer.name: buffer.size_bytes for buffer in BUFFERS}["the paper's weight buffer"]
    assert GemmTiming(1, 32, 4096).weight_bytes == weights == 144 * 1024
    assert sum(buffer.size_bytes for buffer in BUFFERS) == 324 * 1024


def test_the_table_says_that_it_is_a_model_and_of_what():
    text = buffer_table("asap7", [Buffer("weights", 4096)], 2 * 16.72 * 67.2, "the array")
    assert "not mapped" in text
    assert "fakeram_256x128.lef" in text
    assert "2009" in text
    assert "| weights | 4  | 1124             | 4162             | 0.50" in text
    assert "asap7 um2, model" in text
    assert "over the array" in text


def test_a_library_without_a_published_memory_is_refused_for_units():
    with pytest.raises(InputError, match=r"osu018: no published memory.*take one of: sky130"):
        measure_units([find_unit("channel_permuter").instance("bf16x8")], find_pdk("osu018"))


def test_a_library_without_a_published_memory_is_told():
    text = buffer_table("osu018", [Buffer("weights", 4096)], 1.0, "the array")
    assert "no published memory to model osu018 by" in text
    assert "28 nm um2, model" in text
    assert "over the array" not in text
