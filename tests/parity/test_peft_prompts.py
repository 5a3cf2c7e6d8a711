"""Virtual tokens in flat batches equal PEFT's own padded forward: prefix tuning, prompt tuning and P-tuning, whatever the family.

Log-probs of every target and gradients of everything that is trained, 1e-5 in fp32 and 1e-10 in float64; answers; files.
"""

from functools import partial

import pytest
import torch
from peft import PeftModel
from test_families import FLAT, LENGTHS, LINKED, LINKED_LENGTHS, LINKS, batch_of, gradients
from torch.nn.functional import rms_norm
from transformers import AutoModelForCausalLM

from builders import FAMILIES, byte_tokenizer, tiny_model
from tunesmith import registry
from tunesmith.model.activations import checkpoint_activations
from tunesmith.model.generate import generate
from tunesmith.model.lora import fuse
from tunesmith.model.policy import Policy, make_policy
from tunesmith.model.probe import flat_batch

WAYS = {
    "prefix": ("prefix", {}),
    "projected prefix": ("prefix", {"projection": True, "tokens": 5, "hidden": 7}),
    "prompt": ("prompt", {}),
    "p-tuning": ("p-tuning", {"tokens": 6}),
    "p-tuning by LSTM": ("p-tuning", {"encoder": "LSTM", "hidden": 9, "tokens": 6}),
}
# The builders give every config 2 key heads; these families have as many as query heads (or one), and PEFT believes the config.
KEY_HEADS = {f: {"num_key_value_heads": 4} for f in ("gpt2", "gpt_neox", "opt", "falcon_new", "falcon_alibi", "bloom")}
KEY_HEADS["falcon"] = {"num_key_value_heads": 1}
CONTINUED = (*LINKED_LENGTHS, 7), (*LINKED, -1)  # with a row that shares nothing
BATCHES = ((LENGTHS, LINKS), (LINKED_LENGTHS, LINKED), CONTINUED)


def adapted(family, way, dtype=torch.float32, **changes):
    name, options = WAYS[way]
    model = tiny_model(family, dtype, **KEY_HEADS.get(family, {}), **changes)
    torch.manual_seed(1)
    return registry.load("model.adapters", name).attach(model, **options).model.to(dtype).eval()


