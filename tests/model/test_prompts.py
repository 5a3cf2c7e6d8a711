"""Prompt-learning adapters: how they begin, what they refuse, where their virtual tokens stand, and what the policy gives away."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from test_attention_gpu import later
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from builders import tiny_model
from tunesmith import registry
from tunesmith.errors import InputError
from tunesmith.model import attention, attention_cpu, attention_gpu, virtual
from tunesmith.model.adapter_size import saved_bytes
from tunesmith.model.attention_cpu import Terms
from tunesmith.model.generate import context_length
from tunesmith.model.head import target_logps
from tunesmith.model.layout import Preceded, precede, preceded, without
from tunesmith.model.policy import make_policy
from tunesmith.model.probe import flat_batch

LENGTHS, PARENTS = (9, 7, 4, 3, 5), (-1, -1, 1, 1, -1)


def attached(name, model=None, **options):
    torch.manual_seed(1)
    return registry.load("model.adapters", name).attach(model or tiny_model(), **options).model.eval()


def batch(lengths=LENGTHS, parents=PARENTS):
    ids = torch.randint(0, 97, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    return flat_batch(ids, lengths, parents)


@pytest.mark.parametrize("tokens", [None, 4, 30])
def test_a_text_is_what_the_tokens_begin_as(tiny_folder, tokens):
    """PEFT's TEXT, whose tokenizer it would have to find again: cut or repeated. By default one virtual token per token."""
    text = "Say it backwards."
    model, other = (AutoModelForCausalLM.from_pretrained(tiny_folder) for _ in range(2))
    ours = attached("prompt", model, text=text, tokens=tokens)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens or len(text),  # a tokenizer of bytes
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(tiny_folder),
    )
    theirs = get_peft_model(other, config)
    assert torch.equal(ours.get_prompt(1), theirs.get_prompt(1))
    assert "TEXT" not in str(ours.peft_config["default"].prompt_tuning_init)


def test_by_default_they_begin_as_tokens_of_the_vocabulary():
    model = attached("prompt")
    table = model.word_embeddings.weight
    assert all((table == row).all(1).any() for row in model.prompt_encoder["default"].embedding.weight)


@pytest.mark.parametrize("name", ["prefix", "prompt", "p-tuning"])
def test_only_the_virtual_tokens_are_trained_and_nothing_can_be_merged(name):
    model = attached(name)
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"prompt_encoder"}
    assert registry.load("model.adapters", name).MERGES is False
    with torch.device("meta"):
        twin = attached(name, tiny_model_on_meta())
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, twin)]
    assert trained[0] == trained[1]


def tiny_model_on_meta():
    from builders import tiny_config

    return AutoModelForCausalLM.from_config(tiny_config("llama"))


@pytest.mark.parametrize(
    ("name", "model", "options", "said"),
    [
        ("prompt", lambda: tiny_model(), {"text": "Hello"}, "not loaded from a folder"),
        ("prompt", lambda: tiny_model(), {"tokens": 300}, "adapter.tokens 300 fills the model's context of 256"),
        (
            "prefix",
            lambda: MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1)),
            {},
            "(mamba)",
        ),
        ("prefix", lambda: tiny_model("gpt2", num_key_value_heads=2), {}, "2 heads of 8, but they are 4 of 8"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(name, model, options, said):
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(")", r"\)")):
        attached(name, model(), **options)


def test_kinds_of_virtual_tokens_that_are_not_run_are_refused():
    from peft import CPTConfig

    model = get_peft_model(tiny_model(), CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2], cpt_mask=[1, 1]))
    with pytest.raises(InputError, match="CPT"):
        virtual.of(model)


def test_sequences_that_share_nothing_share_the_virtual_tokens():
    assert precede((9, 7), (-1, -1), 3) == Preceded((3, 9, 7), (-1, 0, 0), (0,))
    # the second is a prefix of two: it has its own, for links are one level deep
    assert precede(LENGTHS, PARENTS, 3) == Preceded((3, 9, 10, 4, 3, 5), (-1, 0, -1, 2, 2, 0), (0, 9))
    assert precede((6, 2, 2), (-1, 0, 0), 3) == Preceded((9, 2, 2), (-1, 0, 0), (0,))
    assert precede((6, 2, 5), (-1, 0, -1), 3) == Preceded((3, 9, 2, 5), (-1, -1, 1, 0), (0, 0))


@pytest.mark.parametrize("places", [(0,), (0, 0), (0, 3), (2, 5)])
def test_rows_put_in_are_taken_out_again_and_their_gradients_add_up(places):
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    out = preceded(x, rows, places)
    wanted = x
    for place in reversed(places):
        wanted = torch.cat([wanted[:place], rows, wanted[place:]])
    assert torch.equal(out, wanted)
    assert torch.equal(without(out, 3, places), x)
    assert torch.autograd.gradcheck(lambda a, b: preceded(a, b, places), (x, rows))


