#!/bin/sh
# Every run of this recipe for the seeds given, from the top of the checkout: sh recipes/orpo-simpo/all.sh 0 1 2
set -e
python recipes/dpo/make_data.py
for seed in "$@"; do
    out=runs/preferences/seed-$seed
    test -f $out/sft/result/config.json || tunesmith train recipes/dpo/sft.yaml --set train.seed=$seed --set output=$out/sft
    tunesmith train recipes/orpo-simpo/orpo.yaml --set train.seed=$seed --set output=$out/orpo
    tunesmith train recipes/orpo-simpo/simpo.yaml --set train.seed=$seed --set model.path=$out/sft --set output=$out/simpo
done
