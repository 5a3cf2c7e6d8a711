"""Other layouts of a flat batch, by hand: padded rows, and halves by length."""

from dataclasses import replace

import torch

from tunesmith.model.layout import halves, lay_out
from tunesmith.model.policy import Policy
from tunesmith.model.probe import flat_batch


def test_rows_of_like_length_run_together_and_each_token_is_answered_for_once():
    """Segments of 5, 3 and 2 tokens, and 1 and 4 more that continue the second: rows of 7, 5, 4 and 2 tokens."""
    groups, place = lay_out((5, 3, 2, 1, 4), (-1, -1, -1, 1, 1))
    assert [g.take.tolist() for g in groups] == [
        [[5, 6, 7, 11, 12, 13, 14], [0, 1, 2, 3, 4, 0, 0], [5, 6, 7, 10, 0, 0, 0]],
        [[8, 9]],
    ]
    assert [g.real.sum(1).tolist() for g in groups] == [[7, 5, 4], [2]]
    # The row of 4 comes first among those that continue the prefix, in the batch's order, so the prefix is its own.
    assert [g.own.tolist() for g in groups] == [[3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16, 17], [0, 1]]
    assert place.tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 12, 0, 1, 2, 3]


def test_no_group_has_rows_on_both_sides_of_a_turn():
    groups, _ = lay_out((6, 5, 4), (-1, -1, -1), turn=5)
    assert [list(g.take.shape) for g in groups] == [[1, 6], [2, 5]]


def test_halves_have_what_their_sequences_continue():
    """At most 4 tokens: the segment of 2, and 3 + 1; longer: 5 and 3 + 4. The prefix is in both."""
    short, long = halves((5, 3, 2, 1, 4), (-1, -1, -1, 1, 1), turn=4)
    assert short.tokens.tolist() == [5, 6, 7, 8, 9, 10]
    assert (short.lengths, short.parents) == ((3, 2, 1), (-1, -1, 0))
    assert long.tokens.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14]
    assert (long.lengths, long.parents) == ((5, 3, 4), (-1, -1, 1))


def test_a_prefix_is_no_sequence_and_a_half_without_sequences_is_left_out():
    """A prefix of 3 that 4 and 2 more continue: sequences of 7 and 5, both beyond 4."""
    (long,) = halves((3, 4, 2), (-1, 0, 0), turn=4)
    assert long.tokens.tolist() == list(range(9))
    assert (long.lengths, long.parents) == ((3, 4, 2), (-1, 0, 0))


def test_what_fills_a_batch_up_is_split_off_only_for_the_sake_of_others():
    def mixed(lengths, parents, padding=0):
        return Policy._mixed(replace(flat_batch(torch.arange(sum(lengths)), lengths, parents), padding=padding), 4)

    assert mixed((5, 3), (-1, -1))
    assert not mixed((3, 4, 2), (-1, 0, 0))
    assert not mixed((5, 3), (-1, -1), padding=3)
    assert mixed((3, 5), (-1, -1), padding=5)
    assert not mixed((3, 4), (-1, -1), padding=4)
