# Farshore: the commands of its developers. Each begins by installing what is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup check test demo demo-down bench figures clean

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

demo: ## two private sites on this machine, protected, rehearsed, failed over (root)
	@scripts/setup.sh lab
	@scripts/demo.sh

demo-down: ## stop the demo and leave nothing of it
	@scripts/demo_down.sh

bench: ## measure the data path beside other tools: SIZE=quick to try it, SCRATCH=folder (root)
	@scripts/setup.sh bench
	@SIZE='$(SIZE)' ROUNDS='$(ROUNDS)' SCRATCH='$(SCRATCH)' scripts/bench.sh

figures: ## measure what the data path is held to: ONLY=ID for one, ONLY=demo prints the last demo's (root)
	@scripts/setup.sh $(if $(filter demo,$(ONLY)),venv,bench)
	@ONLY='$(ONLY)' SIZE='$(SIZE)' ROUNDS='$(ROUNDS)' SCRATCH='$(SCRATCH)' scripts/figures.sh

clean: ## remove what was built; keeps .venv and downloads
	@scripts/clean.sh
