"""Generation against transformers' own, one prompt at a time; samplers and stops by hand."""

import math

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from builders import byte_tokenizer
from tunesmith.errors import InputError
from tunesmith.model import generate as module
from tunesmith.model.decoding import Batch, Pieces, Processors, cut_at_stop, end_tokens, held_back, pick, turn_end
from tunesmith.model.generate import encode_prompts, generate, stream

SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 256,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, and four special tokens: no merges, so a stop string always spans several tokens."""
    return byte_tokenizer()


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request):
    torch.manual_seed(0)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)).eval()


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in (3, 40, 7, 1, 25, 26, 12)]


class Scripted(LlamaForCausalLM):
    """A model that says a given text whatever it is asked: row's next token is the next byte of the script."""

    def __init__(self, script):
        super().__init__(LlamaConfig(**SIZES | {"num_hidden_layers": 1}))
        self.script = script

    def forward(self, input_ids=None, position_ids=None, past_key_values=None, **kwargs):
        out = super().forward(input_ids=input_ids, position_ids=position_ids, past_key_values=past_key_values, **kwargs)
        said = past_key_values.get_seq_length() - self.prompt_length
        out.logits = torch.zeros_like(out.logits[:, -1:])
        out.logits[:, 0, self.script[min(said, len(self.script) - 1)]] = 10.0
        return out

    def asked(self, prompts):
        self.prompt_length = max(map(len, prompts))
        return self


