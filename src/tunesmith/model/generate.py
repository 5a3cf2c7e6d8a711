"""Answers from a causal language model, in batches with a KV cache or streamed, through transformers' own loop.

Greedy at temperature 0. Otherwise every answer has random numbers of its own, made of the seed and its place among the
prompts, so the batch size changes no answer.
"""

import math
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tunesmith.data import sandbox
from tunesmith.data.layout import template
from tunesmith.errors import InputError
from tunesmith.model.decoding import Batch, OnToken, Pieces, Processors, Watch, cut_at_stop, decode, end_tokens
from tunesmith.training.parallel import ALONE, World

TINY = 10_000_000  # parameters up to which one CPU thread generates best
BATCH_TOKENS = 16_384  # prompt and answer tokens of a batch, padding included: what its KV cache must hold


def encode_prompts(
    tokenizer: Any,
    chats: Sequence[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]],
    origins: Sequence[object] | None = None,
) -> list[list[int]]:
    """Return the token ids of each (messages, tools) up to where the assistant's answer begins.

    The template writes all special tokens, so the tokenizer adds none. InputError where the template refuses a chat: it
    is named by its origin, or by its number.
    """
    names = origins or [f"prompt {number}" for number in range(1, len(chats) + 1)]
    jobs = [sandbox.Job(messages, tools, True, name) for (messages, tools), name in zip(chats, names, strict=True)]
    texts = list(sandbox.run(jobs, tokenizer, template(tokenizer)))
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    return ids


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    batch_size: int | None = None,
    seed: int | Sequence[int] = 0,
    on_token: OnToken | None = None,
    world: World = ALONE,
) -> list[str]:
    """Return the answer to each prompt (token ids) in the order asked, without special tokens and stop string.

    `model` is a transformers causal LM or a PeftModel in an ordinary attention; it is put into eval mode meanwhile.
    An answer ends at an end token, before a stop string, after max_new_tokens or where the context is full. `on_token`,
    if given, hears (prompt's index, token) of every new token as it comes and ends that answer by returning True.
    `seed`: one for all, which with a prompt's place makes its random numbers, or one per prompt.
    Each process of the world answers a share of the batches that one would, and all get all answers.
    InputError for a prompt that leaves no room in the context, and for sampling values out of range.
    """
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    check_sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop, batch_size, seed)
    ends = end_tokens(model, tokenizer)
    lengths = [len(p) for p in prompts]
    batches = _plan(lengths, max_new_tokens, context_length(model), batch_size, _alike_beyond(model))
    answers: dict[int, str] = {}
    with _generating(model):
        for batch in batches[world.rank :: world.size]:
            processors = Processors(temperature, top_p, top_k, repetition_penalty, seed)
            watch = Watch(tokenizer, batch, stop, set(ends), on_token)
            answered = _run(model, tokenizer, prompts, batch, ends, processors, watch)
            for row, ids in zip(batch.rows, answered, strict=True):
                answers[row] = cut_at_stop(decode(tokenizer, _until_end(ids, ends)), stop)[0]
    everyone = {row: answer for part in world.gather(answers) for row, answer in part.items()}
    return [everyone[row] for row in range(len(prompts))]


@contextmanager
def _generating(model: Any) -> Iterator[None]:
    """Within it the model is in eval mode, and a tiny one on a CPU runs in one thread: its steps are too short to share.

    Where other programs keep the cores busy, two threads that wait for each other at every operation took ten times as long.
    """
    import torch

    training, threads = model.training, torch.get_num_threads()
    model.eval()
    if model.device.type == "cpu" and sum(p.numel() for p in model.parameters()) <= TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if training:
            model.train()


def stream(
    model: Any,
    tokenizer: Any,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    **sampling: Any,
) -> Generator[str]:
    """Yield the answer to a conversation in pieces of text as they come, never half a character.

    `sampling`: generate's keyword arguments. Closing the generator, or an exception in it (Ctrl-C), stops the model
    after the token at hand.
    """
    prompt = encode_prompts(tokenizer, [(messages, tools)])
    stop = sampling.get("stop", ())
    pieces = Pieces(tokenizer, (stop,) if isinstance(stop, str) else tuple(stop))
    tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    def hear(_: int, token: int) -> bool:
        tokens.put(token)
        return closed.is_set()

    def work() -> None:
        try:
            generate(model, tokenizer, prompt, on_token=hear, **sampling)
            tokens.put(None)
        except BaseException as e:  # handed to the reader, who raises it
            tokens.put(e)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (token := tokens.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            if piece := pieces.push(token):
                yield piece
        if piece := pieces.flush():
            yield piece
    finally:
        closed.set()
        worker.join()


def context_length(model: Any) -> int | None:
    """Return how many tokens of text the model's positions reach, None where its config sets no limit."""
    from tunesmith.model.virtual import count

    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) - count(model) if limit else None


