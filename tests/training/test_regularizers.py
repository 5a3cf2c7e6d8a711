"""What keeps a model near where it began: the divergence and its gradients against autograd, the pull by hand, and both in a run."""

import math
from itertools import pairwise

import numpy as np
import pytest
import test_parallel
import torch
from loops import events, make_loop, weights
from test_parallel import asked  # noqa: F401 (a fixture)

import tunesmith
from builders import random_examples, tiny_model, with_lora
from tunesmith import registry
from tunesmith.config import parse
from tunesmith.errors import InputError
from tunesmith.model import divergence, head
from tunesmith.model.activations import checkpoint_activations
from tunesmith.model.lora import fuse
from tunesmith.model.new_tokens import train_rows
from tunesmith.model.policy import make_policy
from tunesmith.model.quantize import Quantization
from tunesmith.model.quantized_layers import quantize_model
from tunesmith.run import open_run
from tunesmith.training.batch import collate
from tunesmith.training.regularizers import decay_to_base, kl_to_base


def naive(hidden, weight, base_hidden, base_weight, softcap):
    def log_softmax(h, w):
        z = h @ w.t()
        return torch.log_softmax(z if softcap is None else softcap * torch.tanh(z / softcap), -1)

    log_p, log_q = log_softmax(base_hidden, base_weight), log_softmax(hidden, weight)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def test_the_divergence_by_hand():
    """p = (1/2, 1/4, 1/4) and q = (1/4, 1/4, 1/2): KL(p || q) = 1/2 log 2 + 0 - 1/4 log 2 = 1/4 log 2."""
    logits = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]]) * math.log(2)
    eye = torch.eye(3)
    found = divergence.kl_from_base(logits[1:], eye, logits[:1], eye)
    assert found.item() == pytest.approx(0.25 * math.log(2), abs=1e-7)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("trained", [False, True])
def test_its_gradients_are_autograd_s(trained, softcap, monkeypatch):
    monkeypatch.setattr(head, "MOST", 64)  # several chunks
    g = torch.Generator().manual_seed(0)
    h, w, b, v = (torch.randn(n, 8, generator=g, dtype=torch.float64) for n in (150, 33, 150, 33))
    rows = torch.rand(150, generator=g, dtype=torch.float64)
    results = []
    for function in (divergence.kl_from_base, naive):
        hidden, weight = h.clone().requires_grad_(), w.clone().requires_grad_(trained)
        found = function(hidden, weight, b, v, softcap)
        (found * rows).sum().backward()
        results.append([found.detach(), hidden.grad, weight.grad])
    for ours, wanted in zip(*results, strict=True):
        assert (ours is None and wanted is None) or (ours - wanted).abs().max() < 1e-10
    assert (results[0][2] is not None) == trained


def test_of_the_model_itself_nothing_is_added():
    h, w = torch.randn(5, 8, requires_grad=True), torch.randn(20, 8)
    found = divergence.kl_from_base(h, w, h.detach(), w)
    found.sum().backward()
    assert found.detach().abs().max() == 0
    assert h.grad.abs().max() == 0


def test_the_pull_towards_the_start_by_hand(tmp_path):
    """With w 0.5 away from its start, rate 0.1 and weight 2, a step takes a fifth of the way back; a skipped one takes none."""
    model = tiny_model()
    pull = decay_to_base.make(weight=2.0)
    from tunesmith.training.masters import Masters

    masters = Masters(model)
    assert "84.9 KiB" in pull.begin(model, masters, 10)  # 21,728 weights in fp32
    name, first = next(iter(masters.masters.items()))
    start = first.detach().clone()
    with torch.no_grad():
        first += 0.5
    facts = pull.after_step(1, 0.1, torch.tensor(1.0))
    assert torch.equal(first, start + 0.5)
    assert float(facts["distance_to_base"]) == pytest.approx(0.5 * math.sqrt(first.numel()), rel=1e-5)
    pull.after_step(2, 0.1, torch.tensor(0.0))
    assert torch.allclose(masters.masters[name], start + 0.4, atol=1e-6)


