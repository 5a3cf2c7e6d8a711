"""Reward models: scores and gradients equal transformers' own padded forward, and what is said of models that are none."""

import json

import numpy as np
import pytest
import torch

from builders import byte_tokenizer, random_answers, random_examples, tiny_config, tiny_model, tiny_scorer, with_lora
from tunesmith.data.records import Chat, Origin
from tunesmith.errors import InputError
from tunesmith.model import reward_config
from tunesmith.model.loading import ModelSource, load_model, resolve
from tunesmith.model.lora import fuse
from tunesmith.model.reward import RewardPolicy, from_causal, head_of, load_reward, make_reward_policy
from tunesmith.model.reward_scores import score_chats, score_examples, unpadded
from tunesmith.training.batch import microbatches

PAD = 96
FLAT = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "gpt_oss",
    "mixtral",
]
PADDED = ["bloom", "falcon", "stablelm"]


def padded_scores(model, examples):
    """The scores by transformers on one right-padded batch: the oracle."""
    longest = int(examples.lengths.max())
    ids, mask = torch.full((len(examples), longest), PAD), torch.zeros(len(examples), longest, dtype=torch.int64)
    for i, (a, b) in enumerate(zip(examples.offsets[:-1], examples.offsets[1:], strict=True)):
        ids[i, : b - a], mask[i, : b - a] = torch.from_numpy(examples.ids[a:b].astype(np.int64)), 1
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = PAD
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def pairs(n=6, answers=2, seed=1):
    """Rows whose prompts are long enough to be shared, and without the padding token."""
    return random_answers(n, answers, seed=seed, vocabulary=PAD)


@pytest.mark.parametrize("family", FLAT + PADDED)
def test_scores_equal_transformers_own_forward(family):
    examples = pairs()
    with torch.no_grad():
        wanted = padded_scores(tiny_scorer(family, attributes=2).eval(), examples).double().numpy()
    policy, sentence = make_reward_policy(tiny_scorer(family, attributes=2))
    assert sentence.startswith("flat" if family in FLAT else "padded")
    np.testing.assert_allclose(score_examples(policy, examples, tokens=150), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("links", [True, False])
def test_gradients_equal_a_padded_forward(adapter, links):
    examples = pairs()
    # transformers' norms round to fp32 inside: of a prefix that runs once they round a sum, else what is summed
    bound = 1e-6 if links else 1e-10
    attach = (lambda model: model) if adapter == "full" else with_lora
    oracle, ours = attach(tiny_scorer(dtype=torch.float64)), attach(tiny_scorer(dtype=torch.float64))
    scores = padded_scores(oracle, examples)[:, 0]
    torch.nn.functional.softplus(scores[1::2] - scores[::2]).sum().backward()
    fuse(ours)
    policy, _ = make_reward_policy(ours)
    total = 0.0
    for batch in microbatches(examples, np.arange(len(examples)), 150, links):
        found = policy(batch)[:, 0]
        loss = torch.nn.functional.softplus(found[batch.answers.second] - found[batch.answers.first]).sum()
        loss.backward()
        total += loss.item()
    assert any(set(b.parents) != {-1} for b in microbatches(examples, np.arange(len(examples)), 150, True))
    theirs = {n: p.grad for n, p in oracle.named_parameters() if p.grad is not None}
    mine = {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}
    assert mine.keys() == theirs.keys()
    assert any("score" in name for name in mine)
    for name, gradient in theirs.items():
        assert (mine[name] - gradient).abs().max() <= bound * max(1, gradient.abs().max().item()), name


def test_in_bf16_the_head_loses_nothing_to_rounding():
    """Two scores near 100 that differ by 1/8: bf16 would make both the same, 100 or 100.5."""
    policy, _ = make_reward_policy(tiny_scorer(dtype=torch.bfloat16))
    head = head_of(policy.transformer)
    hidden = torch.zeros(2, head.in_features, dtype=torch.bfloat16)
    hidden[:, 0], hidden[1, 1] = 100.0, 1.0
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, 0], head.weight[0, 1] = 1.0, 0.125
    found = policy._scored(hidden)
    assert found.dtype == torch.float32
    assert (found[1] - found[0]).item() == 0.125


def test_a_model_that_reads_both_ways_is_asked_row_by_row():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=1
    )
    model = BertForSequenceClassification(config).eval()
    policy, sentence = make_reward_policy(model)
    policy.eval()
    assert sentence.startswith("each answer alone")
    examples = random_examples(4)
    found = score_examples(policy, examples)
    for i, (a, b) in enumerate(zip(examples.offsets[:-1], examples.offsets[1:], strict=True)):
        with torch.no_grad():
            wanted = model(torch.from_numpy(examples.ids[a:b].astype(np.int64))[None]).logits[0, 0].item()
        assert found[i, 0] == pytest.approx(wanted, abs=1e-6)


