# Thin on purpose: every line is one that a person could type.
#
#   make book                      environment, experiments of the quick profile, pages in _build/html
#   make book DATASET=fashion_mnist PROFILE=standard
#   make test                      the tests
#   make lab                       the notebooks in JupyterLab
#   make sweep PROFILE=standard    all points of a profile, a job each; SNAKEMAKE=-n only says what is missing;
#                                  THREADS=1 for as many at once as there are cores, GPUS=0,1 for one a GPU
#   make bench                     how fast the attacks are, beside other libraries; BENCH="--sizes small" for a short run
#
# On Linux without a GPU, TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes of CUDA packages.

PYTHON ?= python3
PROFILE ?= quick
CORES ?= all
RETRIES ?= 1
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch==2.13.0)
SET := $(if $(DATASET),DATASET=$(DATASET)) $(if $(N),SET_N=$(N)) $(if $(THREADS),threads=$(THREADS)) $(if $(GPUS),gpus=$(GPUS))
FLAGS := --profile $(PROFILE) $(if $(DATASET),-p DATASET $(DATASET)) $(if $(N),-p N $(N))
# Snakemake's own lock and marks of unfinished files are not needed: see the Snakefile.
RUN = $(BIN)/snakemake --quiet host rules --rerun-triggers mtime input --nolock --ignore-incomplete $(SNAKEMAKE) --cores $(CORES)

.PHONY: book test lab sweep bench clean

book: .venv/book
	@$(BIN)/python -m advbook.chapters check $(FLAGS)
	$(RUN) pages --config profile=$(PROFILE) $(SET)
	@echo "The book is in _build/html/index.html, and as one file in _build/advbook-site.zip."

test: .venv/test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST)

lab: .venv/lab
	$(BIN)/jupyter lab nbs

sweep: .venv/book
	@$(BIN)/python -m advbook.chapters missing $(FLAGS)
	$(RUN) --keep-going --retries $(RETRIES) sweep --config profile=$(PROFILE) each=point $(SET)

bench: .venv/bench
	$(BIN)/python scripts/benchmark.py $(BENCH)

clean:
	rm -rf _build book/chapters .snakemake

.venv/python:
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'advbook needs Python 3.11 or newer; set PYTHON=python3.11, say.')"
	$(PYTHON) -m venv .venv
	touch $@

.venv/book: .venv/python pyproject.toml
	$(TORCH)
	$(PIP) --editable .
	touch $@

.venv/test: .venv/book
	$(PIP) --editable '.[test,fonts]'
	touch $@

.venv/lab: .venv/book
	$(PIP) --editable '.[lab]'
	$(BIN)/jupytext-config set-default-viewer python
	touch $@

# The last two ask for packages that are not wanted here: see scripts/benchmark-requirements.txt.
.venv/bench: .venv/book scripts/benchmark-requirements.txt
	$(PIP) --requirement scripts/benchmark-requirements.txt
	$(PIP) --no-deps adv-lib==0.2.8 torchattacks==3.5.1
	touch $@
