# `make` sets everything up and runs the main job; `make help` lists the rest. Each target is one call of
# the m2xfp command, which has more options: .venv/bin/m2xfp --help.

PYTHON ?= python3
M2XFP := .venv/bin/m2xfp

# What is installed for a job: tools/setup tells the jobs.
DEMO := .venv/.ready-demo
SYNTH := .venv/.ready-synth
FPGA := .venv/.ready-fpga
DOCS := .venv/.ready-docs
DEV := .venv/.ready-dev

# Names reach the shell as they were given: neither make nor the shell reads anything in them.
quoted = '$(subst ','\'',$(1))'
given = $(if $(value $(1)),$(call quoted,$(value $(1))))
each_given = $(foreach each,$(value $(1)),$(call quoted,$(each)))

unexport BOARD UNITS # which would be to read them once more

.DEFAULT_GOAL := demo
.PHONY: demo setup test test-slow check verilog lint synth bench eval report pages docs train fpga clean distclean help

demo: $(DEMO) ## set up, then the main job: real activations through golden model and Verilog
	$(M2XFP) demo

setup: $(DEV) ## install everything: Debian packages (apt.txt) and Python packages (.venv)

.venv/.ready-%: pyproject.toml constraints.txt apt.txt tools/setup
	PYTHON='$(PYTHON)' tools/setup $*

check: $(DEV) ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p m2xfp

test: check ## ruff, mypy and the tests (two at a time; the long sweeps are in test-slow)
	.venv/bin/python -m pytest -n 2

test-slow: $(DEV) ## the long sweeps
	.venv/bin/python -m pytest -n 2 -m slow

verilog: $(DEMO) ## every unit and configuration as Verilog, into build/verilog
	$(M2XFP) verilog

lint: $(DEMO) ## Linters and yosys checks of all emitted Verilog
	$(M2XFP) lint

synth: $(DEMO) ## area, timing and power, and what changed against docs/results; UNITS="pe_tile" chooses
	$(M2XFP) synth $(call each_given,UNITS) --check

bench: $(DEMO) ## speed of the golden model
	$(M2XFP) bench

eval: $(DEMO) ## perplexity of the bundled language model in the main formats
	$(M2XFP) eval

fpga: $(FPGA) ## bitstream for BOARD (icebreaker if left out), with its report; UNITS="quantizer dot" chooses
	$(M2XFP) fpga build $(or $(call given,BOARD),icebreaker) $(addprefix --unit=,$(call each_given,UNITS))

report: $(SYNTH) ## all tables and plots of the accepted figures, into build/report
	$(M2XFP) report

pages: $(SYNTH) ## the tables in docs/, from the figures in docs/results
	$(M2XFP) report --pages

docs: $(DOCS) ## the documentation site, into build/site
	$(M2XFP) docs

train: $(DEMO) ## train the bundled language model again
	$(M2XFP) train

clean: ## remove what was built
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## remove the environment too
	rm -rf .venv m2xfp.egg-info

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14