def check_sampling(
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    batch_size: int | None = None,
    seed: int | Sequence[int] = 0,
) -> None:
    """InputError naming the first sampling value that is out of range."""
    rules = (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 (greedy) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("top_k", top_k, top_k >= 0, "0 (all) or more"),
        ("repetition_penalty", repetition_penalty, repetition_penalty > 0, "above 0 (1: none)"),
        ("batch_size", batch_size, batch_size is None or batch_size >= 1, "at least 1"),
        ("seed", seed, not isinstance(seed, int) or seed >= 0, "0 or more"),
        ("stop", "an empty string", all(stop), "text"),
    )
    for name, value, right, wanted in rules:
        if not right:
            raise InputError(f"{name} is {value}; it must be {wanted}.")


def _alike_beyond(model: Any) -> float:
    """Return the tokens, prompt and answer, beyond which only prompts of one length may run together.

    Keys and values of virtual tokens stand before a row's padding, which would move them out of an attention window.
    """
    from tunesmith.model import probe, virtual

    found = virtual.of(model)
    if found is None or not found.keyed:
        return math.inf
    config = model.config.get_text_config()
    return min((getattr(config, word, None) or math.inf for word in probe.WORDS), default=math.inf) - found.tokens


def _plan(
    lengths: list[int],
    max_new_tokens: int,
    context: int | None,
    batch_size: int | None,
    alike_beyond: float = math.inf,
) -> list[Batch]:
    """Sort prompts by length into batches of at most BATCH_TOKENS; those near the context's end among themselves,
    so that none is cut for another's sake. Where prompt and answer are longer than `alike_beyond`, of one length."""
    limits = []
    for number, length in enumerate(lengths, 1):
        room = max_new_tokens if context is None else context - length
        if room < 1:
            raise InputError(
                f"prompt {number} has {length} tokens: no room to answer in the model's context of {context} tokens."
            )
        if length == 0:
            raise InputError(f"prompt {number} is empty.")
        limits.append(min(room, max_new_tokens))
    batches: list[Batch] = []
    for row in sorted(range(len(lengths)), key=lambda i: (limits[i], lengths[i])):
        last = batches[-1] if batches else None
        most = batch_size or max(1, BATCH_TOKENS // (lengths[row] + limits[row]))
        alike = last is not None and lengths[last.rows[-1]] == lengths[row]
        fits = alike or lengths[row] + limits[row] <= alike_beyond
        if last and fits and last.limit == limits[row] and len(last.rows) < most:
            last.rows.append(row)
        else:
            batches.append(Batch([row], limits[row]))
    return batches


def _run(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    batch: Batch,
    ends: list[int],
    processors: Processors,
    watch: Watch,
) -> list[list[int]]:
    """Return the new tokens of a batch, row by row; those of finished rows go on with padding."""
    import torch
    from transformers import GenerationConfig

    from tunesmith.model import virtual
    from tunesmith.model.prefill import answer, prefill

    width = max(len(prompts[r]) for r in batch.rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    ids = torch.tensor([[pad] * (width - len(prompts[r])) + list(prompts[r]) for r in batch.rows], device=model.device)
    pads = torch.tensor([width - len(prompts[r]) for r in batch.rows], device=model.device)
    # All that the model's own generation config may set is set here: what is asked for is what is done.
    config = GenerationConfig(
        max_new_tokens=batch.limit,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=ends or None,
    )
    mask = (torch.arange(width, device=ids.device)[None] >= pads[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if (
        found := virtual.of(model)
    ) is not None:  # PEFT's own generate would move virtual tokens away where there is padding
        inputs, model = found.prompts(ids, mask), model.get_base_model()
        width, pads = width + found.tokens, pads + found.tokens
    watch.prompt_width = width
    if found is None and (cache := prefill(model, config, [prompts[r] for r in batch.rows], ids, mask)) is not None:
        return answer(model, config, batch, ids, mask, cache, processors, watch)
    out = model.generate(
        **inputs,
        generation_config=config,
        logits_processor=processors.build(batch, pads, width),
        stopping_criteria=[watch],
    )
    rows: list[list[int]] = out[:, width:].tolist()
    return rows


def _until_end(ids: list[int], ends: list[int]) -> list[int]:
    return next((ids[:i] for i, t in enumerate(ids) if t in ends), ids)
