"""New tokens: tokenizer and vocabulary grow together, only the new rows move, all of it exact, and plain PEFT loads the result."""

import json

import pytest
import torch
from safetensors.torch import load_file

from builders import byte_tokenizer, tiny_config, tiny_model
from tunesmith import config as configuration
from tunesmith.errors import InputError
from tunesmith.model import adapter_files, new_tokens, probe, token_files
from tunesmith.model.adapter_size import saved_bytes
from tunesmith.model.adapters import bottleneck, full, ia3, lora, prefix, trainable_tokens
from tunesmith.model.lora import fuse
from tunesmith.model.new_tokens import NewTokens, begin, extend, settle, train_rows
from tunesmith.model.policy import Policy, make_policy

V = 97
NEW = NewTokens((3, V, V + 1, V + 2), ((V, (1, 2)), (V + 1, (5,)), (V + 2, ())), V + 3)


def grown(family="llama", dtype=torch.float64, **changes):
    model = tiny_model(family, dtype=dtype, **changes)
    begin(model, NEW)
    return model


def batch():
    ids = torch.randint(0, V + 3, (40,), generator=torch.Generator().manual_seed(1))
    ids[5], ids[9], ids[12] = V, V + 1, 3  # as inputs and as targets
    return probe.flat_batch(ids, (25, 15), (-1, -1))


def moved_rows(model):
    torch.manual_seed(2)
    for name, p in model.named_parameters():
        if name.endswith("trained_rows"):
            p.data += 0.3 * torch.randn_like(p)
    return model


def weighted(policy):
    logps = policy(batch())
    (logps * torch.linspace(0.5, 2, len(logps))).sum().backward()
    return logps.detach()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3", "opt", "phi", "gpt2"])
def test_log_probs_and_gradients_of_the_rows_are_those_of_the_whole_matrices(family, tied):
    """gemma3 scales its embeddings, opt's are of another width, phi's head has a bias. 1e-12 in float64, and in chunks too."""
    model = lora.attach(grown(family, tie_word_embeddings=tied), r=2).model.eval()
    numbers = train_rows(model, NEW.ids)
    width = model.get_base_model().get_input_embeddings().weight.shape[1]
    assert numbers == len(NEW.ids) * width * (1 if tied else 2)
    moved_rows(model)
    fuse(model)
    policy, said = make_policy(model)
    assert policy.flat, said
    found = weighted(policy.eval())
    rows = {n: p.grad for n, p in model.named_parameters() if n.endswith("trained_rows")}
    others = {n: p.grad for n, p in model.named_parameters() if "lora_B" in n}
    model.zero_grad()
    base = model.get_base_model()
    before = [layer.weight.detach().clone() for layer in new_tokens._layers(base)]
    settled = settle(model)
    for layer, old in zip(new_tokens._layers(base), before, strict=True):
        kept = [i for i in range(V + 3) if i not in NEW.ids]
        assert torch.equal(layer.weight[kept], old[kept])
        layer.weight.requires_grad_(True)
    base.set_attn_implementation(policy.own)
    wanted = weighted(Policy(model, flat=False, trunk=False).eval())
    assert (found - wanted).abs().max() < 1e-12
    for name, (ids, _) in settled.items():
        expected = base.get_submodule(name).weight.grad[ids]
        (mine,) = [g for n, g in rows.items() if n.endswith(f"{name}.trained_rows")]
        assert (mine - expected).abs().max() <= 1e-12 * expected.abs().max()
    for name, p in model.named_parameters():
        if name in others:
            assert (others[name] - p.grad).abs().max() <= 1e-11 * (1 + p.grad.abs().max())


