"""The routers' load-balancing loss: transformers' own over a whole step, however the step is cut."""

import numpy as np
import pytest
import torch

from builders import random_examples, tiny_model
from tunesmith.errors import InputError
from tunesmith.model import router
from tunesmith.model.policy import Policy, make_policy
from tunesmith.model.probe import flat_batch
from tunesmith.training.batch import collate

FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss"]


def moe(family, **changes):
    return tiny_model(family, output_router_logits=True, router_aux_loss_coef=0.5, **changes).train()


def transformers_loss(family, examples):
    """Return transformers' auxiliary loss, its coefficient included, of all examples in one padded batch, and its gradients."""
    model = moe(family)
    rows = [torch.from_numpy(r.astype(np.int64)) for r in np.split(examples.ids, examples.offsets[1:-1])]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    loss = 0.5 * model(input_ids=ids, attention_mask=mask).aux_loss
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def step(policy, batches):
    """The pattern of the policy's docstring, with the auxiliary alone as the loss."""
    policy.router_load = policy.router_counts(batches) if len(batches) > 1 else None
    total = 0.0
    for batch in batches:
        policy(batch)
        auxiliary = policy.take_auxiliary()
        auxiliary.backward()
        total += auxiliary.item()
    assert policy.take_auxiliary() is None
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["as it runs", "padded", "by its own logits"])
def test_a_step_has_transformers_auxiliary_loss_however_it_is_cut(family, kind):
    examples = random_examples(n=7)
    wanted, gradients = transformers_loss(family, examples)
    for cut in ([range(7)], [[3, 0], [1, 2, 6], [4, 5]]):
        model = moe(family)
        policy = make_policy(model)[0] if kind == "as it runs" else Policy(model, flat=False, trunk=kind == "padded")
        found = step(policy, [collate(examples, np.array(list(rows))) for rows in cut])
        assert abs(found - wanted) <= 1e-6
        for name, p in model.named_parameters():
            if name in gradients:
                assert (p.grad - gradients[name]).abs().max() <= 1e-6, name
    assert any(g.abs().max() > 1e-4 for g in gradients.values())


def test_the_shares_of_processes_add_up():
    """Two processes, each with its own micro-batch and the summed counts, as the loop would have it."""
    examples = random_examples(n=6)
    wanted, _ = transformers_loss("mixtral", examples)
    policies = [make_policy(moe("mixtral"))[0] for _ in range(2)]
    batches = [collate(examples, np.array(rows)) for rows in ([0, 4, 5], [1, 2, 3])]
    load = sum(p.router_counts([b]) for p, b in zip(policies, batches, strict=True))
    total = 0.0
    for policy, batch in zip(policies, batches, strict=True):
        policy.router_load = load
        policy(batch)
        total += policy.take_auxiliary().item()
    assert abs(total - wanted) <= 1e-6


def test_by_hand():
    """Three tokens, two experts, top 1, two layers alike: n = (4, 2), R = 6, p = 2 (0.9 + 0.9 + 0.2) and the rest of 6."""
    logits = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]], dtype=torch.float64))
    asked = router.Router(coefficient=0.1, top_k=1)
    counts, p = asked.counts((logits, logits), None), asked.probabilities((logits, logits), None)
    assert counts.tolist() == [4, 2, 6]
    assert torch.allclose(p, torch.tensor([4.0, 2.0], dtype=torch.float64))
    assert abs(float(asked.loss(counts, p)) - 0.1 * 2 * (4 / 6 * 4 / 6 + 2 / 6 * 2 / 6)) < 1e-12
    padded = torch.cat([logits, torch.full((2, 2), 7.0, dtype=torch.float64)])
    often = torch.tensor([1, 1, 1, 0, 0])
    assert torch.equal(asked.counts((padded, padded), often), counts)
    assert torch.allclose(asked.probabilities((padded, padded), often), p)


