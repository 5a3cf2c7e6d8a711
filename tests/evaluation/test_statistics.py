"""Intervals against hand values, known tables and the normal approximation."""

import math

import numpy as np
import pytest

from tunesmith.evaluation.statistics import (
    bootstrap_ratios,
    mean_interval,
    mean_of_means_interval,
    percentile_interval,
    wilson,
)


def test_wilson_by_hand():
    z2 = 1.959963984540054**2
    assert wilson(0, 200)[0] == 0.0
    assert wilson(200, 200)[1] == 1.0
    assert wilson(0, 10) == pytest.approx((0.0, z2 / (10 + z2)))  # p = 0: (z²/2n + z²/2n) / (1 + z²/n)
    assert wilson(10, 10) == pytest.approx((10 / (10 + z2), 1.0))
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # the usual table
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_bootstrap_draws_whole_items():
    """Of the items 1/1 and 9/3 two draws give 1/1, 10/4 or 9/3, with probabilities 1/4, 1/2, 1/4."""
    drawn = bootstrap_ratios(np.array([1.0, 9.0]), np.array([1.0, 3.0]), seed=0, resamples=20_000)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [1.0, 2.5, 3.0]
    assert (counts / 20_000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_bootstrap_is_seeded_and_the_same_in_chunks(monkeypatch):
    values = np.random.default_rng(0).random(50)
    ones = np.ones(50)
    whole = bootstrap_ratios(values, ones, seed=4, resamples=300)
    assert (whole == bootstrap_ratios(values, ones, seed=4, resamples=300)).all()
    assert (whole != bootstrap_ratios(values, ones, seed=5, resamples=300)).any()
    monkeypatch.setattr("tunesmith.evaluation.statistics._CHUNK", 1000)
    assert (whole == bootstrap_ratios(values, ones, seed=4, resamples=300)).all()


def test_percentiles_by_hand():
    assert percentile_interval(np.arange(41) / 40) == pytest.approx((0.025, 0.975))


def test_mean_interval_is_wilsons_for_zeros_and_ones_else_the_bootstraps():
    assert mean_interval(np.array([1.0] * 8 + [0.0] * 2)) == wilson(8, 10)
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert mean_interval(np.full(7, 0.25)) == (0.25, 0.25)


def test_mean_of_means_resamples_within_groups():
    """Groups without spread of their own leave nothing uncertain, however different they are."""
    assert mean_of_means_interval([np.zeros(5), np.ones(50)]) == (0.5, 0.5)
    low, high = mean_of_means_interval([np.array([0.0, 1.0] * 50), np.ones(1000)])
    half = 1.96 * 0.5 / math.sqrt(100) / 2  # the second group adds nothing, the mean halves the first's
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.15 * half)