def oracle(model, batch):
    """Return the log-probs of the batch's targets by PEFT: every segment with its prefix before it, a right-padded row."""
    parts = batch.ids.split(batch.lengths)
    rows = [ids if p < 0 else torch.cat([parts[p], ids]) for ids, p in zip(parts, batch.parents, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -ids.shape[1] :]
    logps = torch.log_softmax(logits, -1, dtype=torch.float64)
    found = []
    for i, (row, part, parent) in enumerate(zip(rows, parts, batch.parents, strict=True)):
        mine = logps[i, : len(row) - 1].gather(1, row[1:, None])[:, 0]
        found.append(mine if parent < 0 else mine[-len(part) :])
    return torch.cat(found)


def assert_equal(policy, theirs, batches=BATCHES, tolerance=1e-5):
    for lengths, parents in batches:
        batch = batch_of(lengths, parents)
        wanted, found = oracle(theirs, batch), policy(batch)
        assert (found - wanted).abs().max() <= tolerance
        wanted_gradients, ours = gradients(theirs, wanted), gradients(policy.model, found)
        assert ours.keys() == wanted_gradients.keys()
        for name, gradient in wanted_gradients.items():
            assert gradient.any(), name
            assert (ours[name] - gradient).abs().max() <= tolerance * max(1, gradient.abs().max().item()), name


@pytest.mark.parametrize("way", ["prefix", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_as_it_runs(family, way):
    """Fused, as training runs it; 20 virtual tokens are more than the windows of 8, or the probe's 16."""
    model = adapted(family, way)
    fuse(model)
    policy, sentence = make_policy(model)
    assert (policy.flat, policy.trunk) == (family in FLAT, True), sentence
    assert_equal(policy, adapted(family, way))


@pytest.mark.parametrize("way", ["projected prefix", "p-tuning", "p-tuning by LSTM"])
def test_a_network_that_makes_the_virtual_tokens(way):
    policy, sentence = make_policy(adapted("gemma3", way))
    assert policy.flat, sentence
    assert_equal(policy, adapted("gemma3", way))


@pytest.mark.parametrize("way", ["prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "phi"])
def test_in_float64(family, way):
    """With norms that do not round to fp32 inside, as transformers' own do."""
    ours, theirs = (adapted(family, way, torch.float64) for _ in range(2))
    for norm in (m for model in (ours, theirs) for m in model.modules() if type(m).__name__.endswith("RMSNorm")):
        norm.forward = partial(
            rms_norm, normalized_shape=norm.weight.shape, weight=norm.weight, eps=norm.variance_epsilon
        )
    policy, sentence = make_policy(ours)
    assert policy.flat, sentence
    assert_equal(policy, theirs, tolerance=1e-10)


@pytest.mark.parametrize("trunk", [True, False])
@pytest.mark.parametrize("way", ["prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_padded(family, way, trunk):
    assert_equal(Policy(adapted(family, way), flat=False, trunk=trunk), adapted(family, way))


@pytest.mark.parametrize("how", ["full", "selective"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("way", ["prefix", "prompt"])
def test_layers_that_are_computed_again(way, flat, how):
    """PEFT's prefix cannot: its cache would have grown by the first pass."""
    model = adapted("qwen3", way)
    fuse(model)
    policy, _ = make_policy(model)
    policy.flat = flat
    if not flat:
        policy.transformer.set_attn_implementation(policy.own)
    checkpoint_activations(model, how)
    policy.train()
    assert_equal(policy, adapted("qwen3", way), BATCHES[2:])


@pytest.mark.parametrize("way", ["prefix", "prompt"])
def test_rotary_frequencies_change_by_all_positions(way):
    """Phi-3's long factors: virtual tokens count among the tokens beyond which they hold."""
    changes = {"original_max_position_embeddings": 32}
    policy, sentence = make_policy(adapted("phi3", way, **changes))
    assert policy.flat, sentence
    theirs = adapted("phi3", way, **changes)
    for lengths, parents in (((14, 13, 12, 4), (-1,) * 4), ((14, 12, 5, 3), (-1, -1, 1, -1))):
        batch = batch_of(lengths, parents)
        parts = batch.ids.split(lengths)
        for s, p in enumerate(parents):
            if s not in parents:
                row = torch.cat([parts[p], parts[s]]) if p >= 0 else parts[s]
                alone = oracle(theirs, flat_batch(row, (len(row),), (-1,)))[1 - len(parts[s]) :]
                found = policy(batch)[torch.from_numpy(batch.target_example == s)][1 - len(parts[s]) :]
                assert (found - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("way", ["prefix", "prompt"])
def test_in_bfloat16_it_is_as_near_to_exact_as_peft(way):
    exact = adapted("llama", way, torch.float64)
    errors = []
    batch = batch_of(LINKED_LENGTHS, LINKED)
    with torch.no_grad():
        wanted = oracle(exact, batch)
        for ours in (True, False):
            model = adapted("llama", way).to(torch.bfloat16)
            model.load_state_dict(exact.state_dict())
            model.prompt_encoder.float()  # as attach leaves it
            found = make_policy(model)[0](batch) if ours else oracle(model, batch)
            errors.append(float((found - wanted).abs().mean()))
    assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("way", ["prefix", "prompt", "p-tuning"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2", "bloom"])
def test_answers_are_those_of_peft_one_by_one(family, way):
    """In a batch too, where PEFT's own generate would put padding between the virtual tokens and the text."""
    model = adapted(family, way, vocab_size=260)
    model.generation_config.eos_token_id = None
    tokenizer = byte_tokenizer()
    seed = torch.Generator().manual_seed(0)
    prompts = [torch.randint(32, 127, (n,), generator=seed).tolist() for n in (3, 7, 12, 12, 9)]
    wanted = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        new = out[0, len(prompt) :].tolist()
        end = next((i for i, t in enumerate(new) if t in (256, 259)), len(new))  # eos, and the template's end of turn
        wanted.append(tokenizer.decode(new[:end], skip_special_tokens=True))
    assert generate(model, tokenizer, prompts, max_new_tokens=8) == wanted


@pytest.mark.parametrize("way", WAYS)
def test_the_file_reloads_in_plain_peft(way, tmp_path):
    model = adapted("qwen2", way)
    tiny_model("qwen2").save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "result")
    batch = batch_of(LINKED_LENGTHS, LINKED)
    with torch.no_grad():
        wanted = make_policy(model)[0](batch)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs = PeftModel.from_pretrained(base, tmp_path / "result").eval()
        assert (oracle(theirs, batch) - wanted).abs().max() <= 1e-5
        assert (make_policy(theirs)[0](batch) - wanted).abs().max() <= 1e-5