def test_a_run_that_is_pulled_stays_nearer_and_tells_how_near(tmp_path):
    ends = {}
    for weight in (None, 5.0):
        with open_run(tmp_path / str(weight)) as run:
            companions = [] if weight is None else [decay_to_base.make(weight=weight)]
            loop = make_loop(run, companions=companions)
            start = weights(loop)
            loop.train()
        ends[weight] = math.sqrt(sum(float((p - start[n]).square().sum()) for n, p in weights(loop).items()))
    assert ends[5.0] < 0.9 * ends[None]
    told = [e["distance_to_base"] for e in events(tmp_path / "5.0", "step")]
    assert len(told) == 10
    # what is told of the last step is the distance before that step's pull
    assert ends[5.0] <= told[-1] < ends[None]


def test_a_resumed_run_is_pulled_to_the_same_start(tmp_path):
    def run_to(name, steps, resume=None):
        with open_run(tmp_path / name) as run:
            loop = make_loop(run, companions=[decay_to_base.make(weight=5.0)], checkpoint_every=5)
            if resume:
                loop.resume(resume)
            loop.train()
        return weights(loop)

    whole = run_to("whole", 10)
    resumed = run_to("resumed", 10, tmp_path / "whole" / "checkpoints" / "step-5")
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def logits_of(policy, examples):
    """Return the model's own logits that predict each example's scored tokens, example by example, (N,V)."""
    model, found = policy.model, []
    policy.transformer.set_attn_implementation("eager")
    for i in range(len(examples.offsets) - 1):
        part = slice(examples.offsets[i], examples.offsets[i + 1])
        ids = torch.from_numpy(examples.ids[part]).long()
        scored = torch.from_numpy(examples.scored[part])[1:].nonzero()[:, 0]
        found.append(model(ids[None]).logits[0][scored])
    if policy.flat:
        policy.transformer.set_attn_implementation("flat")
    return torch.cat(found)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "cohere"])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_term_of_a_policy_that_moved_is_that_of_the_whole_logits(family, adapter):
    """With soft-caps, biases and logit scales; the base is the model as it was, though the weights have moved since."""
    examples = random_examples(n=5)
    model = tiny_model(family, torch.float64)
    if adapter:
        model = with_lora(model)
    else:
        model.requires_grad_(True)
    policy, _ = make_policy(model)
    term = kl_to_base.make(weight=0.25)
    sentence = term.begin(policy, None, 10)
    assert "frozen copy" in sentence  # with_lora moves its B from zero
    with torch.no_grad():
        wanted_log_p = torch.log_softmax(logits_of(policy, examples), -1)
        for p in policy.parameters():
            if p.requires_grad:
                p += 0.02 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
    log_q = torch.log_softmax(logits_of(policy, examples), -1)
    wanted = (wanted_log_p.exp() * (wanted_log_p - log_q)).sum()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(0.25 * wanted, trained)
    batch = collate(examples, np.arange(5))
    policy(batch)
    found = term.loss(policy, batch)
    assert found.item() == pytest.approx(
        0.25 * wanted.item(), rel=1e-6
    )  # transformers' eager softmax and norms compute in fp32
    assert wanted.item() > 1e-3
    for ours, theirs in zip(torch.autograd.grad(found, trained), gradients, strict=True):
        assert (ours - theirs).abs().max() < 1e-6
    facts = term.after_step(1, 0.1, torch.zeros(()))
    assert float(facts["kl_to_base"]) == pytest.approx(wanted.item() / len(batch.target_ids), rel=1e-6)


