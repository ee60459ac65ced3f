#!/usr/bin/env bash
# All that needs a GPU, in one command, the most valuable first.
#
#     benchmarks/device.sh [MINUTES]       # 10 minutes, on a machine with a GPU
#     benchmarks/device.sh --tiny          # every part in small, on any machine, in about a minute
#
# 1. tests     The tests of kernels and of rounding, the GPU's kernels compiled for it and not interpreted.
# 2. steps     Time and bandwidth of a step beside a measured copy, with 124 million and 1 billion parameters.
# 3. gpt2      GPT-2 124M for some hundred steps in float32 and in few bytes: loss, memory, time.
# 4. exadam    EXAdam's language model at the paper's size, tuned, in the time that is left.
#
# Each part has a limit of its own. What a part finished is written at once and is not done again: a second call goes on
# where the first one stopped. Results lie in $OUT (benchmarks/results/device); README.md there says what was reached.
# $PYTHON is the interpreter (python), $OPTAX_EXT_DATA the folder of tinyshakespeare.txt, which part 4 needs.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
begin=$SECONDS
tiny='' minutes=10
for argument in "$@"; do
  case $argument in
    --tiny) tiny=yes ;;
    *[!0-9]* | '') echo "The argument is a number of minutes or --tiny, but was '$argument'." >&2; exit 2 ;;
    *) minutes=$argument ;;
  esac
done
if [ "$tiny" ]; then
  OUT=${OUT:-$(mktemp -d)}
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
else
  OUT=${OUT:-benchmarks/results/device}
fi
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONPATH="$PWD:$PWD/benchmarks/device${PYTHONPATH:+:$PYTHONPATH}"

device=$("$PYTHON" -c 'import jax; print(jax.default_backend(), jax.devices()[0].device_kind)' 2>"$OUT/device.log") ||
  { echo "jax does not start with $PYTHON: see $OUT/device.log." >&2; exit 1; }
if [ ! "$tiny" ] && [ "${device%% *}" != gpu ]; then
  echo "jax finds no GPU here, only '$device': run this on a machine with a GPU and jax[cuda12] or jax[cuda13], or with --tiny to try it out." >&2
  exit 1
fi
device=${device#* }

left() { echo $((60 * minutes - SECONDS + begin - 5)); } # five seconds to write the summary
declare -a summary=()

# part NAME LEAST MOST COMMAND: runs for at most MOST seconds, and not at all where fewer than LEAST are left.
part() {
  local name=$1 least=$2 most=$3 command=$4 limit started=$SECONDS rc
  if [ -e "$OUT/$name.done" ]; then summary+=("$name|finished in an earlier call|"); return; fi
  limit=$(left)
  if [ "$limit" -lt "$least" ]; then
    summary+=("$name|**not reached**: ${limit} s were left, it wants at least $least|"); return
  fi
  [ "$limit" -le "$most" ] || limit=$most
  printf '\n== %s (at most %s s)\n%s\n' "$name" "$limit" "$command"
  timeout --kill-after=3 "$limit" bash -euo pipefail -c "$command" 2>&1 | tee "$OUT/$name.log"
  rc=${PIPESTATUS[0]}
  case $rc in
    0) touch "$OUT/$name.done"; summary+=("$name|finished|$((SECONDS - started)) s") ;;
    124 | 137) summary+=("$name|**cut short** after $limit s; a second call goes on|$((SECONDS - started)) s") ;;
    *) summary+=("$name|**failed** with status $rc, see $name.log|$((SECONDS - started)) s") ;;
  esac
}

out=$(printf %q "$OUT")
tests='tests/memory/test_gpu_kernel.py tests/memory/test_quantize_kernel.py tests/memory/test_rounding.py tests/sphere/test_nd_adam_kernel.py'
pytest="$PYTHON -m pytest -p on_device -p no:cacheprovider -q -n 0 --maxfail=20"
if [ "$tiny" ]; then
  part tests 1 300 "$pytest -m 'not slow' tests/memory/test_gpu_kernel.py"
  part steps 1 300 "$PYTHON benchmarks/speed/gpu.py --low-precision --parameters 1e5 --side 128 --rounds 1 --seconds 0 --out $out"
  part gpt2 1 300 "$PYTHON benchmarks/gpt2.py --tiny --out $out"
  part exadam 1 300 "$PYTHON tests/made_up_data.py $out/data && OPTAX_EXT_DATA=$out/data $PYTHON benchmarks/papers/exadam.py published --slice --out $out/papers"
else
  part tests 20 150 "$pytest -m 'not aot' $tests"
  part steps 30 150 "$PYTHON benchmarks/speed/gpu.py --low-precision --parameters 1.24e8 1e9 --rounds 3 --seconds 0.2 --out $out"
  part gpt2 40 180 "$PYTHON benchmarks/gpt2.py --out $out"
  part exadam 40 100000 "$PYTHON benchmarks/papers/exadam.py tuned --full --out $out/papers"
fi

{
  echo '# Measured on a device'
  echo
  echo "\`benchmarks/device.sh $*\`, $(date +%F), $device, $("$PYTHON" -c 'import jax; print("jax", jax.__version__)'); $((SECONDS - begin)) s."
  echo
  echo '| part | | time |'
  echo '|---|---|---:|'
  printf '| %s |\n' "${summary[@]//|/ | }"
  for name in gpu.md gpt2.md; do [ -e "$OUT/$name" ] && { echo; sed 's/^# /## /' "$OUT/$name"; }; done
} >"$OUT/README.md"
printf '\n'
sed -n 5,12p "$OUT/README.md"
case "${summary[*]}" in *failed*) exit 1 ;; esac
[ ! "$tiny" ] || case "${summary[*]}" in *'**'*) exit 1 ;; esac