def plain(model, prompt, limit):
    """transformers' greedy answer to one prompt, unpadded, token by token without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(limit):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in (256, 259):
                break
    return [t for t in ids[len(prompt) :] if t < 256]


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_greedy_equals_one_at_a_time(model, tokenizer, prompts, batch_size):
    wanted = [tokenizer.decode(plain(model, p, 20)) for p in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=20, batch_size=batch_size) == wanted
    config = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=[256, 259], pad_token_id=257)
    for prompt, answer in zip(prompts, wanted, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True) == answer


def test_the_models_own_generation_config_changes_nothing(model, tokenizer, prompts, monkeypatch):
    wanted = generate(model, tokenizer, prompts, max_new_tokens=12)
    own = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=1.9, num_beams=2, use_cache=False
    )
    monkeypatch.setattr(model, "generation_config", own)
    assert generate(model, tokenizer, prompts, max_new_tokens=12) == wanted


def test_sampling_is_reproducible_and_does_not_depend_on_batches(model, tokenizer, prompts):
    ways = {"max_new_tokens": 15, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.3}
    first = generate(model, tokenizer, prompts, seed=3, **ways)
    assert first == generate(model, tokenizer, prompts, seed=3, **ways)
    assert first == generate(model, tokenizer, prompts, seed=3, batch_size=1, **ways)
    assert first != generate(model, tokenizer, prompts, seed=4, **ways)
    same = generate(model, tokenizer, [prompts[0]] * 2, seed=3, **ways)
    assert same[0] != same[1]  # the same prompt asked twice gets two draws


def test_top_k_of_one_is_greedy(model, tokenizer, prompts):
    wanted = generate(model, tokenizer, prompts, max_new_tokens=10)
    assert generate(model, tokenizer, prompts, max_new_tokens=10, temperature=2.0, top_k=1) == wanted
    assert generate(model, tokenizer, prompts, max_new_tokens=10, temperature=2.0, top_p=1e-6) == wanted


def test_repetition_penalty_sees_prompt_and_answer_but_no_padding(model, tokenizer, prompts):
    """A huge penalty forbids every token seen (a score above 0 shrinks, one below sinks); pads are not seen."""
    answers = generate(model, tokenizer, prompts, max_new_tokens=10, repetition_penalty=1e6)
    assert answers == [generate(model, tokenizer, [p], max_new_tokens=10, repetition_penalty=1e6)[0] for p in prompts]
    ids = list(prompts[2])
    with torch.no_grad():
        for _ in range(10):
            scores = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            seen = torch.zeros(260, dtype=torch.bool)
            seen[ids] = True
            scores = torch.where(seen, torch.where(scores < 0, scores * 1e6, scores / 1e6), scores)
            ids.append(int(scores.argmax()))
            if ids[-1] in (256, 259):
                break
    assert answers[2] == tokenizer.decode(ids[len(prompts[2]) :], skip_special_tokens=True)


def test_pick_inverts_the_cumulative_distribution():
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()[None].repeat(6, 1)
    u = torch.tensor([0.0, 0.05, 0.15, 0.31, 0.59, 0.9999999], dtype=torch.float64)
    assert pick(scores, u).tolist() == [0, 0, 1, 2, 2, 3]
    scores = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    draws = [int(pick(scores, torch.tensor([x], dtype=torch.float64))) for x in (0.0, 0.49, 0.51, 1 - 1e-16)]
    assert draws == [1, 1, 3, 3]


def test_sampled_frequencies_follow_the_temperature(tokenizer):
    """With scores log 1, log 2, log 4 at temperature 0.5 the odds are 1 : 4 : 16; top-k 2 leaves 4 : 16."""
    chain = Processors(0.5, 1.0, 0, 1.0, seed=0).build(Batch(list(range(4000)), 1), None, 0)
    scores = torch.tensor([1.0, 2.0, 4.0]).log().repeat(4000, 1)
    ids = torch.zeros(4000, 0, dtype=torch.long)
    share = chain(ids, scores.clone()).argmax(-1).bincount(minlength=3) / 4000
    assert share.tolist() == pytest.approx([1 / 21, 4 / 21, 16 / 21], abs=0.02)
    chain = Processors(0.5, 1.0, 2, 1.0, seed=0).build(Batch(list(range(4000)), 1), None, 0)
    share = chain(ids, scores.clone()).argmax(-1).bincount(minlength=3) / 4000
    assert share.tolist() == pytest.approx([0, 0.2, 0.8], abs=0.02)


def test_stop_strings_across_tokens(tokenizer):
    script = Scripted(list(map(tokenizer.convert_tokens_to_ids, tokenizer.tokenize("one two three two"))))
    heard = []
    ask = [[5, 6, 7], [8]]
    answers = generate(
        script.asked(ask),
        tokenizer,
        ask,
        max_new_tokens=17,
        stop=["two", "ee t"],
        on_token=lambda i, t: heard.append(i),
    )
    assert answers == ["one ", "one "]
    assert heard.count(0) == len("one two")  # the model stops there, it is not cut afterwards only
    assert generate(script.asked(ask), tokenizer, ask, max_new_tokens=17, stop="ee t") == ["one two thr"] * 2
    assert generate(script.asked(ask), tokenizer, ask, max_new_tokens=5, stop="two") == ["one t"] * 2


def test_the_end_of_turn_of_the_template_ends_an_answer(tokenizer):
    script = Scripted([*tokenizer("yes").input_ids, 259, *tokenizer("never").input_ids])
    assert generate(script.asked([[1]]), tokenizer, [[1]], max_new_tokens=9) == ["yes"]
    assert turn_end(tokenizer) == 259
    script.generation_config.eos_token_id = [256, 258]
    assert end_tokens(script, tokenizer) == [256, 258, 259]


def test_turn_end_of_a_template_that_closes_only_past_answers(tokenizer, monkeypatch):
    late = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", late)
    assert turn_end(tokenizer) == 259
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    assert turn_end(tokenizer) is None


def test_stop_strings_by_hand():
    assert cut_at_stop("a b c", ["c", "b"]) == ("a ", True)
    assert cut_at_stop("a b c", ["x"]) == ("a b c", False)
    assert held_back("say STO", ["STOP"]) == 3
    assert held_back("say STOP", ["STOPPED"]) == 4
    assert held_back("say", ["STOP"]) == 0


def test_pieces_never_hold_half_a_character_nor_a_stop_string(tokenizer):
    pieces = Pieces(tokenizer, ["END"])
    ids = tokenizer("é€😀 EN ENDX").input_ids
    out = [pieces.push(t) for t in ids]
    assert out[:9] == ["", "é", "", "", "€", "", "", "", "😀"]
    assert "".join(out) + pieces.flush() == "é€😀 EN "
    half = Pieces(tokenizer)
    assert [half.push(ids[0]), half.flush()] == ["", "\ufffd"]
    held = Pieces(tokenizer, ["END"])
    assert "".join(held.push(t) for t in tokenizer("the EN").input_ids) == "the "
    assert held.flush() == "EN"


def test_stream_gives_the_same_text_and_stops_when_closed(tokenizer):
    text = "Grüße an alle 😀!"
    script = Scripted([*tokenizer(text).input_ids, 256])
    chat = [{"role": "user", "content": "hi"}]
    script.asked(encode_prompts(tokenizer, [(chat, None)]))
    pieces = list(stream(script, tokenizer, chat))
    assert "".join(pieces) == text
    assert len(pieces) > 10
    endless = Scripted(tokenizer("a").input_ids).asked(encode_prompts(tokenizer, [(chat, None)]))
    some = stream(endless, tokenizer, chat, max_new_tokens=100)
    assert next(some) == "a"
    some.close()  # returns once the model has stopped
    with pytest.raises(InputError, match="prompt 1 has 386 tokens"):
        list(stream(endless, tokenizer, [{"role": "user", "content": "x" * 367}]))


def test_encode_prompts_is_the_template_and_nothing_more(tokenizer):
    (ids,) = encode_prompts(tokenizer, [([{"role": "user", "content": "hi"}], None)])
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert encode_prompts(tokenizer, []) == []


def test_a_template_that_refuses_a_chat_is_one_sentence(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system role') }}")
    with pytest.raises(InputError, match=r"prompt 1: .* refuses this conversation \(no system role\)"):
        encode_prompts(tokenizer, [([{"role": "system", "content": "x"}], None)])


def test_answers_end_where_the_context_is_full(model, tokenizer):
    """Near the context's end a prompt gets what room there is, and its neighbours theirs."""
    generator = torch.Generator().manual_seed(2)
    ask = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in (10, 125, 127, 60)]
    wanted = [tokenizer.decode(plain(model, p, min(30, 128 - len(p)))) for p in ask]
    assert generate(model, tokenizer, ask, max_new_tokens=30) == wanted
    with pytest.raises(InputError, match=r"prompt 2 has 128 tokens: no room .* of 128 tokens"):
        generate(model, tokenizer, [[1], [2] * 128])
    with pytest.raises(InputError, match="prompt 1 is empty"):
        generate(model, tokenizer, [[]])