def test_a_run_that_must_not_diverge_diverges_less(tmp_path):
    ends = {}
    for weight in (1e-9, 10.0):
        with open_run(tmp_path / str(weight)) as run:
            make_loop(run, companions=[kl_to_base.make(weight=weight)]).train()
        ends[weight] = events(tmp_path / str(weight), "step")[-1]["kl_to_base"]
    assert 0 < ends[10.0] < 0.5 * ends[1e-9]


def test_a_resumed_run_has_the_same_base(tmp_path):
    def run_to(name, resume=None):
        with open_run(tmp_path / name) as run:
            loop = make_loop(run, companions=[kl_to_base.make(weight=1.0)], checkpoint_every=5)
            if resume:
                loop.resume(resume)
            loop.train()
        return weights(loop)

    whole = run_to("whole")
    resumed = run_to("resumed", tmp_path / "whole" / "checkpoints" / "step-5")
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


OPTIONS = {"adalora": {"init_r": 6, "target_r": 3}, "prefix": {"tokens": 4}, "prompt": {"tokens": 4}}
QUANTISED = ["nf4 lora", "int8 dora"]


def attached(kind):
    """Return a tiny fused model with the adapter named last, which recomputes all layers, and what attaching made of it."""
    quantized, _, name = kind.rpartition(" ")
    model = tiny_model("mixtral" if quantized == "experts" else "llama")
    if quantized in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes")
        quantize_model(model.requires_grad_(False), Quantization(quantized))
    torch.manual_seed(3)
    made = registry.load("model.adapters", name).attach(model, **OPTIONS.get(name, {}))
    if name == "trainable_tokens":
        train_rows(made.model, [5, 17])
    fuse(made.model)
    policy, _ = make_policy(made.model)
    checkpoint_activations(made.model, "full")
    return policy.train()


def of_peft(policy, examples):
    """Return the logits of the model's own forward, PEFT's virtual tokens left out of them, (N,V)."""
    policy.train(False)
    with policy.plain_attention():
        found = []
        for start, end in pairwise(examples.offsets):
            ids = torch.from_numpy(examples.ids[start:end]).long()
            scored = torch.from_numpy(examples.scored[start:end])[1:].nonzero()[:, 0]
            found.append(
                policy.model(input_ids=ids[None], attention_mask=torch.ones(1, len(ids))).logits[0][-len(ids) :][scored]
            )
    policy.train()
    return torch.cat(found)


@pytest.mark.parametrize(
    "kind", [*(n for n in registry.names("model.adapters") if n != "loftq"), "experts lora", *QUANTISED]
)
def test_the_term_with_every_adapter(kind):
    """Nothing at the start; afterwards that of the whole logits, of the model as it was and as it is, over fused, recomputed layers."""
    examples = random_examples(n=4)
    policy = attached(kind)
    term = kl_to_base.make(weight=0.5)
    term.begin(policy, None, 10)
    batch = collate(examples, np.arange(4))
    policy(batch)
    assert abs(term.loss(policy, batch).item()) < 1e-5
    log_p = torch.log_softmax(of_peft(policy, examples), -1)
    trained = [p for p in policy.parameters() if p.requires_grad]
    with torch.no_grad():
        g = torch.Generator().manual_seed(1)
        for p in trained:
            p += 0.05 * torch.randn(p.shape, generator=g)
    log_q = torch.log_softmax(of_peft(policy, examples), -1)
    wanted = (log_p.exp() * (log_p - log_q)).sum().item()
    for sums in term.sums:
        sums.zero_()
    policy(batch)
    found = term.loss(policy, batch)
    found.backward()
    assert wanted > 1e-3
    assert found.item() == pytest.approx(0.5 * wanted, rel=2e-3, abs=1e-5)
    assert term.after_step(1, 0.1, torch.zeros(()))["kl_to_base"].item() == pytest.approx(wanted / len(log_p), rel=2e-3)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


def told(tmp_path, name, **changes):
    """Return what a run of a few steps tells of the divergence at each, and its weights at the end."""
    with open_run(tmp_path / name) as run:
        loop = make_loop(run, companions=[kl_to_base.make(weight=1.0)], **changes)
        loop.train()
    return np.array([e["kl_to_base"] for e in events(tmp_path / name, "step")]), weights(loop)


