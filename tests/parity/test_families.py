"""Every family, however it is run (flat where the probe allows it, padded, by its own logits), equals transformers' padded forward.

Log-probs of every token and gradients of every parameter, 1e-5 in fp32, with sequences longer than the windows and with prefix
links. The configs are shrunk from real ones; what is left of those is held to them.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from builders import FAMILIES, tiny_config, tiny_model
from tunesmith.model import attention
from tunesmith.model.lora import fuse
from tunesmith.model.policy import Policy, make_policy
from tunesmith.model.probe import flat_batch

FLAT = {
    "llama",
    "llama3",
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
} | {
    "mixtral",
    "qwen3_moe",
    "cohere",
    "granite",
    "phi",
}
LENGTHS, LINKS = (26, 21, 12, 9, 3, 2), (-1, -1, -1, -1, -1, -1)
LINKED_LENGTHS, LINKED = (
    (20, 13, 9, 6, 4),
    (-1, -1, 0, 0, 1),
)  # windows of 8 reach from an answer into its prompt and end there


def batch_of(lengths, parents, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return flat_batch(torch.randint(0, 97, (sum(lengths),), generator=generator), lengths, parents)


def oracle(model, batch):
    """Return the log-probs of the batch's targets by transformers, every segment with its prefix before it a right-padded row."""
    parts = batch.ids.split(batch.lengths)
    rows = [ids if p < 0 else torch.cat([parts[p], ids]) for ids, p in zip(parts, batch.parents, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    logps = torch.log_softmax(model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float(), -1)
    found = []
    for i, (row, part, parent) in enumerate(zip(rows, parts, batch.parents, strict=True)):
        mine = logps[i, : len(row) - 1].gather(1, row[1:, None])[:, 0]
        found.append(mine if parent < 0 else mine[-len(part) :])
    return torch.cat(found)


def gradients(model, logps):
    """Gradients of a random combination of the log-probs, every parameter's."""
    model.zero_grad()
    (logps * torch.randn(len(logps), generator=torch.Generator().manual_seed(1))).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(family, policy, batch, **changes):
    theirs = tiny_model(family, **changes).eval()
    wanted = oracle(theirs, batch)
    wanted_gradients = gradients(theirs, wanted)
    found = policy(batch)
    assert (found - wanted).abs().max() <= 1e-5
    ours = gradients(policy.model, found)
    assert ours.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max().item()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_as_it_runs(family):
    """Fused, as training runs it; what it is compared with is not."""
    model = tiny_model(family).eval()
    fuse(model)
    policy, sentence = make_policy(model)
    assert (policy.flat, policy.trunk) == (family in FLAT, True), sentence
    assert_equal(family, policy, batch_of(LENGTHS, LINKS))
    assert_equal(family, policy, batch_of(LINKED_LENGTHS, LINKED))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_padded(family):
    """By hidden states and output layer, and by the model's own logits."""
    for trunk in (True, False):
        policy = Policy(tiny_model(family).eval(), flat=False, trunk=trunk)
        assert_equal(family, policy, batch_of(LENGTHS, LINKS))
        assert_equal(family, policy, batch_of(LINKED_LENGTHS, LINKED))


CAPS = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.5}  # a tiny model's scores are far below 50


def test_soft_caps_that_bite():
    policy, sentence = make_policy(tiny_model("gemma2", **CAPS).eval())
    assert policy.flat, sentence
    assert_equal("gemma2", policy, batch_of(LINKED_LENGTHS, LINKED), **CAPS)


@pytest.mark.parametrize(
    ("family", "keyword"),
    [
        ("mistral", "sliding_window"),
        ("gemma2", "sliding_window"),
        ("gemma2", "softcap"),
        ("gemma3", "sliding_window"),
        ("gpt_oss", "sliding_window"),
        ("gpt_oss", "s_aux"),
        ("granite", "scaling"),
    ],
)
def test_the_probe_sees_what_flat_attention_would_leave_out(family, keyword, monkeypatch):
    """Windows of any length: a real one is longer than the probe, which shortens it."""

    def forgetful(*inputs, segments, **keywords):
        keywords[keyword] = None
        return flat_attention(*inputs, segments=segments, **keywords)

    changes = CAPS if family == "gemma2" else {}
    if "sliding_window" in FAMILIES[family]:
        changes = {**changes, "sliding_window": 4096, "max_position_embeddings": 8192}
    model = tiny_model(family, **changes).eval()
    fuse(model)
    assert make_policy(model)[0].flat
    flat_attention = attention.flat_attention
    monkeypatch.setattr(attention, "flat_attention", forgetful)
    model = tiny_model(family, **changes).eval()
    fuse(model)
    policy, sentence = make_policy(model)
    assert not policy.flat
    assert "log-probs differ" in sentence
    config = policy.transformer.config
    assert getattr(config, "sliding_window", None) in (None, 4096)  # as it was


def test_rows_on_both_sides_of_the_length_where_rotary_frequencies_change():
    """Phi-3's long factors are for a whole call of the model: rows that need the short ones must not run beside longer ones."""
    changes = {"original_max_position_embeddings": 12}
    policy, sentence = make_policy(tiny_model("phi3", **changes).eval())
    assert policy.flat, sentence
    theirs = tiny_model("phi3", **changes).eval()
    one_side = (((12, 12), (-1, -1)), ((8, 9, 7), (-1, 0, 0)))  # a prefix of 8 alone is no sequence
    for lengths, parents in ((LENGTHS, LINKS), (LINKED_LENGTHS, LINKED), ((9, 4, 2), (-1, 0, 0)), *one_side):
        batch = batch_of(lengths, parents)
        parts = batch.ids.split(lengths)
        with torch.no_grad():
            wanted = [
                oracle(theirs, flat_batch(row, (len(row),), (-1,)))[-(n if p >= 0 else n - 1) :]
                for row, n, p in (
                    (torch.cat([parts[p], ids]) if p >= 0 else ids, len(ids), p)
                    for ids, p in zip(parts, parents, strict=True)
                )
            ]
            found = policy(batch).split([len(w) for w in wanted])
        shared = set(parents) - {-1}
        for segment, (ours, alone) in enumerate(zip(found, wanted, strict=True)):
            if (
                segment not in shared
            ):  # a prefix, and what its last token predicts, is that of the first row that continues it
                assert (ours - alone)[1 if parents[segment] >= 0 else 0 :].abs().max() <= 1e-5
    batch = batch_of(LENGTHS, LINKS)
    assert (oracle(theirs, batch) - policy(batch)).abs().max() > 1e-3  # together they do differ


def test_attention_dropout_is_there_in_training_and_the_gradients_are_its_own():
    """GPT-2 has it. The mean over draws of what is computed with dropout is near what is computed by transformers with dropout."""
    changes = {"attn_pdrop": 0.3, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    policy, sentence = make_policy(tiny_model("gpt2", **changes))
    assert policy.flat, sentence
    batch = batch_of((12, 9), (-1, -1))
    theirs = tiny_model("gpt2", **changes).train()
    policy.train()
    with torch.no_grad():
        ours = torch.stack([policy(batch) for _ in range(300)])
        wanted = torch.stack([oracle(theirs, batch) for _ in range(300)])
    error = (ours.var(0) / 300 + wanted.var(0) / 300).sqrt()
    assert ours.std(0)[1:].min() > 0.01
    assert ((ours.mean(0) - wanted.mean(0)) / (error + 1e-6)).abs().max() < 4.5


CONFIGS = {
    "llama3": "Llama-3.1-8B-Instruct",
    "qwen2": "qwen2.5_0.5b",
    "qwen3": "Qwen3-8B",
    "mistral": "mistral_7b_instruct",
    "gemma2": "gemma_2_9b",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "gpt_oss": "gpt_oss_20b",
    "mixtral": "mixtral",
    "qwen3_moe": "qwen3_30b",
    "stablelm": "stablelm_3b",
}
KEYS = [
    "hidden_act",
    "hidden_activation",
    "rms_norm_eps",
    "layer_norm_eps",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "tie_word_embeddings",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_sliding_window",
    "norm_topk_prob",
    "swiglu_limit",
    "output_router_logits",
    "decoder_sparse_step",
    "mlp_only_layers",
    "partial_rotary_factor",
    "use_qkv_bias",
    "embd_pdrop",
    "resid_pdrop",
]


@pytest.mark.parametrize("family", CONFIGS)
def test_the_tiny_configs_are_the_real_ones_but_for_their_sizes(family, shared):
    from transformers import AutoConfig

    given = json.loads((shared / "configs" / f"{CONFIGS[family]}.json").read_text())
    for key in ("auto_map", "quantization_config", "torch_dtype"):
        given.pop(key, None)
    real = AutoConfig.for_model(given.pop("model_type"), **given)
    tiny = tiny_config(family)
    assert type(tiny) is type(real)
    for key in KEYS:
        if hasattr(tiny, key):  # JSON files keep words that mean nothing to the family
            assert getattr(tiny, key) == getattr(real, key), key
    assert set(getattr(tiny, "layer_types", None) or ()) == set(getattr(real, "layer_types", None) or ())
    assert (tiny.num_attention_heads == tiny.num_key_value_heads) == (
        real.num_attention_heads == real.num_key_value_heads
    )
    assert rope_kinds(tiny) == rope_kinds(real)


def rope_kinds(config):
    """The rotary embedding's parameters but for lengths and factors that belong to them."""
    sizes = {"type", "original_max_position_embeddings", "short_factor", "long_factor", "rope_theta"}
    given = config.rope_parameters
    each = given if "full_attention" in given else {"": given}
    return {layer: {k: v for k, v in kind.items() if k not in sizes} for layer, kind in each.items()}


def test_the_page_says_what_the_probe_says():
    place = Path(__file__).resolve().parents[2] / "docs" / "families.py"
    spec = importlib.util.spec_from_file_location("families", place)
    families = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(families)
    written = families.PAGE.read_text()
    if families.versions() not in written:
        pytest.skip(f"the page is not of {families.versions()}")
    assert families.page() == written
