"""A policy and a reward model whose numbers can be written down, and a writer of data files."""

import json

import pytest
from letter_models import ODDS, save_policy, save_reward


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy") / "letters", ODDS)


@pytest.fixture(scope="session")
def reward(tmp_path_factory):
    return save_reward(tmp_path_factory.mktemp("reward") / "x")


@pytest.fixture
def rows(tmp_path):
    """Write rows as JSON lines to a file of that name; return its path."""

    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture(autouse=True)
def _answers_stay_here(tmp_path, monkeypatch):
    """What is sampled is kept beside the tokens' folder: one of its own for each test."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache" / "tokens"))
