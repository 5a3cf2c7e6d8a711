#!/bin/sh
# Every run of this recipe for the seeds given, from the top of the checkout: sh recipes/reward-best-of-n/all.sh 0 1 2
set -e
python recipes/dpo/make_data.py
for seed in "$@"; do
    out=runs/preferences/seed-$seed
    test -f $out/sft/result/config.json || tunesmith train recipes/dpo/sft.yaml --set train.seed=$seed --set output=$out/sft
    tunesmith train recipes/reward-best-of-n/reward.yaml --set train.seed=$seed --set model.path=$out/sft --set output=$out/reward
    tunesmith generate $out/sft --data runs/preferences/data/asked.jsonl --best-of 8 --reward $out/reward --temperature 1 \
        --max-new-tokens 48 --seed $seed --json > $out/best-of.json
done