def test_the_probe_leaves_no_trace_in_the_head():
    model = tiny_scorer()
    before = model.score.weight.detach().clone()
    make_reward_policy(model)
    assert torch.equal(model.score.weight, before)
    assert model.score.weight.requires_grad


@pytest.fixture(scope="module")
def scorer_folder(tmp_path_factory):
    """A saved reward model of two attributes, with a tokenizer of bytes that pads with another token than it ends answers with."""
    folder = tmp_path_factory.mktemp("scorer")
    model = tiny_scorer(attributes=2, vocab_size=260)
    reward_config.describe(model.config, (("helpful", 0.75), ("harmless", 0.25)))
    tokenizer = byte_tokenizer()
    reward_config.set_padding(model.config, tokenizer, {tokenizer("\n").input_ids[0]})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(question, answer, more=()):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}, *more]
    return Chat(messages, [m["role"] == "assistant" for m in messages], Origin("x", 1))


def test_chats_are_scored_as_transformers_does_with_their_template(scorer_folder):
    """The tokens of the whole template, batched and padded by the saved tokenizer; weights combine the scores."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(scorer_folder)
    tokenizer = AutoTokenizer.from_pretrained(scorer_folder)
    chats = [chat("Who?", "Me."), chat("Who?", "It is I, and nobody else."), chat("2+2?", "4")]
    inputs = tokenizer.apply_chat_template(
        [c.messages for c in chats], padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        wanted = model(**inputs).logits.numpy()
    policy, own = load_reward(resolve(str(scorer_folder)), "float32", "cpu")
    assert policy.attributes == (("helpful", 0.75), ("harmless", 0.25))
    scores, combined = score_chats(policy, own, chats)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    np.testing.assert_allclose(combined, wanted @ [0.75, 0.25], atol=1e-5)


def test_what_follows_the_last_answer_is_not_scored_and_what_is_too_long_is_none(scorer_folder):
    policy, tokenizer = load_reward(resolve(str(scorer_folder)))
    plain, followed = chat("Who?", "Me."), chat("Who?", "Me.", [{"role": "user", "content": "Really?"}])
    long = chat("Who?", "Me " * 200)
    scores, combined = score_chats(policy, tokenizer, [long, plain, followed])
    assert np.isnan(scores[0]).all()
    assert np.isnan(combined[0])
    np.testing.assert_array_equal(scores[1], scores[2])


def test_padding_at_the_end_of_a_row_is_no_part_of_it():
    """transformers takes the rightmost token that is no padding: where answers end with the padding token, an earlier one."""
    examples = pairs()
    ends = examples.offsets[1:] - 1
    examples.ids[ends[:3]] = PAD
    examples.ids[ends[0] - 1] = PAD
    cut = unpadded(examples, PAD)
    assert (examples.lengths - cut.lengths).tolist()[:4] == [min(2, examples.lengths[0] - 2), 1, 1, 0]
    policy, _ = make_reward_policy(tiny_scorer())
    with torch.no_grad():
        wanted = padded_scores(tiny_scorer().eval(), examples)
    np.testing.assert_allclose(score_examples(policy, cut), wanted, atol=1e-5)
    assert unpadded(examples, None) is examples


def test_a_new_head_is_zero_and_the_trunk_that_of_the_base(tiny_folder):
    source = ModelSource(str(tiny_folder), attributes=(("helpful", 0.5), ("harmless", 0.5)))
    model, causal = load_model(source, "float32"), load_model(ModelSource(str(tiny_folder)), "float32")
    assert model.score.weight.shape == (2, 32)
    assert not model.score.weight.any()
    assert model.config.id2label == {0: "helpful", 1: "harmless"}
    other = from_causal(causal, source.attributes)
    trunk, again = model.base_model.state_dict(), other.base_model.state_dict()
    assert all(torch.equal(trunk[name], again[name]) for name in trunk)
    assert not other.score.weight.any()
    policy, _ = make_reward_policy(model)
    assert not score_examples(policy, random_examples(3)).any()


def test_quantised_base_scores_as_its_dequantised_self(tiny_folder):
    from tunesmith.model.quantize import Quantization, dequantized, is_quantized

    pytest.importorskip("bitsandbytes")
    source = ModelSource(str(tiny_folder), quantize=Quantization("nf4"), attributes=(("reward", 1.0),))
    model = load_model(source, "float32")
    assert is_quantized(model.model.layers[0].mlp.up_proj)
    assert not is_quantized(model.score)
    model.score.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    plain = load_model(ModelSource(str(tiny_folder), attributes=(("reward", 1.0),)), "float32")
    with torch.no_grad():
        for name, layer in model.named_modules():
            if is_quantized(layer):
                plain.get_submodule(name).weight.copy_(dequantized(layer))
        plain.score.weight.copy_(model.score.weight)
    examples = pairs()
    found, wanted = (score_examples(make_reward_policy(m)[0], examples) for m in (model, plain))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_models_that_are_no_reward_models_are_refused(tiny_folder, tmp_path):
    with pytest.raises(InputError, match=r"is no reward model \(LlamaForCausalLM\): it writes text and scores none"):
        load_reward(resolve(str(tiny_folder)))
    folder = tmp_path / "adapter"
    with_lora(load_model(ModelSource(str(tiny_folder)), "float32")).save_pretrained(folder)
    with pytest.raises(InputError, match=r"adapter of a model that writes \(CAUSAL_LM\), no reward model"):
        load_reward(ModelSource(str(tiny_folder), str(folder)))


def test_reward_models_write_nothing(scorer_folder):
    with pytest.raises(InputError, match=r"is a reward model \(LlamaForSequenceClassification\): it scores answers"):
        load_model(ModelSource(str(scorer_folder)))


def test_a_family_without_classification_is_refused(tmp_path):
    tiny_config("cohere").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no sequence classification of cohere models"):
        reward_config.made(tiny_config("cohere"), reward_config.ONE, None, "my/model")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, (("reward", 1.0),)),
        ("helpful", (("helpful", 1.0),)),
        (["a", "b"], (("a", 0.5), ("b", 0.5))),
        ({"a": 0.7, "b": -1}, (("a", 0.7), ("b", -1.0))),
    ],
)
def test_attributes(given, wanted):
    assert reward_config.asked(given) == wanted


@pytest.mark.parametrize(
    ("given", "said"), [({}, "should name"), (["a", "a"], "twice"), ({"a": 0}, "all weights are 0")]
)
def test_attributes_that_are_none(given, said):
    with pytest.raises(InputError, match=said):
        reward_config.asked(given)


def test_attributes_survive_the_config(tmp_path):
    from transformers import AutoConfig

    attributes = (("helpful", 0.7), ("harmless", 0.3))
    reward_config.describe(tiny_config("llama"), attributes).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert reward_config.attributes_of(config) == attributes
    assert config.problem_type == "regression"
    assert config.num_labels == 2
    assert reward_config.attributes_of(tiny_config("llama")) == (("reward_0", 0.5), ("reward_1", 0.5))


def test_attributes_of_one_that_is_trained_on():
    found = (("a", 0.5), ("b", 0.5))
    assert reward_config.agreed(found, None, "m") == found
    assert reward_config.agreed(found, {"b": 1.0, "a": 2.0}, "m") == (("a", 2.0), ("b", 1.0))
    assert reward_config.agreed((("reward", 1.0),), "helpful", "m") == (("helpful", 1.0),)
    with pytest.raises(InputError, match="m scores a, b, but objective"):
        reward_config.agreed(found, ["a", "c"], "m")


def test_padding_is_no_token_that_ends_an_answer():
    tokenizer = byte_tokenizer()
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert reward_config.padding(tokenizer, {eos}) == pad
    assert reward_config.padding(tokenizer, {pad}) == eos  # the first special one left
    tokenizer.pad_token = "<eos>"
    assert reward_config.padding(tokenizer, {eos}) not in (eos, None)
    assert reward_config.padding(tokenizer, set(range(300))) is None
    config = tiny_config("llama")
    assert "one at a time" in reward_config.set_padding(config, tokenizer, set(range(300)))
    assert config.pad_token_id is None


def test_the_head_of_an_adapter_can_be_switched_off():
    model = with_lora(tiny_scorer())
    trained = head_of(model.get_base_model())
    assert trained.weight.requires_grad
    with model.disable_adapter():
        assert head_of(model.get_base_model()) is not trained


def test_config_beside_an_adapter_says_nothing_of_the_base_in_memory(tmp_path):
    model = tiny_scorer()
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    reward_config.save(model, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in saved
    assert saved["architectures"] == ["LlamaForSequenceClassification"]
    assert reward_config.scores(tmp_path)


def test_causal_models_have_no_head():
    assert head_of(tiny_model()) is None
    assert isinstance(make_reward_policy(tiny_scorer())[0], RewardPolicy)
