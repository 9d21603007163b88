# Every target creates .venv on first use: `make demo` or `make test` is all the setup there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
USER := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint format docs reference figures digits digits-0-4 digits-llamagen digits-randar digits-titok digits-captions glyphs clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

# Always created from scratch: an interrupted installation leaves no stamp, and the next run clears it.
$(USER): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "avarc needs Python 3.10 or newer; name one with: make PYTHON=python3.11" >&2; exit 1; }
	@echo "creating $(VENV) (once; a few minutes if torch must be downloaded)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

# Separate, because what only tests and checks need is several times the size of avarc.
$(DEV): $(USER)
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(DOCS): $(USER)
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(USER) ## classify the included handwritten digits
	$(BIN)/avarc demo

# One process per core; the tests of a file stay in one process, because they share fixtures that take seconds.
test: $(DEV) ## run all tests
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-gpu: $(DEV) ## run the tests of kernels and models on a GPU
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("PyTorch sees no GPU")'
	AVARC_TEST_GPU=1 $(BIN)/pytest -n 4 tests/kernels tests/gpu

lint: $(DEV) ## style, types and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV) ## fix style where it can be fixed automatically
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS) ## build the documentation as a site: build/site/index.html
	$(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

reference: $(USER) ## write docs/reference again, from the commands and docstrings
	$(BIN)/python tests/tools/reference.py

figures: $(DEV) ## draw the figures of the docs again (about 15 minutes)
	mkdir -p build
	$(BIN)/avarc demo --out build/demo
	cp build/demo/digits.png docs/digits.png
	$(BIN)/avarc explain avarc_cli/assets/digits/test --only wrong --limit 1 --out docs/explain.png --overwrite
	$(BIN)/python tests/benchmarks/deletion.py --out docs/explain-deletion.png
	$(BIN)/avarc incremental digits --base 0-4 --tasks 5-6,7-9 --model digits-0-4 --baseline finetune \
		--out build/incremental
	cp build/incremental/incremental.png docs/incremental.png

ASSETS := avarc_cli/assets/digits
DIGITS := --augment affine --seed 0 --device cpu
digits: $(DEV) ## train the included model again (docs/digits.md)
	$(BIN)/python -m avarc_cli.train.digits build/digits
	$(BIN)/avarc train tokenizer build/digits/train $(DIGITS) --image-size 16 --patch-nums 1,2,3,5,8 \
		--vocab 128 --channels 8 --width 32 --multipliers 1,2 --blocks 1 \
		--steps 1200 --batch-size 48 --lr 1e-3 --out build/vqvae.safetensors --overwrite
	$(BIN)/avarc train var build/digits/train $(DIGITS) --tokenizer build/vqvae.safetensors --depth 4 --width 128 \
		--steps 8000 --batch-size 32 --lr 1.5e-3 --out build/var.safetensors --overwrite
	rm -rf $(ASSETS) && mkdir $(ASSETS)
	cp -r build/digits/test build/vqvae.safetensors build/var.safetensors $(ASSETS)
	$(BIN)/avarc encode $(ASSETS)/test --samples 3 --out build/digits.h5
	$(BIN)/avarc tune build/digits.h5 --agreement 0.995 --hold-out 110 --out $(ASSETS)/plan.json --overwrite

digits-0-4: $(DEV) ## train the model that knows the digits 0 to 4 only (docs/add-class.md)
	$(BIN)/python -m avarc_cli.train.digits build/digits
	rm -rf build/digits-0-4 && mkdir build/digits-0-4
	cp -r build/digits/train/0 build/digits/train/1 build/digits/train/2 build/digits/train/3 build/digits/train/4 build/digits-0-4
	$(BIN)/avarc train var build/digits-0-4 --tokenizer digits-vqvae $(DIGITS) --depth 4 --width 64 \
		--steps 4000 --batch-size 32 --lr 3e-3 --out $(ASSETS)-0-4/var.safetensors --overwrite

LLAMAGEN := $(ASSETS)-llamagen
digits-llamagen: $(DEV) ## train the included LlamaGen again (docs/digits.md)
	$(BIN)/python -m avarc_cli.train.digits build/digits
	$(BIN)/avarc train vq build/digits/train $(DIGITS) --image-size 16 --vocab 64 --channels 8 --width 32 \
		--multipliers 1,1 --blocks 1 --steps 1200 --batch-size 48 --lr 1e-3 --out build/vq.safetensors --overwrite
	$(BIN)/avarc train llamagen build/digits/train $(DIGITS) --tokenizer build/vq.safetensors --depth 4 --width 96 \
		--heads 3 --steps 6000 --batch-size 32 --lr 2e-3 --out build/llamagen.safetensors --overwrite
	mkdir -p $(LLAMAGEN) && cp build/vq.safetensors build/llamagen.safetensors $(LLAMAGEN)
	$(BIN)/avarc encode $(ASSETS)/test --model digits-llamagen --samples 3 --out build/digits-llamagen.h5 --overwrite
	$(BIN)/avarc tune build/digits-llamagen.h5 --model digits-llamagen --agreement 0.995 --hold-out 110 \
		--out $(LLAMAGEN)/plan.json --overwrite

RANDAR := $(ASSETS)-randar
digits-randar: $(DEV) ## train the included RandAR again (docs/digits.md)
	$(BIN)/python -m avarc_cli.train.digits build/digits
	$(BIN)/avarc train randar build/digits/train $(DIGITS) --tokenizer digits-vq --depth 5 --width 96 --heads 3 \
		--steps 6000 --batch-size 32 --lr 2e-3 --out build/randar.safetensors --overwrite
	mkdir -p $(RANDAR) && cp build/randar.safetensors $(RANDAR)
	$(BIN)/avarc encode $(ASSETS)/test --tokenizer digits-vq --out build/digits-randar.h5 --overwrite
	$(BIN)/avarc tune build/digits-randar.h5 --model digits-randar --agreement 0.995 --hold-out 110 \
		--out $(RANDAR)/plan.json --overwrite

TITOK := $(ASSETS)-titok
digits-titok: $(DEV) ## train the included TiTok and MaskGIT again (docs/masked.md)
	$(BIN)/python -m avarc_cli.train.digits build/digits
	$(BIN)/avarc train titok build/digits/train $(DIGITS) --image-size 16 --patch 4 --tokens 16 --vocab 64 --channels 8 \
		--width 64 --depth 3 --steps 5000 --batch-size 48 --lr 1e-3 --out build/titok.safetensors --overwrite
	$(BIN)/avarc train maskgit build/digits/train $(DIGITS) --tokenizer build/titok.safetensors --depth 4 --width 80 \
		--heads 4 --steps 8000 --batch-size 32 --lr 1.5e-3 --out build/maskgit.safetensors --overwrite
	mkdir -p $(TITOK) && cp build/titok.safetensors build/maskgit.safetensors $(TITOK)
	$(BIN)/avarc encode $(ASSETS)/test --model digits-titok --samples 3 --out build/digits-titok.h5 --overwrite
	$(BIN)/avarc tune build/digits-titok.h5 --model digits-titok --agreement 0.995 --hold-out 110 \
		--out $(TITOK)/plan.json --overwrite

CAPTIONS := $(ASSETS)-captions
digits-captions: $(DEV) ## train the included text encoder and LlamaGen of captions again (docs/captions.md)
	$(BIN)/python -m avarc_cli.train.digits build/digits
	rm -rf build/digits-text && $(BIN)/avarc train text-encoder build/digits/captions.json --out build/digits-text
	mkdir -p $(CAPTIONS) && rm -rf $(CAPTIONS)/text && cp -r build/digits-text $(CAPTIONS)/text
	$(BIN)/avarc train llamagen-t2i build/digits/train $(DIGITS) --captions build/digits/captions.json \
		--text-encoder build/digits-text --tokenizer digits-vq --depth 4 --width 96 --heads 3 \
		--steps 6000 --batch-size 32 --lr 2e-3 --out build/t2i.safetensors --overwrite
	cp build/t2i.safetensors $(CAPTIONS)
	$(BIN)/avarc encode $(ASSETS)/test --model digits-llamagen --samples 3 --out build/digits-llamagen.h5 --overwrite
	$(BIN)/avarc tune build/digits-llamagen.h5 --model digits-captions --captions $(CAPTIONS)/captions.json \
		--agreement 0.995 --hold-out 110 --out $(CAPTIONS)/plan.json --overwrite

GLYPHS := build/glyphs
glyphs: $(DEV) ## what 1,000 classes cost: render, train, measure (docs/many-classes.md)
	$(BIN)/python tests/benchmarks/glyphs.py render $(GLYPHS)
	$(BIN)/avarc train tokenizer $(GLYPHS)/train --augment none --seed 0 --device cpu --image-size 16 \
		--patch-nums 1,2,3,4,6,8 --vocab 256 --channels 8 --width 32 --multipliers 1,2 --blocks 1 \
		--steps 500 --batch-size 32 --lr 2e-3 --out $(GLYPHS)/vqvae.safetensors --overwrite
	$(BIN)/avarc train var $(GLYPHS)/train --augment none --seed 0 --device cpu --tokenizer $(GLYPHS)/vqvae.safetensors \
		--depth 4 --width 64 --steps 5000 --batch-size 32 --lr 3e-3 --out $(GLYPHS)/var.safetensors --overwrite
	$(BIN)/python tests/benchmarks/glyphs.py measure $(GLYPHS) --out docs/classes.png
	$(BIN)/python tests/benchmarks/glyphs.py closest $(GLYPHS)

clean: ## remove the environment and the tools' caches
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find avarc_cli kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
