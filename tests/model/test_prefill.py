"""Prompts that are asked several times run once, answers that are done not at all: the same answers, fewer tokens."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from builders import byte_tokenizer, tiny_model, with_lora
from tunesmith.model import prefill as module
from tunesmith.model.generate import generate
from tunesmith.model.prefill import prefill

CONFIG = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=257, eos_token_id=None)
FAMILIES = [
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "falcon_alibi",
    "gpt_oss",
    "mixtral",
    "bloom",
]


def padded(prompts):
    """Return left-padded ids and mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[257] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


@pytest.fixture(scope="module")
def prompts():
    """Three prompts, of 9, 3 and 26 tokens (beyond the families' windows of 8), asked 2, 1 and 3 times."""
    generator = torch.Generator().manual_seed(1)
    nine, three, long = (torch.randint(0, 97, (n,), generator=generator).tolist() for n in (9, 3, 26))
    return [nine, nine, three, long, long, long]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_model(request.param, vocab_size=260).eval()


@torch.no_grad()
def test_the_next_tokens_log_probs_are_those_without(model, prompts):
    ids, mask = padded(prompts)
    cache = prefill(model, CONFIG, prompts, ids, mask)
    assert cache.get_seq_length() == ids.shape[1] - 1
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 257, "output_logits": True}
    config = GenerationConfig(**options, return_dict_in_generate=True)
    ask = {"input_ids": ids, "attention_mask": mask, "generation_config": config}
    alone, shared = model.generate(**ask), model.generate(**ask, past_key_values=cache)
    assert torch.equal(alone.sequences, shared.sequences)
    for one, other in zip(alone.logits, shared.logits, strict=True):
        assert (one.log_softmax(-1) - other.log_softmax(-1)).abs().max() <= 1e-5


def test_answers_are_those_without(model, prompts, monkeypatch):
    ways = {"max_new_tokens": 8, "temperature": 0.8, "seed": 2}
    shared = generate(model, byte_tokenizer(), prompts, **ways)
    monkeypatch.setattr(module, "prefill", lambda *_: None)
    assert generate(model, byte_tokenizer(), prompts, **ways) == shared
    assert len(set(shared)) == len(prompts)  # each its own draw


def test_every_prompt_runs_once(prompts, monkeypatch):
    model = with_lora(tiny_model("llama", vocab_size=260)).eval()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _, given, out: seen.append(given[0].numel()))
    generate(model, byte_tokenizer(), prompts, max_new_tokens=3, temperature=1.0)
    assert seen[:2] == [3 * 25, 6]  # three prompts but for their last tokens, then the last token of each answer's
    seen.clear()
    generate(model, byte_tokenizer(), prompts[::2], max_new_tokens=3, temperature=1.0)
    assert seen[0] == 3 * 26  # no two alike: as ever


def test_a_prompt_is_not_taken_for_one_that_begins_with_padding():
    model = tiny_model("llama", vocab_size=260).eval()
    prompts = [[257, 5, 6], [5, 6], [5, 6]]
    ids, mask = padded(prompts)
    assert torch.equal(ids[0], ids[1])
    cache = prefill(model, CONFIG, prompts, ids, mask)
    assert not torch.equal(cache.layers[0].keys[0], cache.layers[0].keys[1])
    assert torch.equal(cache.layers[0].keys[1], cache.layers[0].keys[2])


def test_what_cannot_share_goes_on_as_before(monkeypatch):
    model = tiny_model("llama", vocab_size=260).eval()
    for prompts in ([[1], [1]], [[1, 2], [1, 3]]):  # nothing before the last token; nothing alike
        assert prefill(model, CONFIG, prompts, *padded(prompts)).get_seq_length() == 0

    class State(DynamicCache):
        """A cache with a layer that is not keys and values."""

        def __init__(self, *_, **__):
            super().__init__()
            self.layers = [object()]

    monkeypatch.setattr("transformers.DynamicCache", State)
    assert prefill(model, CONFIG, [[1, 2], [1, 2]], *padded([[1, 2], [1, 2]])) is None


def test_a_cache_that_the_models_own_config_names_is_kept(prompts, monkeypatch):
    model = tiny_model("llama", vocab_size=260).eval()
    ways = {"max_new_tokens": 5, "temperature": 1.0}
    wanted = generate(model, byte_tokenizer(), prompts, **ways)
    for name in ("static", "hybrid"):
        monkeypatch.setattr(model.generation_config, "cache_implementation", name)
        assert generate(model, byte_tokenizer(), prompts, **ways) == wanted


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_answers_that_are_done_leave_the_batch(family, monkeypatch):
    """Answers end at a common letter, or at a stop string: the same ones, and only those that go on are computed."""
    model = tiny_model(family, vocab_size=260).eval()
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in (4, 4, 11, 7) for _ in range(4)]
    ways = {"max_new_tokens": 30, "temperature": 1.5, "seed": 4}
    often = list(range(65, 91))
    monkeypatch.setattr("tunesmith.model.generate.end_tokens", lambda *_: often)
    rows = []
    model.get_input_embeddings().register_forward_hook(lambda _, given, out: rows.append(given[0].shape[0]))
    for stop in ((), ("\x01", "\x02")):
        monkeypatch.setattr(module, "FEWEST", 10**9)
        rows.clear()
        heard = []
        wanted = generate(
            model, byte_tokenizer(), prompts, stop=stop, on_token=lambda i, t, h=heard: h.append((i, t)), **ways
        )
        whole = sum(rows)
        monkeypatch.setattr(module, "FEWEST", 4)
        rows.clear()
        again = []
        assert wanted == generate(
            model, byte_tokenizer(), prompts, stop=stop, on_token=lambda i, t, h=again: h.append((i, t)), **ways
        )
        assert sorted(heard) == sorted(again)  # each token once
        assert sum(rows) < 0.75 * whole


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_whose_routers_are_trained_answers_as_others_do(family, prompts):
    """transformers computes their loss wherever the config asks for it, and cannot beside a cache."""
    plain, trained = (tiny_model(family, vocab_size=260, output_router_logits=asked).eval() for asked in (False, True))
    wanted = generate(plain, byte_tokenizer(), prompts, max_new_tokens=6)
    assert generate(trained, byte_tokenizer(), prompts, max_new_tokens=6) == wanted
    assert trained.config.output_router_logits