def test_the_head_in_chunks_and_in_bfloat16(monkeypatch):
    """Several chunks add up to one; in bf16 the rows' gradient is as near to float64 as bf16 is."""
    from tunesmith.model import head

    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 16, dtype=torch.float64), torch.randn(V, 16, dtype=torch.float64)
    ids, rows, targets = torch.tensor([3, 90]), torch.randn(2, 16, dtype=torch.float64), torch.randint(0, V, (300,))

    def run(dtype):
        h, r = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, rows))
        logps = head.target_logps(h, weight.to(dtype), targets, 10.0, (ids, r))
        logps.sum().backward()
        return logps.detach(), h.grad, r.grad

    whole = run(torch.float64)
    full_weight = weight.index_copy(0, ids, rows).detach().requires_grad_()
    oracle = head.target_logps(hidden, full_weight, targets, 10.0)
    oracle.sum().backward()
    assert (oracle - whole[0]).abs().max() < 1e-12
    assert (full_weight.grad[ids] - whole[2]).abs().max() < 1e-11
    monkeypatch.setattr(head, "MOST", 64)
    for a, b in zip(run(torch.float64), whole, strict=True):
        assert (a - b).abs().max() < 1e-11
    near = run(torch.bfloat16)[2].double()
    assert (near - whole[2]).abs().max() < 0.03 * whole[2].abs().max()


def test_switched_off_the_rows_are_their_start():
    model = bottleneck.attach(grown()).model.eval()
    ids = torch.tensor([[1, V, V + 1, 4]])
    wanted = model(ids).logits
    train_rows(model, NEW.ids)
    assert torch.equal(model(ids).logits, wanted)
    moved_rows(model)
    changed = model(ids).logits
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, wanted)
        assert torch.equal(new_tokens.whole_weight(model.get_output_embeddings()), model.get_output_embeddings().weight)
    assert torch.equal(model(ids).logits, changed)
    assert not torch.equal(changed, wanted)


def test_a_new_row_begins_as_the_mean_of_its_pieces_rows():
    old = tiny_model(tie_word_embeddings=False)
    weights = [layer.weight.detach().clone() for layer in new_tokens._layers(old)]
    model = grown(dtype=torch.float32, tie_word_embeddings=False)
    for layer, before in zip(new_tokens._layers(model), weights, strict=True):
        assert torch.equal(layer.weight[:V], before)
        assert torch.allclose(layer.weight[V], (before[1] + before[2]) / 2)
        assert torch.equal(layer.weight[V + 1], before[5])
        assert torch.allclose(layer.weight[V + 2], before.mean(0), atol=1e-6)
    assert model.config.vocab_size == V + 3


def test_tokens_and_their_pieces():
    tokenizer = byte_tokenizer()
    text = "the myocardium, <tool>zyrgon</tool> and myocardiums 心筋梗塞"
    whole = tokenizer.decode(tokenizer(text).input_ids)
    cut = tuple(tokenizer("zyrgon").input_ids)
    new, said = extend(tokenizer, ["myocardium", "<tool>", "zyrgon", "心筋", "e"], rows=260)
    assert new.size == 264
    assert new.ids == (*tokenizer("e").input_ids, 260, 261, 262, 263)  # "e" is one already
    assert dict(new.pieces)[262] == cut
    assert said[0] == "4 new tokens: the vocabulary grows from 260 to 264 rows"
    assert said[1].endswith("already tokens, their rows are trained as they are: e")
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == whole
    # whole words only, but for scripts without spaces: not in "myocardiums"
    assert [ids.count(i) for i in (260, 261, 262, 263)] == [1, 1, 1, 1]


def test_spare_rows_are_used_before_the_vocabulary_grows():
    tokenizer = byte_tokenizer()
    new, said = extend(tokenizer, ["zyrgon"], rows=320)
    assert (new.ids, new.size) == ((260,), 320)
    assert said == ["1 new tokens: the vocabulary has room for them in its 320 rows"]
    model = tiny_model(vocab_size=320)
    begin(model, new)
    weight = model.get_input_embeddings().weight
    assert len(weight) == 320
    assert torch.allclose(weight[260], weight[list(new.pieces[0][1])].mean(0))


def test_a_tokenizer_longer_than_the_vocabulary_gets_all_its_rows():
    new, said = extend(byte_tokenizer(), ["zyrgon"], rows=258)
    assert (new.ids, new.size) == ((258, 259, 260), 261)
    assert "the tokenizer had 2 tokens more than the model's vocabulary of 258 already; they get rows too" in said
    model = tiny_model(vocab_size=258)
    begin(model, new)
    assert len(model.get_input_embeddings().weight) == 261
    assert model.get_input_embeddings().weight.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3"])