def test_micro_batches_and_a_memory_that_runs_out_change_neither_the_term_nor_what_is_told(tmp_path, monkeypatch):
    wanted, end = told(tmp_path, "whole", dtype=torch.float64)
    assert abs(wanted[0]) < 1e-9
    assert (wanted[1:] > 0).all()
    found, other = told(tmp_path, "parts", dtype=torch.float64, microbatch_tokens=30)
    assert np.abs(found - wanted).max() < 1e-5
    assert max(float((end[n] - other[n]).abs().max()) for n in end) < 1e-10

    compute = kl_to_base._Divergence.loss
    sizes = []

    def limited(self, policy, batch):
        """Memory runs out over a later micro-batch, when others of its step were added up."""
        sizes.append(len(batch.ids))
        if len(sizes) == 4:
            raise MemoryError
        return compute(self, policy, batch)

    monkeypatch.setattr(kl_to_base._Divergence, "loss", limited)
    found, other = told(tmp_path, "short", dtype=torch.float64, microbatch_tokens=64)
    assert any("memory ran out" in e["message"] for e in events(tmp_path / "short", "notice"))
    assert np.abs(found - wanted).max() < 1e-5
    assert max(float((end[n] - other[n]).abs().max()) for n in end) < 1e-10


def test_in_fp16_with_its_scale_it_is_what_it_is_in_fp32(tmp_path):
    wanted, end = told(tmp_path, "fp32", learning_rate=1e-3)
    found, other = told(tmp_path, "fp16", learning_rate=1e-3, dtype=torch.float16)
    skipped = {e["step"] for e in events(tmp_path / "fp16", "skipped")}
    assert not skipped
    assert np.abs(found - wanted).max() < 0.02 * wanted.max() + 1e-4
    with open_run(tmp_path / "start") as run:
        start = weights(make_loop(run))
    moved = math.sqrt(sum(float((end[n] - start[n]).square().sum()) for n in end))
    apart = math.sqrt(sum(float((end[n] - other[n].float()).square().sum()) for n in end))
    assert apart < 0.1 * moved


@pytest.mark.parametrize(
    "regularizer", [{"name": "kl_to_base", "weight": 1.0}, {"name": "decay_to_base", "weight": 20.0}]
)
def test_two_processes_train_as_one_does(regularizer, asked, tmp_path):  # noqa: F811
    def job(folder):
        made = asked(folder, "run", {"name": "full"})
        made["config"] |= {"regularizer": regularizer, "evaluate": []}
        return made

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    tunesmith.train(**job(one))
    test_parallel.together(two, {"do": "train", "name": "run", **job(two)})
    ends = [test_parallel.weights(folder / "run") for folder in (one, two)]
    assert test_parallel.furthest(*ends) <= 1e-5
    key = {"kl_to_base": "kl_to_base", "decay_to_base": "distance_to_base"}[regularizer["name"]]
    a, b = (np.array([e[key] for e in events(folder / "run", "step")]) for folder in (one, two))
    assert a[-1] > 1e-4
    assert np.abs(a - b).max() <= 1e-5 * max(1, a.max())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"regularizer": "kl_to_bass"}, "kl_to_base"),
        (
            {"regularizer": {"name": "kl_to_base", "weight": 0}},
            "regularizer: weight should be greater than 0, found 0.",
        ),
        ({"regularizer": {"name": "kl_to_base", "wieght": 1}}, "weight"),
        (
            {"regularizer": "decay_to_base", "optimizer": "schedule_free"},
            "take regularizer kl_to_base, or optimizer adamw.",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(changes, said):
    with pytest.raises(InputError) as e:
        parse({"data": "rows.jsonl", **changes})
    assert said in str(e.value)
    assert "\n" not in str(e.value)
