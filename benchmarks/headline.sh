#!/usr/bin/env bash
# The headline figures, from an empty folder to JSON, in one command that goes on where it stopped:
#
#     benchmarks/headline.sh OUT [PRESET...]
#
# Tests for the GPU, what is to be known of it first (benchmarks.gpu), the short benchmarks, then the
# pipeline: the distilled images, random images with the same labels, other networks; with labels of
# one teacher, then of the pool's mean (in a copy, where only labels and what follows from them are
# computed again); the ranking of architectures last. Results are put into the folder OUT as they
# come. A test or a benchmark that fails does not hold up what follows; call the command again to try
# it again, or write $WORK/NAME.done to leave it out. A step that takes longer than LIMIT (540 s) is
# stopped, and the command with it; call it again to go on.
# PYTHON names the interpreter, DATA the folder with the data set, TABLE the NAS table (looked for in
# DATA), WORK where to work; QUICK=1 takes tiny sizes for all but the pipeline.
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
sizes=(--out "$out")
[[ -z ${QUICK:-} ]] || sizes+=(--quick --compile off)
mkdir -p "$out" "$work"
failed=()

attempt() { # name command...: once, within the limit; whether it succeeded
    local name=$1 status=0
    shift
    [[ -e $work/$name.done ]] && return
    timeout --signal=INT --kill-after=30 "${LIMIT:-540}" "$@" >"$work/$name.log" 2>&1 || status=$?
    if ((status == 0)); then
        touch "$work/$name.done"
        return
    fi
    tail -n 20 "$work/$name.log"
    echo "headline: $name ended with status $status, see $work/$name.log"
    ((status != 124 && status != 137)) || stop # out of time
    return 1
}

stop() {
    echo "headline: run the same command again to go on"
    exit 1
}

try() { # name command...: what follows does not depend on it
    attempt "$@" || failed+=("$1")
}

run() { # labels name option...: a step of the pipeline, up to the files named last
    local labels=$1 name=$2 file
    shift 2
    attempt "$labels.$name" "$python" -m snakemake --cores all --directory "$work/$labels" \
        --configfile "${presets[@]}" "$work/$labels.yaml" "$@" || stop
    for file in "$work/$labels"/results/*_ipc*.json; do
        [[ ! -e $file ]] || cp "$file" "$out/headline.$labels.$(basename "$file")"
    done
}

try tests "$python" -m pytest -q tests/test_gpu.py
try gpu "$python" -m benchmarks.gpu "${sizes[@]}" --data "$data"
for name in step round memory scaling; do
    try "$name" "$python" -m "benchmarks.$name" "${sizes[@]}"
done

without_ranking=$work/without_ranking.yaml
echo "nas: {networks: 0}" >"$without_ranking"
for labels in teacher mean; do
    cat >"$work/$labels.yaml" <<END
dataset: {data_dir: "$data"}
nas: {reference: {table: "$table"}}
distill: {labels: $labels}
compute: {threads: $(nproc)}
END
    mkdir -p "$work/$labels"
    [[ $labels == teacher ]] || attempt copy cp -aT "$work/teacher" "$work/$labels" || stop
    plan=$("$python" -m benchmarks.headline "${presets[@]}" "$work/$labels.yaml")
    while read -ru 3 name files; do
        # shellcheck disable=SC2086 # a list of files
        run "$labels" "$name" "$without_ranking" -- $files
    done 3<<<"$plan"
done
for labels in teacher mean; do
    run "$labels" ranking
done
((${#failed[@]} == 0)) || {
    echo "headline: done, but for ${failed[*]}: see $out"
    exit 1
}
echo "headline: done, see $out"
