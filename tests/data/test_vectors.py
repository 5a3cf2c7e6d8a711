"""Vectors of hashed words: TF-IDF and cosine by hand, clusters that are there are found."""

import math

import numpy as np
import pytest

from tunesmith.data import vectors


def test_counted_by_hand():
    places, weight = vectors.counted("tea tea Tea milk")
    assert len(places) == 2
    assert sorted(weight.tolist()) == pytest.approx([1, 1 + math.log(3)])
    assert len(vectors.counted("...")[0]) == 0


def test_rarity_by_hand():
    idf = vectors.rarity(["tea milk", "tea", "tea"])
    tea, milk = (vectors.counted(w)[0][0] for w in ("tea", "milk"))
    assert idf[tea] == pytest.approx(math.log(4 / 4) + 1)
    assert idf[milk] == pytest.approx(math.log(4 / 2) + 1)


def test_cosine_by_hand():
    flat = np.ones(vectors.DIMENSIONS, dtype=np.float32)
    known = vectors.Examples(["tea milk", "a b c d"], flat)
    assert known.similarity("milk tea") == pytest.approx(1)
    assert known.similarity("tea") == pytest.approx(1 / math.sqrt(2))
    assert known.similarity("a b x y") == pytest.approx(2 / 4)
    assert known.similarity("sugar") == known.similarity("") == 0


def test_clusters_find_what_is_there_and_are_the_same_every_time():
    rng = np.random.default_rng(0)
    middle = np.eye(3, 16)[np.repeat([0, 1, 2], [60, 30, 10])] + rng.normal(0, 0.05, (100, 16))
    points = (middle / np.linalg.norm(middle, axis=1, keepdims=True)).astype(np.float32)
    of, centres = vectors.clusters(points, 3)
    assert of.tolist() == [0] * 60 + [1] * 30 + [2] * 10  # the larger first
    assert centres.shape == (3, 16)
    assert np.array_equal(vectors.clusters(points, 3)[0], of)


def test_no_more_clusters_than_different_points():
    of, centres = vectors.clusters(np.eye(2, 4, dtype=np.float32)[[0, 0, 1]], 5)
    assert of.tolist() == [0, 0, 1]
    assert len(centres) == 2


def test_folded_vectors_keep_the_cosine():
    texts = [" ".join(f"w{i}" for i in range(at, at + 60)) for at in (0, 30, 200)]
    flat = np.ones(vectors.DIMENSIONS, dtype=np.float32)
    points = vectors.folded(texts, flat)
    assert np.linalg.norm(points, axis=1) == pytest.approx([1, 1, 1])
    assert points[0] @ points[1] == pytest.approx(0.5, abs=0.15)
    assert points[0] @ points[2] == pytest.approx(0, abs=0.15)