@pytest.mark.parametrize("kind", ["as it runs", "padded", "by its own logits"])
def test_links_change_it_no_more_than_packing_does(kind):
    """A shared prefix, computed once, counts for each row that has it: the loss is that of the whole rows."""
    ids = torch.randint(0, 97, (21,))
    rows = flat_batch(torch.cat([ids[:16], ids[:9], ids[16:]]), (16, 14), (-1, -1))
    model = moe("mixtral")
    wanted = step(make_policy(model)[0], [rows])
    gradients = {n: p.grad for n, p in model.named_parameters()}
    model = moe("mixtral")
    policy = make_policy(model)[0] if kind == "as it runs" else Policy(model, flat=False, trunk=kind == "padded")
    linked = flat_batch(ids, (9, 7, 5), (-1, 0, 0))
    assert policy.router_counts([linked])[-1] == 30 * 2  # rows x layers
    assert abs(step(policy, [linked]) - wanted) <= 1e-6
    for name, p in model.named_parameters():
        assert p.grad is None or (p.grad - gradients[name]).abs().max() <= 1e-6, name


def test_the_first_pass_leaves_the_random_state_and_sees_the_second_s_dropout():
    torch.manual_seed(3)
    policy = make_policy(moe("mixtral"))[0]
    policy.transformer.model.layers[0].input_layernorm.register_forward_hook(
        lambda module, inputs, output: torch.nn.functional.dropout(output, 0.5)
    )
    batches = [collate(random_examples(n=5), np.arange(5)), collate(random_examples(n=5), np.arange(3))]
    state = torch.random.get_rng_state()
    load = policy.router_counts(batches)
    assert torch.equal(state, torch.random.get_rng_state())
    found = 0
    for batch in batches:
        policy(batch)
        found = found + policy._routed[0][0]
    assert torch.equal(found, load)


def test_none_without_being_asked_for_nor_in_eval_mode():
    batch = collate(random_examples(n=3), np.arange(3))
    policy, _ = make_policy(tiny_model("mixtral").train())
    assert policy.router is None
    policy(batch)
    assert policy.take_auxiliary() is None
    policy, _ = make_policy(moe("mixtral").eval())
    policy.eval()
    policy(batch)
    assert policy.take_auxiliary() is None


def test_a_router_loss_of_another_kind_is_refused(monkeypatch):
    from transformers.models.mixtral import modeling_mixtral

    monkeypatch.setattr(modeling_mixtral, "load_balancing_loss_func", lambda *_: torch.tensor(3.0))
    with pytest.raises(InputError, match=r"router loss .* of a kind that is not known here"):
        make_policy(moe("mixtral"))


def test_lora_on_routers_and_experts_has_it_too():
    """Under PEFT's wrappers the routers are found, and their A and B get its gradient, as plain PEFT's do."""
    from tunesmith.model.adapters.lora import attach

    def adapted():
        torch.manual_seed(5)
        model = attach(moe("mixtral"), r=2).model
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        return model

    ids = torch.randint(0, 97, (1, 30))
    theirs = adapted()
    (0.5 * theirs(input_ids=ids).aux_loss).backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    ours = adapted()
    step(make_policy(ours)[0], [flat_batch(ids[0], (30,), (-1,))])
    assert any(".gate." in n for n in wanted)
    for name, p in ours.named_parameters():
        if name in wanted:
            assert (p.grad - wanted[name]).abs().max() <= 1e-6, name


@pytest.mark.parametrize("how", ["full", "selective"])
def test_layers_that_are_computed_twice_route_once(how):
    from tunesmith.model.activations import checkpoint_activations

    examples = random_examples(n=4)
    wanted, gradients = transformers_loss("qwen3_moe", examples)
    model = moe("qwen3_moe")
    assert checkpoint_activations(model, how) == 2
    assert abs(step(make_policy(model)[0], [collate(examples, np.arange(4))]) - wanted) <= 1e-6
    for name, p in model.named_parameters():
        if name in gradients:
            assert (p.grad - gradients[name]).abs().max() <= 1e-6, name