def test_the_vocabulary_grows_on_meta_as_it_does_in_memory(family):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(family))
    new_tokens.grow(model, V + 3)
    adapted = lora.attach(model, r=2).model
    train_rows(adapted, NEW.ids)
    real = lora.attach(grown(family), r=2).model
    train_rows(real, NEW.ids)
    assert {n: p.shape for n, p in adapted.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert all(p.is_meta for p in adapted.parameters())


def test_full_training_has_no_rows_of_their_own_and_a_trained_embedding_is_refused():
    assert train_rows(full.attach(grown()).model, NEW.ids) == 0
    model = grown(tie_word_embeddings=False).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(InputError, match="which the adapter changes or trains already"):
        train_rows(model, NEW.ids)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["lora", "ia3", "bottleneck", "trainable_tokens"])
def test_the_folder_loads_here_and_in_plain_peft(name, tied, tmp_path):
    """LoRA's rows are in its own file, as PEFT's trainable_token_indices; others' in new_tokens, to be merged before."""
    from peft import PeftModel

    model = (
        {"lora": lora, "ia3": ia3, "bottleneck": bottleneck, "trainable_tokens": trainable_tokens}[name]
        .attach(grown(dtype=torch.float32, tie_word_embeddings=tied))
        .model
    )
    train_rows(model, NEW.ids)
    told = saved_bytes(model)
    moved_rows(model)
    torch.manual_seed(3)
    for n, p in model.named_parameters():
        if p.requires_grad and not n.endswith("trained_rows"):
            p.data += 0.1 * torch.randn_like(p)
    ids = torch.tensor([[1, V, V + 1, 4, V + 2, 3]])
    with torch.no_grad():
        wanted = model.eval()(ids).logits
        found = settle(model)
        assert torch.equal(model(ids).logits, wanted)
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        token_files.save(found, model, tmp_path)
        files = [load_file(f) for f in tmp_path.rglob("adapter_model.safetensors")]
        assert told == sum(t.numel() * t.element_size() for tensors in files for t in tensors.values())
        assert not any(n.endswith("embed_tokens.weight") for n in load_file(tmp_path / "adapter_model.safetensors"))
        assert token_files.ids(str(tmp_path)) == list(NEW.ids)
        adapter_files.check(str(tmp_path), tiny_model(tie_word_embeddings=tied), "base")
        here = adapter_files.load(tiny_model(tie_word_embeddings=tied), str(tmp_path)).eval()
        assert torch.equal(here(ids).logits, wanted)
        if name == "bottleneck":
            return
        plain = tiny_model(tie_word_embeddings=tied)
        plain.resize_token_embeddings(V + 3)
        if name in ("ia3", "bottleneck"):
            plain = PeftModel.from_pretrained(plain, tmp_path / "new_tokens").merge_and_unload()
        loaded = PeftModel.from_pretrained(plain, tmp_path).eval()
        assert (loaded(ids).logits - wanted).abs().max() < 1e-5
        assert (loaded.merge_and_unload()(ids).logits - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("prefix", 10 * 5e-5 * (2000 / 32) ** 0.781 / prefix.LEARNING_RATE), ("lora", 1), ("freeze", 10), ("vera", 1)],
)
def test_rows_have_a_rate_of_their_own(name, ratio):
    """At prefix tuning's, thousands of times full training's, they diverged."""
    model = lora.attach(grown(tie_word_embeddings=False), r=2).model
    train_rows(model, NEW.ids)
    found = new_tokens.ratios(model, name)
    assert found.keys() == {n for n, _ in model.named_parameters() if n.endswith("trained_rows")}
    assert len(found) == 2
    assert all(r == pytest.approx(ratio) for r in found.values())


@pytest.mark.parametrize("others", [["other"], ["none"]])
def test_an_adapter_with_rows_of_tokens_answers_alone(tiny_folder, tmp_path, others):
    """They are written into the one embedding, where another adapter, or the base, would find them."""
    from tunesmith.model import many
    from tunesmith.model.loading import ModelSource, load_model

    for name, rows in (("rows", True), ("other", False)):
        model = lora.attach(load_model(ModelSource(str(tiny_folder)), "float32"), r=2).model
        if rows:
            train_rows(model, [3])
        found = settle(model)
        model.save_pretrained(tmp_path / name, **({"save_embedding_layers": False} if rows else {}))
        token_files.save(found, model, tmp_path / name)
    folders = {n: None if n == "none" else str(tmp_path / n) for n in ["rows", *others]}
    with pytest.raises(InputError, match="rows brings rows of tokens of its own"):
        many.check_several(str(tiny_folder), folders)
    alone = many.check_several(str(tiny_folder), {"rows": folders["rows"]}, base=True)
    assert list(alone.choices) == ["rows"]