def test_batches_hold_a_bounded_number_of_tokens():
    lengths = [100] * 300 + [5000]
    batches = module._plan(lengths, 100, None, None)
    assert sorted(r for b in batches for r in b.rows) == list(range(301))
    assert all(max(lengths[r] for r in b.rows) * len(b.rows) + b.limit * len(b.rows) <= 16_384 for b in batches)
    assert len(batches) == math.ceil(300 / (16_384 // 200)) + 1


def test_peft_model_answers_with_its_adapter(tokenizer, prompts):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    before = generate(base, tokenizer, prompts, max_new_tokens=10)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.train()
    answers = generate(tuned, tokenizer, prompts, max_new_tokens=10)
    assert tuned.training
    tuned.eval()
    assert answers == [tokenizer.decode(plain(tuned, p, 10)) for p in prompts]
    assert answers != before


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1; it must be 0"),
        ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"top_k": -2}, "top_k is -2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"stop": [""]}, "stop is an empty string"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_sampling_values_are_named(tokenizer, wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        generate(None, tokenizer, [[1]], **wrong)


@pytest.mark.parametrize("name", ["gpt2", "llama3-hf-rebuilt", "phi-3-mini", "qwen2.5-hf-rebuilt"])
@pytest.mark.parametrize("template", ["own", "plain"])
def test_a_prompt_is_what_training_saw_before_the_answer(shared, name, template):
    """Token for token: a prompt that ended in a space, say, would be cut otherwise than the same text with its answer."""
    from transformers import AutoTokenizer

    from tunesmith.data.records import Chat, Origin
    from tunesmith.data.render import render
    from tunesmith.model.loading import PLAIN_TEMPLATE

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    if template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
        tokenizer.eos_token = tokenizer.eos_token or "</s>"
    elif tokenizer.chat_template is None:
        pytest.skip("this tokenizer has no template of its own")
    messages = [{"role": "user", "content": "Which city?"}, {"role": "assistant", "content": "Paris it is."}]
    examples, _ = render([Chat(messages, [False, True], Origin("f", 1))], tokenizer)
    (prompt,) = encode_prompts(tokenizer, [(messages[:1], None)])
    assert examples.ids[: int(examples.scored.argmax())].tolist() == prompt
    assert turn_end(tokenizer) in examples.ids[examples.scored]
