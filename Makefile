# Farshore: the commands of its developers. Each begins by installing what is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup check test sim sim-bugs crash fuzz demo demo-down bench figures clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing: Debian packages (as root), .venv
	@scripts/setup.sh lab

check: ## format, lint, types, layers, unit tests
	@scripts/setup.sh venv
	@scripts/check.sh

test: ## everything: check, contracts, crash points, security, Ansible gates, a journey with real guests (root)
	@scripts/setup.sh test
	@scripts/test.sh

sim: ## play the data plane under faults: N=100000 schedules from SEED=1, VERBOSE=1 for one that failed
	@scripts/setup.sh venv
	@N='$(N)' SEED='$(SEED)' VERBOSE='$(VERBOSE)' scripts/proofs.sh sim

sim-bugs: ## find each bug of the catalogue by simulation: BUG=name for one, N=400 measures how often
	@scripts/setup.sh venv
	@N='$(N)' BUG='$(BUG)' scripts/proofs.sh sim-bugs

crash: ## try a million states that a power cut may leave, and kill processes at every point: N=states
	@scripts/setup.sh venv
	@N='$(N)' scripts/proofs.sh crash

fuzz: ## random input for whatever reads bytes of others: SECONDS_EACH=600 for each target, SEED=1
	@scripts/setup.sh venv
	@SECONDS_EACH='$(SECONDS_EACH)' SEED='$(SEED)' scripts/proofs.sh fuzz

demo: ## two private sites on this machine, protected, rehearsed, failed over (root)
	@scripts/setup.sh lab
	@scripts/demo.sh

demo-down: ## stop the demo and leave nothing of it
	@scripts/demo_down.sh

bench: ## measure the data path beside other tools: SIZE=standard|quick, ONLY=piece, SCRATCH=folder (root)
	@scripts/setup.sh bench
	@ONLY='$(ONLY)' SIZE='$(SIZE)' ROUNDS='$(ROUNDS)' SCRATCH='$(SCRATCH)' scripts/bench.sh

figures: ## measure what the data path is held to: ONLY=ID for one, ONLY=demo prints the last demo's (root)
	@scripts/setup.sh $(if $(filter demo,$(ONLY)),venv,bench)
	@ONLY='$(ONLY)' SIZE='$(SIZE)' ROUNDS='$(ROUNDS)' SCRATCH='$(SCRATCH)' scripts/figures.sh

clean: ## remove what was built; keeps .venv and downloads
	@scripts/clean.sh
