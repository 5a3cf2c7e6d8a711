"""The cache gives back exactly what render made, only for exactly what made it, and no fault of it costs a run."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from datetime import datetime

import numpy as np
import pytest

from tunesmith.data import cache
from tunesmith.data.cache import folder_of_cache, key, rendered
from tunesmith.data.records import Chat, Origin, Preference, Prompt, Text, Verdict
from tunesmith.data.render import render

ASK, YES, NO = ([{"role": r, "content": c}] for r, c in (("user", "a"), ("assistant", "yes"), ("assistant", "no")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache that keeps the smallest set too."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_TOKENS", 0)
    return tmp_path / "cache"


def chat(asked="a", answered="b", row=1, **changes):
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Chat(**{"messages": messages, "trained": [False, True], "origin": Origin("d.jsonl", row), **changes})


def records():
    return [chat("hi", "yo", 1), chat("a" * 30, "b", 2), chat("a", "é" * 2, 3), Text("abc" * 20, Origin("t.txt", 1))]


def counted(monkeypatch):
    """Count the calls of render."""
    calls = []
    monkeypatch.setattr(cache, "render", lambda *a: (calls.append(a), render(*a))[1])
    return calls


def same(a, b):
    for name in ("ids", "scored", "offsets", "record"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        assert np.array_equal(x, y), name
    assert list(a.origins) == list(b.origins)


def entry(folder):
    (file,) = folder.glob("*.tokens")
    return file


def test_a_second_call_maps_what_the_first_made(folder, tokenizer, monkeypatch):
    expected, notices = render(records(), tokenizer, 20)
    assert len(notices) == 3  # characters lost, a row left out, a text cut into windows
    calls = counted(monkeypatch)
    for _ in range(2):
        examples, said, about_the_cache = rendered(records(), tokenizer, 20)
        same(examples, expected)
        assert said == notices
        assert about_the_cache == []
    assert len(calls) == 1
    base = examples.ids
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)  # no copy was made
    assert not examples.ids.flags.writeable


def test_every_cause_of_the_result_is_part_of_the_key(folder, make_tokenizer, monkeypatch):
    template = make_tokenizer().chat_template

    def changed(**attributes):
        tokenizer = make_tokenizer()
        for name, value in attributes.items():
            setattr(tokenizer, name, value)
        return tokenizer

    more = make_tokenizer()
    more.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    base = ([chat(row=1), chat("c", "d", row=2)], make_tokenizer(), 10, "answers", [])
    assert key(*base) == key([chat(row=1), chat("c", "d", row=2)], make_tokenizer(), 10, "answers", [])
    others = [
        ([chat(row=1), chat("c", "e", row=2)], *base[1:]),
        ([chat(row=1), chat("cd", "", row=2)], *base[1:]),
        ([chat(row=1), chat("c", "d", row=3)], *base[1:]),
        ([chat(row=1), chat("c", "d", row=2, origin=Origin("e.jsonl", 2))], *base[1:]),
        ([chat(row=1), chat("c", "d", row=2, trained=[False, False])], *base[1:]),
        ([chat(row=1), chat("c", "d", row=2, tools=[{"function": {"name": "f"}}])], *base[1:]),
        ([chat("c", "d", row=2), chat(row=1)], *base[1:]),
        ([chat(row=1)], *base[1:]),
        ([Text("a", Origin("d.jsonl", 1))], *base[1:]),
        ([chat(row=1, origin=Origin("d.jsonl", 1, 1)), chat("c", "d", row=2)], *base[1:]),
        ([Preference(ASK, [YES, NO], Origin("d.jsonl", 1))], *base[1:]),
        ([Preference(ASK, [NO, YES], Origin("d.jsonl", 1))], *base[1:]),
        ([Verdict(ASK, YES, True, Origin("d.jsonl", 1))], *base[1:]),
        ([Prompt(ASK, Origin("d.jsonl", 1))], *base[1:]),
        (base[0], changed(chat_template=template + " "), *base[2:]),
        (base[0], changed(eos_token="<|im_end|>"), *base[2:]),
        (base[0], make_tokenizer(known="abcdefghijklmnopqrstuvwxyz \n"), *base[2:]),
        (base[0], more, *base[2:]),
        (*base[:2], 11, *base[3:]),
        (*base[:2], None, *base[3:]),
        (*base[:3], "all", []),
        (*base[:4], ["21 Nov 2026"]),
    ]
    keys = [key(*base), *(key(*other) for other in others)]
    assert len(set(keys)) == len(others) + 1
    monkeypatch.setattr(cache.metadata, "version", lambda name: f"another {name}")
    keys.append(key(*base))
    monkeypatch.setattr(cache, "_RENDERERS", ("render.py", "layout.py"))
    keys.append(key(*base))
    assert len(set(keys)) == len(others) + 3


def test_what_the_row_says_beside_the_conversation_does_not_matter(tokenizer):
    a, b = chat(extra={"category": "x"}), chat(extra={})
    assert key([a], tokenizer, 10, "answers", []) == key([b], tokenizer, 10, "answers", [])
    assert {f.name for f in dataclasses.fields(Chat)} == {"messages", "trained", "origin", "tools", "extra"}
    assert {f.name for f in dataclasses.fields(Text)} == {"text", "origin", "extra"}


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "empty":
        data = b""
    elif how == "cut":
        data = data[:-1]
    elif how == "longer":
        data += b"\0"
    elif how == "zeros":  # what a file system may leave after a power failure
        data = bytes(len(data))
    else:
        data[how] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "cut", "longer", "zeros", 0, 9, 17, 21, 30, 60, -1, -40, -200])
def test_a_damaged_entry_is_said_and_made_anew(folder, tokenizer, how):
    expected, notices, _ = rendered(records(), tokenizer, 20)
    file = entry(folder)
    whole = file.read_bytes()
    damage(file, how)
    examples, said, about_the_cache = rendered(records(), tokenizer, 20)
    same(examples, expected)
    assert said == notices
    (sentence,) = about_the_cache
    assert sentence.startswith(f"the cached tokens {file} are damaged (")
    assert sentence.endswith("): the data is rendered anew")
    assert file.read_bytes() == whole
    assert rendered(records(), tokenizer, 20)[2] == []


def test_an_entry_under_another_name_is_no_hit(folder, tokenizer):
    rendered([chat("a", "b")], tokenizer)
    other = folder / f"{key([chat('c', 'd')], tokenizer, None, 'answers', [])}.tokens"
    entry(folder).rename(other)
    examples, _, said = rendered([chat("c", "d")], tokenizer)
    same(examples, render([chat("c", "d")], tokenizer)[0])
    assert "damaged" in said[0]


def test_a_folder_that_cannot_be_written_costs_one_notice(folder, tokenizer, monkeypatch):
    folder.write_text("a file stands where the folder should be")
    examples, _, said = rendered(records(), tokenizer, 20)
    same(examples, render(records(), tokenizer, 20)[0])
    assert len(said) == 1
    assert f"{folder} cannot be written" in said[0]
    assert "TUNESMITH_CACHE" in said[0]
    monkeypatch.setattr(cache, "LEAST_TOKENS", 10**9)  # what would not be kept is not missed either
    assert rendered(records(), tokenizer, 20)[2] == []


def test_a_full_disk_leaves_nothing_half_written(folder, tokenizer, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Path, "replace", full)
    _, _, said = rendered(records(), tokenizer, 20)
    assert "No space left on device" in said[0]
    assert list(folder.iterdir()) == []


def test_what_is_too_large_for_the_disk_is_not_kept(folder, tokenizer, monkeypatch):
    usage = cache.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    assert "too much" in rendered(records(), tokenizer, 20)[2][0]
    assert list(folder.iterdir()) == []


def test_without_a_home_it_goes_without(tokenizer, monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache, "folder_of_cache", none)
    assert rendered(records(), tokenizer, 20)[2] == []


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_of_cache() == tmp_path / ".cache" / "tunesmith" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert folder_of_cache() == tmp_path / "x" / "tunesmith" / "tokens"
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "y"))
    assert folder_of_cache() == tmp_path / "y"


def test_the_entries_used_longest_ago_are_dropped(folder, tokenizer, monkeypatch):
    sets = [[chat("a" * n, "b")] for n in (5, 6, 7, 8)]
    files = {}
    for n, rows in enumerate(sets[:3]):
        rendered(rows, tokenizer)
        (files[n],) = set(folder.glob("*.tokens")) - set(files.values())
        os.utime(files[n], (1000 + n, 1000 + n))
    (folder / "notes.txt").write_text("somebody's own")
    old = folder / ".old.part"
    old.write_text("of a process that died")
    os.utime(old, (1000, 1000))
    rendered(sets[0], tokenizer)  # used now: the second is the oldest from here on
    monkeypatch.setattr(cache, "MOST_BYTES", 3 * files[2].stat().st_size + 10)
    rendered(sets[3], tokenizer)
    assert not files[1].exists()
    assert files[0].exists()
    assert files[2].exists()
    assert len(list(folder.glob("*.tokens"))) == 3
    assert (folder / "notes.txt").exists()
    assert not old.exists()


def test_an_entry_dropped_while_it_is_mapped_stays_readable(folder, tokenizer):
    expected, _, _ = rendered(records(), tokenizer, 20)
    examples, _, _ = rendered(records(), tokenizer, 20)
    entry(folder).unlink()
    same(examples, expected)


def test_small_sets_are_not_kept(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(cache, "LEAST_TOKENS", 10_000)
    rendered(records(), tokenizer, 20)
    assert not folder.exists()


def test_content_without_a_plain_form_is_rendered_each_time(folder, tokenizer, monkeypatch):
    call = {"type": "function", "function": {"name": "f", "arguments": {"on": datetime(2026, 11, 22)}}}
    odd = chat()
    odd.messages[0]["tool_calls"] = [call]
    calls = counted(monkeypatch)
    for _ in range(2):
        assert rendered([odd], tokenizer)[2] == []
    assert len(calls) == 2


def test_a_template_that_writes_the_date_is_another_one_tomorrow(folder, make_tokenizer, monkeypatch):
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') | lower }}{% endif %}"
    tokenizer = make_tokenizer(dated + make_tokenizer().chat_template)
    calls = counted(monkeypatch)
    for _ in range(2):
        rendered([chat()], tokenizer)
    assert len(calls) == 1

    class Tomorrow(datetime):
        @classmethod
        def now(cls):
            return cls(2099, 1, 1)

    monkeypatch.setattr(cache, "datetime", Tomorrow)
    rendered([chat()], tokenizer)
    assert len(calls) == 2
    hidden = make_tokenizer("{% set clock = strftime_now %}" + make_tokenizer().chat_template)
    for _ in range(2):  # what it asks the clock cannot be known
        rendered([chat()], hidden)
    assert len(calls) == 4


def test_midnight_while_rendering_keeps_nothing(folder, make_tokenizer, monkeypatch):
    moments = iter([["21"], ["22"]])
    monkeypatch.setattr(cache, "_moment", lambda tokenizer: next(moments))
    rendered([chat()], make_tokenizer())
    assert not folder.exists()


def test_writers_at_once(folder, tokenizer):
    """Many writers and readers of one entry: each gets the same arrays, and one whole file is left."""
    expected, _ = render(records(), tokenizer, 20)
    wrong = []

    def work():
        for _ in range(10):
            try:
                examples, _, said = rendered(records(), tokenizer, 20)
                same(examples, expected)
                assert said == []
                for file in folder.glob("*.tokens"):
                    file.unlink(missing_ok=True)
            except BaseException as e:
                wrong.append(e)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert not list(folder.glob(".*.part"))


def test_a_writer_killed_half_way_leaves_no_entry(folder, tokenizer, tmp_path):
    """The file is found only under its final name, which it gets when it is whole."""
    code = (
        "import os, sys\n"
        "from tunesmith.data import cache\n"
        "from tunesmith.data.records import Examples, Origin\n"
        "import numpy as np\n"
        "cache.Path.replace = lambda self, target: os.kill(os.getpid(), 9)\n"
        "e = Examples(np.arange(9, dtype=np.int32), np.ones(9, bool), np.array([0, 9]), np.zeros(1, np.int64), "
        "[Origin('d', 1)], np.zeros(1, np.int32))\n"
        "cache._keep(cache.folder_of_cache() / 'k.tokens', e, [])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -9, done.stderr
    assert [p.suffix for p in folder.iterdir()] == [".part"]
    os.utime(next(folder.iterdir()), (time.time() - 90_000,) * 2)
    rendered(records(), tokenizer, 20)
    assert [p.suffix for p in folder.iterdir()] == [".tokens"]
