"""Secrets are masked by their key's name, by their look and inside addresses; nothing else is touched."""

import pytest

from tunesmith.masking import clean, flatten, masked


@pytest.mark.parametrize(
    "key",
    ["api_key", "apikey", "hub.token", "hf_token", "access_key", "AWS_SECRET_ACCESS_KEY", "password", "passwd", "auth"],
)
def test_a_secret_s_name_masks_it(key):
    assert masked(key, "x") == "•••"
    assert masked(key, ["x"]) == "•••"
    assert masked(key, "") == ""  # nothing is there to hide


@pytest.mark.parametrize(
    "key", ["train.tokens_per_step", "tokens", "author", "adapter.target_modules", "keep_last", "path"]
)
def test_other_names_do_not(key):
    assert masked(key, 16) == 16
    assert masked(key, "plain") == "plain"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://user:pw@host/rows.jsonl", "https://•••@host/rows.jsonl"),
        ("https:/user:pw@host/rows.jsonl is missing", "https:/•••@host/rows.jsonl is missing"),  # as a path writes it
        ("https://u:p@ss@host/x from git@host", "https://•••@host/x from git@host"),
        ("at HTTPS://u:p/w@ss/d@host:80", "at HTTPS://•••@host:80"),
        ("https:/u:p/w@ss@host is missing", "https:/•••@host is missing"),
        ("postgresql+psycopg://u:a/b@host/db", "postgresql+psycopg://•••@host/db"),
        ("see s3:/u:pw@host", "see s3:/•••@host"),
        ("http://host/x?split=train&token=abc&n=3", "http://host/x?split=train&token=•••&n=3"),
        ("s3://b/x?X-Amz-Signature=abc", "s3://b/x?X-Amz-Signature=•••"),
        ("wrote hf_abcdefghijklmnop to a file", "wrote ••• to a file"),
        ("runs/hf_model", "runs/hf_model"),
        ("mail@host, a/b@c and task-17", "mail@host, a/b@c and task-17"),
        ("http://host:80/x", "http://host:80/x"),
    ],
)
def test_secrets_inside_a_text(text, wanted):
    assert clean(text) == wanted
    assert masked("path", text) == wanted


def test_a_run_file_is_flattened_and_masked():
    run = {
        "data": [{"path": "ftp://u:p@h/x.jsonl"}, {"path": "b", "token": "t"}],
        "train": {"epochs": 2, "betas": [0.9, 0.99]},
        "names": ["x", "sk-aaaaaaaaaaaaaaaa"],
        "empty": {},
    }
    assert flatten(run) == {
        "data.0.path": "ftp://•••@h/x.jsonl",
        "data.1.path": "b",
        "data.1.token": "•••",
        "train.epochs": 2,
        "train.betas": [0.9, 0.99],
        "names": ["x", "•••"],
        "empty": {},
    }
