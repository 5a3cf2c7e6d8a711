"""Rows to a step, packing inside it, and the flat batch: by hand."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from builders import random_examples
from tunesmith.data.records import Examples, Origin
from tunesmith.training.arrange import pack
from tunesmith.training.batch import collate, epoch_order, microbatches, steps_of_epoch
from tunesmith.training.links import Cluster


def test_collate_by_hand():
    """Rows [7 8 9*] and [1 2* 3 4*] (* scored): the longer first, each target predicted from the token before it."""
    ids = np.array([7, 8, 9, 1, 2, 3, 4], dtype=np.int32)
    scored = np.array([0, 0, 1, 0, 1, 0, 1], dtype=bool)
    batch = collate(Examples(ids, scored, np.array([0, 3, 7]), np.arange(2), [Origin("f", 1)] * 2), np.array([0, 1]))
    assert batch.ids.tolist() == [1, 2, 3, 4, 7, 8, 9]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.target_index.tolist() == [0, 2, 5]
    assert batch.target_ids.tolist() == [2, 4, 9]
    assert batch.weights.tolist() == [1, 1, 1]
    assert batch.lengths == (4, 3)


def test_every_tensor_is_pinned_and_moved(monkeypatch):
    """The attention plan's too; pinning is played by a copy, for it needs a GPU, and the GPU by torch's device without memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: t.clone())
    batch = collate(random_examples(n=4), np.arange(2), [Cluster(np.array([2, 3]), 1)], multiple=16)
    pinned = batch.pin_memory()
    there = batch.to(torch.device("meta"))
    for mine, its, moved in ((batch, pinned, there), (batch.segments, pinned.segments, there.segments)):
        tensors = [f.name for f in fields(mine) if isinstance(getattr(mine, f.name), torch.Tensor)]
        assert len(tensors) >= 4
        for name in tensors:
            assert getattr(its, name) is not getattr(mine, name)
            assert torch.equal(getattr(its, name), getattr(mine, name))
            assert getattr(moved, name).device.type == "meta"
    assert (pinned.lengths, pinned.parents, pinned.padding) == (batch.lengths, batch.parents, batch.padding)


def test_pack_is_best_fit_decreasing():
    """10 into bins of 12: 9 | 7 5 | 6 4 2 | 3; the 4 goes to the bin with the least room that holds it."""
    lengths = np.array([4, 9, 7, 5, 6, 2, 3])
    bins = [sorted(lengths[b].tolist(), reverse=True) for b in pack(lengths, 12)]
    assert bins == [[9, 3], [7, 5], [6, 4, 2]]
    assert [b.tolist() for b in pack(np.array([50, 1]), 12)] == [[0], [1]]


def test_microbatches_hold_every_row_once():
    examples = random_examples(n=30)
    rows = np.array([3, 3, 17, 29, 8])
    batches = list(microbatches(examples, rows, 40))
    assert sum(len(b.ids) for b in batches) == examples.lengths[rows].sum()
    assert all(len(b.ids) <= 40 for b in batches)
    wanted = sorted(int(i) for r in rows for i in examples.ids[examples.offsets[r] : examples.offsets[r + 1]])
    assert sorted(torch.cat([b.ids for b in batches]).tolist()) == wanted


def test_steps_take_rows_in_order_up_to_the_budget():
    lengths = np.array([4, 4, 4, 30, 2, 2])
    order = np.array([5, 0, 1, 2, 3, 4])
    steps = [s.tolist() for s in steps_of_epoch(order, lengths, 10, None)]
    assert steps == [[5, 0, 1], [2], [3], [4]]
    assert [s.tolist() for s in steps_of_epoch(order, lengths, None, 4)] == [[5, 0, 1, 2], [3, 4]]


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_order_depends_on_seed_and_epoch_alone(epoch):
    order = epoch_order(50, 7, epoch)
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() == epoch_order(50, 7, epoch).tolist()
    assert order.tolist() != epoch_order(50, 7, epoch + 1).tolist()
    assert order.tolist() != epoch_order(50, 8, epoch).tolist()
