#!/bin/sh
# Every run of this recipe for the seeds given, from the top of the checkout: sh recipes/new-domain/all.sh 0 1 2
set -e
recipe=recipes/new-domain
python $recipe/make_data.py
for seed in "$@"; do
    out=runs/new-domain/seed-$seed
    for name in pretrain pretrain-pieces pretrain-kl pretrain-mixed; do
        tunesmith train $recipe/$name.yaml --set train.seed=$seed --set output=$out/$name
        tunesmith train $recipe/sft.yaml --set train.seed=$seed --set model.path=$out/$name --set output=$out/sft-after-$name
    done
    tunesmith train $recipe/sft-alone.yaml --set train.seed=$seed --set output=$out/sft-alone
done
