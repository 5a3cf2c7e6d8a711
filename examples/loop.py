"""The readable twin: what `tunesmith train` computes, without its machinery. One device, fp32, padded batches, nothing saved on the way.

    python examples/loop.py --model starter --data rows.jsonl --steps 100 [--adapter lora] [--output tuned]

A step takes `--batch` rows in the epoch's shuffled order. Its loss is the negative log-likelihood of the answers' tokens, summed
over the step and divided by their number; how the step is cut into micro-batches therefore changes nothing. Then the gradient
is clipped, AdamW moves the trained weights, and the learning rate follows a warm-up and a cosine.
"""

import argparse
import math

import numpy as np
import torch

from tunesmith.data import sources
from tunesmith.data.render import render
from tunesmith.model.loading import check_weights, load_tokenizer, resolve


def rows_of_steps(count, batch, seed):
    """Yield the example numbers of each step, without end: every epoch is a permutation that its number and the seed decide."""
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for start in range(0, count, batch):
            yield order[start : start + batch]
        epoch += 1


def padded(examples, rows):
    """Return ids, mask (real tokens) and scored (tokens the loss counts), each (rows, longest), zeros where a row has ended."""
    spans = [slice(examples.offsets[row], examples.offsets[row + 1]) for row in rows]
    lengths = torch.tensor([span.stop - span.start for span in spans])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    ids, scored = torch.zeros_like(mask, dtype=torch.long), torch.zeros_like(mask)
    for i, span in enumerate(spans):
        ids[i, : lengths[i]] = torch.from_numpy(examples.ids[span].astype(np.int64))
        scored[i, : lengths[i]] = torch.from_numpy(examples.scored[span])
    return ids, mask, scored


def nll(model, ids, mask, scored):
    """Return -sum log p(token | what is before it) over the scored tokens, (): position t predicts token t + 1."""
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    logps = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    return -logps[scored[:, 1:]].sum()


def rate(peak, step, steps, warmup):
    """Return the learning rate of a step (0-based): up to the peak over `warmup` steps, then half a cosine down to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def trainable(base, adapter, rank, seed):
    """Return the model in fp32 and its trained parameters: all of them, or (LoRA) A and B beside every linear layer but the last."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)  # A is drawn
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    if adapter == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        model = get_peft_model(model, lora)
    model.train()
    return model, [p for p in model.parameters() if p.requires_grad]


def train(model, data, steps=100, *, batch=16, micro=4, adapter="full", rank=16, peak=3e-4, warmup=None, seed=0):
    """Train on the data files; return the model, the tokenizer and the loss of every step (nats per scored token)."""
    source = resolve(model)
    check_weights(source)
    tokenizer, _ = load_tokenizer(source)
    model, trained = trainable(source.base, adapter, rank, seed)
    length = min(model.config.max_position_embeddings, 8192)
    examples, _ = render(sources.load(list(data)).records, tokenizer, max_length=length)
    optimizer = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    warmup = round(0.05 * steps) if warmup is None else warmup
    losses = []
    for step, rows in zip(range(steps), rows_of_steps(len(examples), batch, seed), strict=False):
        total = sum(int(examples.scored[examples.offsets[row] : examples.offsets[row + 1]].sum()) for row in rows)
        loss = 0.0
        for start in range(0, len(rows), micro):
            part = nll(model, *padded(examples, rows[start : start + micro])) / total
            part.backward()  # gradients of the micro-batches add up to the step's
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, max_norm=1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(peak, step, steps, warmup)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        print(f"step {step + 1}/{steps}  loss {loss:.4f}  gradient {norm:.3f}  rate {group['lr']:.2e}")
    return model, tokenizer, losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="starter, a local folder or a hub id")
    parser.add_argument("--data", required=True, nargs="+", help="files of rows with questions and answers")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--adapter", choices=["full", "lora"], default="full")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--output", help="where to save the tuned model (or adapter)")
    args = parser.parse_args()
    model, tokenizer, _ = train(args.model, args.data, args.steps, adapter=args.adapter, peak=args.learning_rate)
    if args.output:
        model.save_pretrained(args.output)
        tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
