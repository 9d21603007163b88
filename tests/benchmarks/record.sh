#!/bin/bash
# Measure again what the tables of the documentation show, on an idle machine (about three hours), and write the tables.
# With names of files in docs/figures/: only those. NOTE says something about the circumstances.
#
#   [NOTE=TEXT] [PYTHON=PROGRAM] tests/benchmarks/record.sh [NAME...]
#
# Minutes are estimates for 2 idle cores of a Xeon. Names in -zen3, -zen4 and -avx2 are for an EPYC, and recorded only if named.
# Read the prose around the tables afterwards.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
PY=${PYTHON:-.venv/bin/python}
ONLY=" $* "
r() { # NAME COMMAND...
  name=$1; shift
  [ "$ONLY" = "  " ] || [[ "$ONLY" == *" $name "* ]] || return 0
  echo "$(date +%T) $name"
  $PY tests/benchmarks/figures.py record --note "${NOTE:-an otherwise idle machine}" "$name" "$@" || echo "FAILED $name"
}
r paper-plan-d16-cpu python tests/benchmarks/paper_plan.py 5 100 fp32,bf16,bf16+fp32 7 --json            # 13 min
r paper-plan-rar-b-cpu python tests/benchmarks/paper_plan.py 5 100 fp32,bf16+fp32 7 --shape rar-b --json  # 50 min
r paper-plan-llamagen-l-cpu python tests/benchmarks/paper_plan.py 5 100 fp32,bf16+fp32 7 --shape llamagen-l --json  # 15 min
r roofline-d16-cpu  avarc bench --roofline --shape d16 --precision fp32,bf16,int8 --json                  # 4 min
r startup           python tests/benchmarks/startup.py --json                                             # 3 min
r app-start         python tests/benchmarks/app_start.py --json                                           # 1 min
r waiting           python tests/benchmarks/waiting.py --json                                             # 2 min
r bench-d16-cpu     avarc bench --precision fp32,bf16,int8 --pairs 6 --rounds 3 --kernels torch --json    # 3 min
r encoder           python tests/benchmarks/encoder.py --json                                             # 1 min
r encoder-numerics  OMP_NUM_THREADS=1 python tests/benchmarks/encoder_numerics.py 2 --json                # 4 min
r encode-wait       python tests/benchmarks/encode_wait.py --json                                         # 1 min
r token-storage     python tests/benchmarks/token_storage.py --json                                       # 1 min
r memory-limits     python tests/benchmarks/memory.py --json                                              # 4 min
r memory-plain-d4   python tests/benchmarks/memory_plain.py d4 20 3 fp32,bf16 --json                      # 2 min
r memory-plain-d16  python tests/benchmarks/memory_plain.py d16 100 1 fp32,bf16,bf16+fp32 --json       # 6 min
r memory-plain-llamagen-l python tests/benchmarks/memory_plain.py llamagen-l 100 1 fp32,bf16,bf16+fp32 --json  # 6 min
r memory-plain-rar-b      python tests/benchmarks/memory_plain.py rar-b 100 1 fp32,bf16,bf16+fp32 --json       # 5 min
r bookkeeping       python tests/benchmarks/bookkeeping.py --json                                         # 3 min
r sampling          OMP_NUM_THREADS=1 python tests/benchmarks/sampling.py --images 48 --json              # 3 min
r sampling-families OMP_NUM_THREADS=1 python tests/benchmarks/sampling.py digits-randar digits-titok digits-captions rar maskgen --images 24 --json  # 3 min
r sampling-maskgen-kl OMP_NUM_THREADS=1 python tests/benchmarks/sampling.py maskgen-kl --images 8 --json  # 2 min
r sampling-d16      OMP_NUM_THREADS=1 python tests/benchmarks/sampling.py var-d16 --images 2 --batch-size 2 --rounds 1 --json  # 6 min
r training-digits   OMP_NUM_THREADS=1 python tests/benchmarks/training.py --size digits --rounds 16 --json                     # 4 min
r training-default  OMP_NUM_THREADS=1 python tests/benchmarks/training.py --size default --rounds 8 --families llamagen,maskgit --json  # 6 min
r training-memory   OMP_NUM_THREADS=1 python tests/benchmarks/training_memory.py --steps 2 --json         # 2 min
r training-data     python tests/benchmarks/training_data.py speed --json                                 # 3 min
# These do not depend on time: they may run beside other work.
r precision-error   OMP_NUM_THREADS=1 python tests/benchmarks/precision_error.py 360 --json              # 2 min
r cascade-d16       python tests/benchmarks/cascade_agreement.py d16 4 5 12 --json                        # 15 min
r cascade-d16-int16 python tests/benchmarks/cascade_agreement.py d16 4 5 12 int16 --json                  # 15 min
r cascade-near-ties python tests/benchmarks/cascade_agreement.py d16 2 5 12 --near-ties --json            # 8 min
r token-noise       OMP_NUM_THREADS=1 python tests/benchmarks/token_noise.py --json                       # 3 min
r cascade-noise     OMP_NUM_THREADS=1 python tests/benchmarks/cascade_noise.py --json                     # 1 min
r cascade-digits    OMP_NUM_THREADS=1 python tests/benchmarks/cascade_digits.py --json                    # 3 min
r tar-listing       OMP_NUM_THREADS=1 python tests/benchmarks/tar_listing.py --json                       # 1 min
r demo              OMP_NUM_THREADS=1 avarc demo --out build/demo --json                                  # 1 min
r demo-llamagen     OMP_NUM_THREADS=1 avarc demo --model digits-llamagen --out build/demo-llamagen --json # 1 min
r orders            python tests/benchmarks/orders.py --out docs/orders.png --json                        # 10 min
r masked            python tests/benchmarks/masked.py --out docs/masked.png --json                        # 6 min
D="OMP_NUM_THREADS=1 python tests/benchmarks/digits_runs.py"
r digits-captions    $D captions --json                        # 1 min
r digits-splits      $D splits --json                          # 1 min
r digits-models      $D models --json                          # 5 min
r digits-incremental $D incremental build/incremental --json   # 12 min
# 8 and 9 min; need the images first: python -m avarc_cli.train.digits build/digits
[ ! -d build/digits ] || r code-usage python tests/benchmarks/code_usage.py build/digits build/usage --json
[ ! -d build/digits ] || r digits-cca $D cca build/digits build/cca --json
# 30 min; need build/glyphs of `make glyphs`. The first also draws docs/classes.png.
[ ! -d build/glyphs ] || r glyphs OMP_NUM_THREADS=1 python tests/benchmarks/glyphs.py measure build/glyphs --out docs/classes.png --json
[ ! -d build/glyphs ] || r glyphs-closest OMP_NUM_THREADS=1 python tests/benchmarks/glyphs.py closest build/glyphs --json
if [ "$ONLY" != "  " ]; then
  r paper-plan-d16-zen4 python tests/benchmarks/paper_plan.py 5 100 fp32,bf16,bf16+fp32 7 --json
  r paper-plan-d16-avx2 python tests/benchmarks/paper_plan.py 5 100 fp32,int8,int16,int16+fp32 7 --avx2 --json
  r paper-plan-d16-zen3 python tests/benchmarks/paper_plan.py 5 100 fp32,int16+fp32 7 --json
  r paper-plan-llamagen-l-zen3 python tests/benchmarks/paper_plan.py 5 100 fp32,int16+fp32 7 --shape llamagen-l --json
  r paper-plan-rar-b-zen3      python tests/benchmarks/paper_plan.py 3 100 fp32,int16+fp32 7 --shape rar-b --json
  r paper-plan-llamagen-l-zen4 python tests/benchmarks/paper_plan.py 5 100 fp32,bf16+fp32,int16+fp32 7 --shape llamagen-l --json
  r paper-plan-rar-b-zen4      python tests/benchmarks/paper_plan.py 5 100 fp32,bf16+fp32 7 --shape rar-b --json
  r products-zen4       python tests/benchmarks/products.py --json
  r products-zen3       python tests/benchmarks/products.py --json
  r products-avx2       python tests/benchmarks/products.py --avx2 --json
  r bench-d16-zen4      avarc bench --precision fp32,bf16,int8 --pairs 6 --rounds 3 --kernels torch --json
  for shape in llamagen-l randar-l rar-b; do
    r $shape-zen4 avarc bench --shape $shape --precision fp32,bf16,int8 --pairs 4 --rounds 3 --kernels torch --json
  done
fi
$PY tests/benchmarks/figures.py write
$PY tests/benchmarks/figures.py check
