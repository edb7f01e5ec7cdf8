#!/usr/bin/env bash
# The headline figures, from an empty folder to JSON, in one command that goes on where it stopped:
#
#     benchmarks/headline.sh OUT [PRESET...]
#
# Tests for the GPU, the short benchmarks, then the pipeline twice: labels of one teacher, and of the
# pool's mean (only labels and what follows from them are computed again). Results are copied to the
# folder OUT. A step that takes longer than LIMIT (540 s) is stopped; call the command again.
# PYTHON names the interpreter, DATA the folder with the data set, TABLE the NAS table (looked for in
# DATA), WORK where to work.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?benchmarks/headline.sh OUT [PRESET...]}")
shift
presets=("$@")
((${#presets[@]})) || presets=(presets/cifar10_headline.yaml presets/nasbench201_table.yaml)
python=${PYTHON:-python3}
work=$(realpath -m "${WORK:-work/headline}")
data=$(realpath -m "${DATA:-data}")
table=$(realpath -m "${TABLE:-$data/nasbench201_accuracy.csv.gz}")
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out" "$work"

step() { # name command...: once, within the limit
    local name=$1
    shift
    [[ -e $work/$name.done ]] && return
    timeout --signal=INT "${LIMIT:-540}" "$@" >"$work/$name.log" 2>&1 || {
        tail -n 20 "$work/$name.log"
        echo "headline: $name ended early: run the command again to go on, or see $work/$name.log"
        exit 1
    }
    touch "$work/$name.done"
}

step gpu "$python" -m pytest -q tests/test_gpu.py
step benchmarks "$python" -m benchmarks
cp benchmarks/results/{step,round,memory,scaling}_*.json "$out"
for labels in teacher mean; do
    overlay=$work/$labels.yaml
    cat >"$overlay" <<END
dataset: {data_dir: "$data"}
nas: {reference: {table: "$table"}}
distill: {labels: $labels}
compute: {threads: $(nproc)}
END
    step "results.$labels" "$python" -m snakemake --cores all --directory "$work" \
        --configfile "${presets[@]}" "$overlay"
    for file in "$work"/results/*_ipc*.json; do
        cp "$file" "$out/headline.$labels.$(basename "$file")"
    done
done
echo "headline: done, see $out"