def test_gradients_of_copies_add_up_in_fp32():
    rows = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    out = preceded(torch.zeros(400, 1, dtype=torch.bfloat16), rows, tuple(range(400)))
    out.sum().backward()
    assert rows.grad.item() == 400  # in bf16, 256 + 1 is 256


@pytest.mark.parametrize("window", [None, 4])
def test_the_varlen_kernel_gives_what_the_tiles_give(monkeypatch, window):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", later)
    attention_gpu._keywords.cache_clear()
    layout = precede(LENGTHS, PARENTS, 6)
    q = torch.randn(28, 4, 8, dtype=torch.float64)
    k, v = torch.randn(2, 28, 2, 8, dtype=torch.float64)
    prefix = attention.Prefix(torch.randn(1, 2, 2, 6, 8, dtype=torch.float64), layout.places)
    q, k, v = prefix.before(0, q, k, v)
    plan, terms = attention.of_lengths(layout.lengths, layout.parents), Terms(0.3, window)
    found = attention_gpu.attention(q, k, v, plan, terms)
    attention_gpu._keywords.cache_clear()
    torch.testing.assert_close(found, attention_cpu.attention(q, k, v, None, plan, terms), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_layers_see_as_few_tokens_as_can_be_in_numbers_that_come_round_again(name):
    """Without links the virtual tokens run once, or not at all; all that runs is filled up to 64, and changes nothing."""
    model = attached(name, tokens=5)
    policy, _ = make_policy(model)
    shapes = []
    handle = policy.transformer.model.layers[0].mlp.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape[1]))
    with torch.no_grad():
        first, second = batch(), batch((30, 25, 20), (-1, -1, -1))
        filled = policy(first)
        policy(second)
        if name == "prompt":
            assert (policy.multiple, shapes) == (1, [64, 128])  # 28 + 2 x 5, and 75 + 5
            policy._fill = 1
        else:
            assert (policy.multiple, shapes) == (
                64,
                [28, 75],
            )  # batches come filled up, and virtual tokens are no tokens
        assert (policy(first) - filled).abs().max() <= 1e-6
        policy(second)
    handle.remove()
    assert shapes[2:] == ([38, 80] if name == "prompt" else [28, 75])


def test_its_size_is_told_without_a_random_number():
    """A resumed run's dropout would be another after it."""
    model = attached("p-tuning", encoder="LSTM", dropout=0.5, tokens=5).train()
    before = torch.get_rng_state()
    assert saved_bytes(model) == 4 * 5 * 32
    assert torch.equal(torch.get_rng_state(), before)
    assert model.prompt_encoder.training


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_switched_off_it_is_the_base(name):
    policy, _ = make_policy(attached(name))
    base, _ = make_policy(tiny_model().eval())
    with torch.no_grad(), policy.model.disable_adapter():
        assert torch.equal(policy(batch()), base(batch()))
    assert policy.virtual is not None
    assert context_length(policy.model) == 256 - 20
    assert context_length(base.model) == 256


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "phi"])
def test_hidden_states_and_head_are_what_log_probs_are_made_of(family):
    """With scale, bias and soft-cap; kept once, and only where they are asked for."""
    policy, _ = make_policy(tiny_model(family).eval())
    flat = batch()
    policy(flat)
    assert policy.take_hidden() is None
    policy.keep_hidden = True
    logps = policy(flat)
    hidden, head = policy.take_hidden(), policy.head
    assert policy.take_hidden() is None
    assert hidden.requires_grad
    z = hidden @ head.weight.t()
    z = head.scale * (z if head.bias is None else z + head.bias)
    z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
    wanted = torch.log_softmax(z, -1).gather(1, flat.target_ids[:, None])[:, 0]
    assert (logps - wanted).abs().max() <= 1e-5
    if head.bias is None:
        assert torch.equal(target_logps(hidden * head.scale, head.weight, flat.target_ids, head.softcap), logps)


def test_a_longest_example_and_virtual_tokens_beyond_the_context(tiny_folder, rows_file, refused, tmp_path):
    model = ("--model", tiny_folder, "--data", rows_file, "--output", tmp_path / "run", "--adapter", "prompt")
    said = refused("train", *model, "--set", "train.max_length=250", "--set", "train.device=cpu")
    assert said == (
        "train.max_length 250 and the adapter's 20 virtual tokens are beyond the model's context of 256 tokens; lower one of the two."
    )


def test_it_trains_evaluates_and_answers(tiny_folder, rows_file, tunesmith_cli, tmp_path):
    run = tmp_path / "run"
    keys = {"train.max_steps": 3, "train.activation_checkpointing": "full", "adapter.tokens": 5, "train.device": "cpu"}
    given = [a for key, value in keys.items() for a in ("--set", f"{key}={value}")]
    code, _, err = tunesmith_cli(
        "train", "--model", tiny_folder, "--data", rows_file, "--adapter", "prefix", "--output", run, *given, "--json"
    )
    assert code == 0, err
    assert "max_length: 251" in (run / "run.yaml").read_text()
    code, _, err = tunesmith_cli("generate", run, "--prompt", "red blue", "--max-new-tokens", 3, "--json")
    assert code == 0, err