def test_rows_that_do_not_fit_are_refused(tmp_path):
    model = lora.attach(grown(), r=2).model
    train_rows(model, NEW.ids)
    found = settle(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    token_files.save(found, model, tmp_path)
    with pytest.raises(InputError, match=r"trainable_tokens_delta is \[4, 32\], that model needs \[4, 64\]"):
        adapter_files.check(str(tmp_path), tiny_model(hidden_size=64), "wide")
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    config["trainable_token_indices"]["model.embed_tokens"].pop()
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lists other tokens than adapter_model\.safetensors has rows of"):
        token_files.kept(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "model.new_tokens should be a list of new tokens, or a file with one per line"),
        (7, "model.new_tokens should be a list of new tokens"),
        (["a b", " a"], "a list of texts that neither begin nor end with a space"),
        (["a", ""], "a list of texts"),
        (["a", 3], "a list of texts"),
        (["zyrgon", "b", "zyrgon"], 'model.new_tokens names "zyrgon" twice'),
        ("nowhere.txt", "the file nowhere.txt of one token per line cannot be read"),
    ],
)
def test_lists_that_cannot_be_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        configuration.parse({"model": {"path": "starter", "new_tokens": given}})


def test_a_file_has_one_token_per_line(tmp_path):
    (tmp_path / "words.txt").write_text("zyrgon\n\n <tool> \n")
    found = configuration.parse({"model": {"new_tokens": str(tmp_path / "words.txt")}})
    assert found.model.new_tokens == ["zyrgon", "<tool>"]


@pytest.mark.parametrize(
    "adapter",
    ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "bottleneck", "trainable_tokens"))],
)
def test_a_run_and_what_follows_from_it(tiny_folder, tmp_path, adapter, monkeypatch):
    """Only promised parameters move; evaluate reads the run's result; another run goes on from it."""
    from tunesmith.evaluation.evaluator import evaluate
    from tunesmith.model.loading import load_model, resolve
    from tunesmith.training.api import train

    monkeypatch.chdir(tmp_path)
    rows = [
        {"instruction": w, "output": "zyrgon <tool> zyrgon"}
        for w in ("red", "blue", "green", "cat", "dog", "sun", "moon", "tree")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {"max_steps": 4, "max_length": 200, "dtype": "float32", "microbatch_tokens": 1024}
    asked = {
        "data": "rows.jsonl",
        "validation": {"path": "rows.jsonl"},
        "train": {**settings, "activation_checkpointing": "none"},
    }
    model = {"path": str(tiny_folder), "new_tokens": ["zyrgon", "<tool>"]}
    result = train({**asked, "model": model, "adapter": adapter, "output": "one"})
    measured = evaluate("one", data="rows.jsonl", metrics=["perplexity"])["metrics"]["perplexity"]["value"]
    assert measured == pytest.approx(result["metrics"]["perplexity"]["value"], rel=1e-4)
    before = load_model(resolve(str(tiny_folder)), "float32")
    after = load_model(resolve("one"), "float32")
    after = after.get_base_model() if hasattr(after, "get_base_model") else after
    old, now = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert len(now) == 262
    assert torch.equal(now[:260], old) == (adapter != "full")
    heard = []
    follow = {**asked, "model": "one", "output": "two"}
    train(follow | ({"adapter": "full"} if adapter == "full" else {}), listeners=[heard.append])
    losses = [e["metrics"]["perplexity"]["value"] for e in heard if e["event"] == "evaluate"]
    assert losses[0] == pytest.approx(measured, rel=1e-4)
    assert losses[-1] < losses[0]
    again = load_model(resolve("two"), "float32")
    again = again.get_base_model() if hasattr(again, "get_base_model") else again
    assert len(again.get_input_embeddings().weight) == 262
    assert not torch.equal(again.get_input_embeddings().weight[260:], now[260:])
