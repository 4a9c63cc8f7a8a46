# `make` sets everything up and runs the main job; `make help` lists the rest. Each target is one call of
# the m2xfp command, which has more options: .venv/bin/m2xfp --help.

# What a user gives. Recipes take it from the environment, or a word at a time in quotes, so neither
# make nor the shell reads anything in it; `override` and `value` keep make from doing so before.
PYTHON ?= python3
override PYTHON := $(value PYTHON)
override BOARD := $(or $(value BOARD),icebreaker)
override UNITS := $(value UNITS)
override THIS_FILE := $(value MAKEFILE_LIST)
export PYTHON BOARD THIS_FILE
override units = $(foreach unit,$(UNITS),'$(1)$(subst ','\'',$(unit))')

# What nobody gives. A make below this one does not see what was given either.
override MAKEOVERRIDES :=
override M2XFP := .venv/bin/m2xfp
# What is installed for a job: tools/setup tells the jobs.
override DEMO := .venv/.ready-demo
override SYNTH := .venv/.ready-synth
override FPGA := .venv/.ready-fpga
override DOCS := .venv/.ready-docs
override DEV := .venv/.ready-dev

.DEFAULT_GOAL := demo
.PHONY: demo setup test test-slow check verilog lint synth bench eval report pages docs train fpga clean distclean help

demo: $(DEMO) ## set up, then the main job: real activations through golden model and Verilog
	$(M2XFP) demo

setup: $(DEV) ## install everything: Debian packages (apt.txt) and Python packages (.venv)

$(DEMO) $(SYNTH) $(FPGA) $(DOCS) $(DEV): .venv/.ready-%: pyproject.toml constraints.txt apt.txt tools/setup
	tools/setup $*

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
	$(M2XFP) synth $(call units) --check

bench: $(DEMO) ## speed of the golden model
	$(M2XFP) bench

eval: $(DEMO) ## perplexity of the bundled language model in the main formats
	$(M2XFP) eval

fpga: $(FPGA) ## bitstream for BOARD (icebreaker if left out), with its report; UNITS="quantizer dot" chooses
	$(M2XFP) fpga build "$$BOARD" $(call units,--unit=)

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
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' -- "$${THIS_FILE# }" | expand -t 14
