#!/usr/bin/env bash
# What there is to measure on a GPU, one step after the other, in under four minutes together.
#
#   OUT=runs/gpu benchmarks/gpu.sh             on the first GPU
#   OUT=runs/try DEVICE=cpu benchmarks/gpu.sh  small and slow, to try the script where there is none
#
# Each step writes $OUT/<step>.txt; one that is whole is not done again, so the same command goes on where it
# was stopped. A step that fails or takes too long leaves <step>.part, and the others follow.
# PYTHON names the interpreter (default: .venv/bin/python of this checkout).
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit
out=${OUT:-runs/gpu}
device=${DEVICE:-cuda}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out" || exit
failed=0

step() { # name, seconds at most, command
  local name=$1 seconds=$2
  shift 2
  [ -e "$out/$name.txt" ] && return
  echo "$name"
  if timeout $((seconds * patience)) "$@" >"$out/$name.part" 2>"$out/$name.log"; then
    mv "$out/$name.part" "$out/$name.txt"
  else
    echo "$name: failed or took more than $((seconds * patience)) s, see $out/$name.log" >&2
    failed=1
  fi
}

more=(--half) patients=3 steps=5 patience=1
if [ "$device" = cpu ]; then
  more=(--small --widths "4,6,8,10,12") patients=2 steps=1 patience=10
fi

step machine 10 "$python" -c 'import sys, torch; from deepcac2.pipeline.chain import *; d = choose_device(sys.argv[1]);
print(describe_device(d), torch.__version__, d.type == "cuda" and torch.cuda.get_device_properties(d))' "$device"
step published 100 "$python" benchmarks/published.py --device "$device" --dense "${more[@]}"
step training 45 "$python" benchmarks/training.py --device "$device" --steps "$steps"
step chain 80 "$python" benchmarks/chain.py --device "$device" --patients "$patients"
exit $failed
