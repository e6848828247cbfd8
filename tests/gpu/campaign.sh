#!/usr/bin/env bash
# What has to be measured on a GPU, in one call of under 9 minutes. Every part has a time limit of its own and writes
# its result into OUT as it comes, so that a run that is cut off still tells what it found.
#
#   tests/gpu/campaign.sh [OUT]          on a machine with one GPU (OUT: gpu-campaign)
#   tests/gpu/campaign.sh --toy [OUT]    a rehearsal: the same parts on the CPU, at toy size
#
# PYTHON names the interpreter (python). OUT/summary.txt has a line for every part; exit code 1 if one of them failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

toy=""
if [[ "${1:-}" == --toy ]]; then
  toy=1
  shift
fi
out="${1:-gpu-campaign}"
python="${PYTHON:-python}"
mkdir -p "$out"
: >"$out/summary.txt"
failed=0
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline NO_COLOR=1

# part NAME SECONDS COMMAND...: run it with a limit, its output into OUT/NAME.txt, its end into the summary.
part() {
  local name="$1" limit="$2" from=$SECONDS code line
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.txt" 2>&1
  code=$?
  line="$name: exit $code after $((SECONDS - from)) s (limit $limit s)"
  ((code == 124 || code == 137)) && line+="; cut off, what it had written is kept"
  echo "$line" | tee -a "$out/summary.txt"
  ((code == 0)) || failed=1
}

machine() {
  date -u +%FT%TZ
  git rev-parse HEAD 2>/dev/null
  nvidia-smi 2>/dev/null || echo "no nvidia-smi"
  "$python" -c 'import torch, transformers; print(torch.__version__, transformers.__version__, torch.cuda.is_available())'
}
export -f machine
export python

part machine 30 bash -c machine
if [[ -n "$toy" ]]; then
  part tests 120 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/training/test_gpu.py
  part training 120 "$python" tests/benchmarks/bench_training_step.py --size toy --lengths 128 --rounds 1 --steps 1 \
    --only "retroflow fp32" "retroflow bf16" --json "$out/training.json"
  part generation 60 "$python" tests/benchmarks/bench_generation.py --size toy --new-tokens 16 --rounds 1
  part reading 120 "$python" tests/benchmarks/bench_reading.py --toy --rounds 1 --json "$out/reading.json"
else
  part reading 120 "$python" tests/benchmarks/bench_reading.py --device cuda --base random --lengths 2048 \
    --json "$out/reading.json"
  part training 150 "$python" tests/benchmarks/bench_training_step.py --device cuda --size 425m --lengths 2048 --batch 8 \
    --rounds 3 --only "retro-pytorch bf16" "retroflow bf16" "retroflow bf16 compiled" --json "$out/training.json"
  part peer 50 "$python" tests/benchmarks/bench_training_step.py --device cuda --lengths 2048 --batch 8 --rounds 2 \
    --only "retro-pytorch bf16" "retroflow bf16" --json "$out/training.json"
  part generation 50 "$python" tests/benchmarks/bench_generation.py --device cuda --new-tokens 128 --rounds 1
  part tests 120 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/training/test_gpu.py tests/generation/test_decoding.py \
    tests/pretrained/test_inherited.py
fi
exit "$failed"
