# The two commands of a fresh clone: `make quickstart` and `make test`. Needs git, make and Python 3.11 with venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
LAB_RUN := $(VENV)/bin/python -m tests.lab.containers
VM_RUN := $(VENV)/bin/python -m tests.lab.machines
HOST ?=
SPECIAL_HOSTS = $(foreach host,$(HOST),--host "$(host)")

.DEFAULT_GOAL := help
.PHONY: help quickstart stop test lint lab-deps lab-up lab-down lab-clean vm-deps vm-up vm-down vm-clean test-local-full test-lab test-lab-full test-vm test-vm-full

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

quickstart: .python ## this machine becomes a checked one-node cluster that trains AutoGluon under limits
	@"$(PYTHON)" scripts/quickstart.py

stop: ## end this cluster's Ray, and nothing else
	@if [ -x $(VENV)/bin/ansible-playbook ]; then $(VENV)/bin/ansible-playbook playbooks/stop.yml; \
	else echo "There is no $(VENV) here: nothing was started from this checkout."; fi

test: .python ## linters and all tests that this machine can run
	@"$(PYTHON)" scripts/test.py

lint: .python ## ruff, mypy, ansible-lint, yamllint, the roles' pages
	@"$(PYTHON)" scripts/lint.py

lab-deps: .lab-venv ## install what the lab of containers needs (podman and others; apt-get)
	@$(LAB_RUN) deps

lab-up: .lab-venv ## several hosts in containers: N=3 LAB=lab HOST="n3:cpus=0,memory=2g n2:user=alice"
	@$(LAB_RUN) up --lab "$(or $(LAB),lab)" --hosts "$(or $(N),3)" $(SPECIAL_HOSTS)

lab-down: .lab-venv ## end them and remove all of that lab (LAB=lab)
	@$(LAB_RUN) down --lab "$(or $(LAB),lab)"

test-lab: .python ## the playbooks on three hosts in a lab of its own (15 minutes; once before: make lab-deps)
	@"$(PYTHON)" scripts/test.py lab

test-local-full: .python ## all tests of this machine, with those that take long (a new user, every pair of tune)
	@"$(PYTHON)" scripts/test.py local-full

test-lab-full: .python ## all of that: hosts that lose power under workloads, environments rolled out (50 minutes)
	@"$(PYTHON)" scripts/test.py lab-full

lab-clean: .lab-venv ## end all labs of this checkout; remove the cached image too
	@$(LAB_RUN) clean

vm-deps: .lab-venv ## install what the lab of virtual machines needs (qemu and others; apt-get)
	@$(VM_RUN) deps

vm-up: .lab-venv ## several virtual machines: N=2 LAB=vm HOST="n2:cpus=1,memory=3g,user=alice"
	@$(VM_RUN) up --lab "$(or $(LAB),vm)" --hosts "$(or $(N),2)" $(SPECIAL_HOSTS)

vm-down: .lab-venv ## end them and remove all of that lab (LAB=vm)
	@$(VM_RUN) down --lab "$(or $(LAB),vm)"

vm-clean: .lab-venv ## end all labs of virtual machines of this checkout; remove the cached image too
	@$(VM_RUN) clean

test-vm: .python ## the playbooks on two virtual machines of their own (emulated 20 minutes; once before: make vm-deps)
	@"$(PYTHON)" scripts/test.py vm

test-vm-full: .python ## all of that: every reboot, every adversary, AutoGluon (an hour emulated)
	@"$(PYTHON)" scripts/test.py vm-full

.PHONY: .python .lab-venv
.python:
	@if [ -z "$(PYTHON)" ]; then echo "Found no Python, expected 3.11 or newer." \
	"Install one (Debian 12: sudo apt-get install python3.11-venv), or name it: make PYTHON=/path/to/python3.11 ..."; exit 1; fi

.lab-venv: .python
	@[ -x $(VENV)/bin/python ] || PYTHONPATH=scripts "$(PYTHON)" -c 'import steps; steps.make_venv("dev")'
