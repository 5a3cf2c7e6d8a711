"""No chat template, whatever it holds and whenever it acts up, hangs or fills our process; harmless ones never notice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from datetime import datetime
from importlib.metadata import version

import numpy as np
import pytest

from tunesmith.data import sandbox, sandbox_child
from tunesmith.data.layout import chat_text, fix_clock
from tunesmith.data.sandbox import Job, RefusedError
from tunesmith.errors import InputError

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = b %}{% endfor %}{% endfor %}"
TIME, MEMORY, PARTS, ITSELF = "ran on without an end", "256 MB of memory", "Python's own parts", "calls itself"
HOSTILE = {
    "nested loops": (LOOP, TIME),
    "a loop in C": ("{{ (messages|length + 6) ** 100000000 }}", TIME),
    "loops at the third row": ("{% if messages[0].content == 'm3' %}" + LOOP + "{% endif %}x", TIME),
    "a little too slow at every row": (
        "{% for a in range(50) %}{% for b in range(90000) %}{% endfor %}{% endfor %}x",
        TIME,
    ),
    "busy filters": ("{% for a in range(99999) %}{{ range(99999)|map('string')|sort|join|length }}{% endfor %}", TIME),
    "doubling macros": ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", TIME),
    "an endless cycler": ("{% set c = cycler(1, 2) %}" + LOOP.replace("= b", "= c.next()"), TIME),
    "a giant string": ("{{ 'a' * 200000000 }}", MEMORY),
    "a giant string of the row": ("{{ messages[0].content * 200000000 }}", MEMORY),
    "a giant join": ("{{ (['a' * 1000000] * 1000)|join('b') }}", MEMORY),
    "a doubling list": (
        "{% set n = namespace(x=[0]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        MEMORY,
    ),
    "a format": ("{{ '%1000000000d'|format(1) }}", MEMORY),
    "a format with a star": ("{{ '%*d'|format(1000000000, 1) }}", MEMORY),
    "a method's format": ("{{ '{:1000000000d}'.format(1) }}", MEMORY),
    "an error of giant words": ("{{ raise_exception('x' * 300000000) }}", MEMORY),
    "long replacements": ("{{ ('a' * 20000)|replace('a', 'b' * 20000) }}", MEMORY),
    "more than a conversation explains": ("{{ 'a' * 300000 }}", "wrote 300,000 characters for a conversation of"),
    "Python's classes": ("{{ ''.__class__.__mro__ }}", PARTS),
    "one class": ("{{ ''.__class__ }}", PARTS),
    "by a filter": ("{{ ''|attr('__class__') }}", PARTS),
    "by a format": ("{{ '{0.__class__}'.format(messages) }}", PARTS),
    "a function's globals": ("{{ cycler.__init__.__globals__ }}", PARTS),
    "a namespace's": ("{% set n = namespace(__class__=1) %}", PARTS),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ITSELF),
    "parentheses": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", ITSELF),
}


class Named:
    """What the sandbox asks of a tokenizer, without one."""

    name_or_path = "evil/model"
    special_tokens_map = {"eos_token": "</s>"}  # noqa: RUF012

    def __init__(self, template):
        self.template = template

    def get_chat_template(self, template, tools):
        return template or self.template


def jobs(n, ask=False):
    return [Job([{"role": "user", "content": f"m{i}"}], None, ask, f"d.jsonl, row {i}") for i in range(n)]


SLOW = ("busy filters", "doubling macros", "an endless cycler", "a giant join")  # like others, a second each


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in HOSTILE])
def test_a_hostile_template_is_stopped_in_one_sentence(name):
    template, what = HOSTILE[name]
    with pytest.raises(InputError, match=rf"^d.jsonl, row \d.*{what}") as said:
        list(sandbox.run(jobs(100), Named(template)))
    if name == "loops at the third row":
        assert str(said.value).startswith("d.jsonl, row 3: ")
    assert "the chat template of evil/model was stopped, for it " in str(said.value)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 600
    assert sandbox.text(jobs(1)[0], Named("{{ messages[0].content }}")) == "m0"  # the next one is served


def test_a_template_that_was_stopped_is_not_tried_again(monkeypatch):
    """Who asks row after row, as an inspection does, waits once."""
    template = "again: {{ ''.__class__ }}"
    tried = []
    ask = sandbox._Child.ask
    monkeypatch.setattr(sandbox._Child, "ask", lambda self, lines: (tried.append(lines), ask(self, lines))[1])
    for job in jobs(3):
        with pytest.raises(InputError, match=rf"^{job.origin}: .*reaches for Python's own parts \(__class__ of str\)"):
            sandbox.text(job, Named(template))
    assert len(tried) == 1


MEASURE = """
import json, resource, sys
from tunesmith.data import sandbox
sys.path.insert(0, sys.argv[1])
from test_sandbox import HOSTILE, Named, jobs
from tunesmith.errors import InputError
def spent(): r = resource.getrusage(resource.RUSAGE_CHILDREN); return r.ru_utime + r.ru_stime
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
most = 0
for name in sys.argv[2:]:
    start = spent()
    try:
        list(sandbox.run(jobs(100), Named(HOSTILE[name][0])))
    except InputError:
        pass
    most = max(most, spent() - start)
ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([most, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, ours]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted in other units")
def test_what_it_may_cost():
    """Seconds of processor time and kilobytes of the worst; our own process grows by next to nothing."""
    names = ["a loop in C", "a giant string", "a giant join", "a doubling list", "long replacements", "parentheses"]
    code = [sys.executable, "-c", MEASURE, os.path.dirname(__file__), *names]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seconds, theirs, ours = json.loads(done.stdout)
    assert seconds < 2
    assert theirs < 256 << 10
    assert ours < 16 << 10


def test_the_process_has_no_file_no_process_and_imports_little():
    code = (
        "import sys, os\nsys.path.append(sys.argv[1])\nimport sandbox_child\n"
        "print([m for m in ('transformers', 'torch', 'numpy', 'tunesmith', 'pydantic') if m in sys.modules])\n"
        "sandbox_child.limit()\n"
        "for f in (lambda: open('/etc/passwd'), lambda: open('/tmp/x', 'w'), os.pipe):\n"
        "    try:\n        f()\n    except OSError:\n        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, os.path.dirname(sandbox_child.__file__)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split("\n")[:4] == ["[]", "refused", "refused", "refused"], done.stderr


def test_a_template_that_refuses_is_no_broken_one():
    with pytest.raises(
        RefusedError,
        match=r"row 0: the model's chat template refuses this conversation \(no roles\); its roles are user",
    ):
        sandbox.text(jobs(1)[0], Named("{{ raise_exception('no roles.') }}"))
    process = sandbox._child.process
    with pytest.raises(RefusedError, match="no loader for this environment"):
        sandbox.text(jobs(1)[0], Named("{% include '/etc/passwd' %}"))
    assert sandbox._child.process is process  # which goes on


def test_a_tokenizer_without_a_template_is_refused(make_tokenizer):
    with pytest.raises(RefusedError, match=r"row 0: .*chat_template is not set"):
        sandbox.text(jobs(1)[0], make_tokenizer(None))


def test_named_templates_are_chosen_as_transformers_does(make_tokenizer):
    tokenizer = make_tokenizer({"default": "plain", "tool_use": "with tools"})
    tools = [{"type": "function", "function": {"name": "f"}}]
    mixed = [Job([{"role": "user", "content": "a"}], t, False, "x") for t in (None, tools, None)]
    assert list(sandbox.run(mixed, tokenizer)) == ["plain", "with tools", "plain"]


def test_objects_are_shown_as_transformers_shows_them(make_tokenizer):
    """Rows of Parquet hold dates, bytes and numpy's numbers."""
    if tuple(map(int, version("transformers").split(".")[:2])) < (5, 23):
        pytest.skip("older transformers show templates the objects themselves; ours shows words, whatever is installed")
    tokenizer = make_tokenizer("{% for m in messages %}{{ m }}|{{ m | tojson }}{% endfor %}")
    arguments = {
        "day": datetime(2026, 11, 22),
        "raw": b"x",
        "n": np.int64(3),
        "yes": np.bool_(True),
        "many": np.zeros(3),
        "half": 0.5,
        "none": None,
    }
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "é \u2028 </s>", "name": None},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning": "why"},
    ]
    assert chat_text(messages, None, tokenizer, "x") == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(("template", "said"), [("x{{ '\\ud800' }}", "a"), ("{{ messages[0].content }}", "a\udc00")])
def test_half_a_character_is_refused(template, said):
    """No tokenizer takes it, whether the template writes it or the row holds it."""
    with pytest.raises(RefusedError, match=r"row 7: .* refuses .*\(it holds '\\ud[8c]00', half a character, which"):
        sandbox.text(Job([{"role": "user", "content": said}], None, False, "d.jsonl, row 7"), Named(template))


def test_the_day_that_is_told(make_tokenizer):
    tokenizer = make_tokenizer("{{ strftime_now('%d %b %Y') }}")
    assert chat_text([{"role": "user", "content": "a"}], None, tokenizer, "x") == datetime.now().strftime("%d %b %Y")
    fix_clock(tokenizer, "2024-02-03")
    assert chat_text([{"role": "user", "content": "a"}], None, tokenizer, "x") == "03 Feb 2024"


def test_many_conversations_come_in_order():
    long = [Job([{"role": "user", "content": f"{i} " + "y" * (i % 7) * 10_000}], None, False, "x") for i in range(1500)]
    texts = list(sandbox.run(iter(long), Named("{{ messages[0].content }}")))
    assert texts == [job.messages[0]["content"] for job in long]
    assert list(sandbox.run([], Named("x"))) == []


def test_threads_ask_one_after_the_other():
    wrong = []

    def work(name):
        for i in range(30):
            text = sandbox.text(
                Job([{"role": "user", "content": f"{name}{i}"}], None, False, "x"), Named("{{ messages[0].content }}")
            )
            if text != f"{name}{i}":
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_a_child_of_its_own():
    plain = Named("{{ messages[0].content }}")
    assert sandbox.text(jobs(1)[0], plain) == "m0"
    mine = sandbox._child.process.pid
    pid = os.fork()
    if pid == 0:
        try:
            fine = (
                list(sandbox.run(jobs(300), plain)) == [f"m{i}" for i in range(300)]
                and sandbox._child.process.pid != mine
            )
            sandbox._child.end()
        finally:
            os._exit(0 if fine else 1)
    assert list(sandbox.run(jobs(300), plain)) == [f"m{i}" for i in range(300)]
    assert os.waitpid(pid, 0)[1] == 0
    assert sandbox._child.process.pid == mine


def test_a_child_that_was_killed_meanwhile_is_replaced():
    plain = Named("{{ messages[0].content }}")
    sandbox.text(jobs(1)[0], plain)
    sandbox._child.process.send_signal(signal.SIGKILL)
    sandbox._child.process.wait()
    assert sandbox.text(jobs(1)[0], plain) == "m0"


def test_an_interrupted_request_leaves_no_reply_behind(monkeypatch):
    plain = Named("{{ messages[0].content }}")
    exchange = sandbox._exchange

    def interrupted(process, request):
        process.stdin.write(request)
        process.stdin.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sandbox.text(jobs(1)[0], plain)
    monkeypatch.setattr(sandbox, "_exchange", exchange)
    assert sandbox.text(jobs(2)[1], plain) == "m1"


def test_the_child_knows_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    sandbox._child.end()
    sandbox.text(jobs(1)[0], Named("x"))
    environment = f"/proc/{sandbox._child.process.pid}/environ"
    if os.path.exists(environment):
        with open(environment) as f:
            assert "hf_secret" not in f.read()


@pytest.mark.parametrize("times", [1, 2])
def test_a_child_killed_in_the_midst_is_asked_once_more(monkeypatch, times):
    """As the system does when memory runs out: not to be taken for the template's answer, nor for its fault."""
    start, starts = sandbox._start, []

    def doomed():
        process = start()
        starts.append(process)
        if len(starts) <= times:
            threading.Timer(0.3, process.kill).start()
        return process

    sandbox._child.end()
    monkeypatch.setattr(sandbox, "_start", doomed)
    slow = Named("{% for a in range(9) %}{% for b in range(20000) %}{% endfor %}{% endfor %}x")
    if times == 1:
        assert list(sandbox.run(jobs(100), slow)) == ["x"] * 100
    else:
        with pytest.raises(InputError, match=r"row 0: the process in which chat templates run was killed twice; make"):
            list(sandbox.run(jobs(100), slow))


CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
FORGETS = CHATML.replace("m.content", "m.content if loop.last or m.role == 'user' else m.content[:3]")
# as Gemma 4 does: each turn looks at all before it
LOOKS_BACK = CHATML.replace("<{{", "{% for n in messages %}{% if n.role == 'x' %}y{% endif %}{% endfor %}<{{")


def long_chat(turns, size):
    turn = [{"role": "user", "content": "ask " * (size // 4)}, {"role": "assistant", "content": "tell " * (size // 5)}]
    return Job(turn * (turns // 2), None, list(range(1, turns, 2)), "d.jsonl, row 1")


def test_a_thousand_long_turns_are_no_attack():
    """Every answer's rendering holds all before it: 200 MB, if they were all kept."""
    (((text, spans),),) = sandbox.run([long_chat(1000, 1500)], Named(CHATML), ends=("<end>",))
    assert len(text) > 1_000_000
    assert len(spans) == 500
    assert {text[start : start + 5] for start, *_ in spans} == {"tell "}


def test_a_template_that_looks_back_at_every_turn_is_no_attack():
    (((_, spans),),) = sandbox.run([long_chat(300, 10)], Named(LOOKS_BACK), ends=("<end>",))
    assert len(spans) == 150


def test_long_replies_come_in_parts():
    """One request's answers, where the template rewrites history, are more than the process may hold at once."""
    some = [long_chat(400, 20)._replace(origin=i) for i in range(30)]
    out = list(sandbox.run(some, Named(FORGETS), ends=("<end>",)))
    assert len(out) == 30
    assert sum(len(text) for examples in out for text, _ in examples) > 30_000_000
    assert all(len(examples) == 200 and examples == out[0] for examples in out)
    assert out[0][1][0].startswith("<user>ask ask ask ask ask <end><assistant>tel<end>")
    assert out[0][1][0].endswith("<assistant>tell tell tell tell <end>")


def test_a_conversation_too_long_for_a_template_that_rewrites_history_is_told_so():
    with pytest.raises(RefusedError, match=r"row 1: .*its 1,000 turns make an example of each answer.*split the row"):
        list(sandbox.run([long_chat(1000, 400)], Named(FORGETS), ends=("<end>",)))


def test_jinja_is_found_where_we_find_it(monkeypatch, tmp_path):
    """A path that a program adds to its own, a user's packages where HOME is another: the child looks there too."""
    monkeypatch.syspath_prepend(str(tmp_path / "added"))
    seen = {}
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: seen.update(k["env"]) or popen(*a, **k))
    sandbox._child.end()
    assert sandbox.text(jobs(1)[0], Named("x")) == "x"
    assert seen["PYTHONPATH"].split(os.pathsep) == [p for p in sys.path if p]


def test_a_process_that_cannot_start_is_not_the_templates_fault(monkeypatch, tmp_path):
    sandbox._child.end()
    (tmp_path / "broken.py").write_text("raise RuntimeError('no jinja here')")
    with monkeypatch.context() as context:
        context.setattr(sandbox, "_CHILD", tmp_path / "broken.py")
        with pytest.raises(
            InputError, match=r"row 0: the process in which .* ends at once \(exit code 1: RuntimeError: no"
        ):
            sandbox.text(jobs(1)[0], Named("x"))
    assert sandbox.text(jobs(1)[0], Named("x")) == "x"


@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="no such signal here")
def test_a_signal_that_we_ignore_still_ends_what_hangs(monkeypatch):
    """Under a profiler: the child would inherit it."""
    sandbox._child.end()
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        with pytest.raises(InputError, match="ran on without an end"):
            sandbox.text(jobs(1)[0], Named(LOOP + "ignored"))
    finally:
        signal.signal(signal.SIGPROF, before)


def test_commands_refuse_a_hostile_model(refused, tiny_folder, rows_file, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(LOOP)
    line = refused("data", "show", rows_file, "--model", folder)
    assert line.startswith(
        f"{rows_file}, row 1: the chat template of {folder} was stopped, for it ran on without an end"
    )
    (folder / "chat_template.jinja").write_text("{{ 'a' * 200000000 }}")
    line = refused("train", "--model", folder, "--data", rows_file, "--output", tmp_path / "out")
    assert "was stopped, for it asked for over 256 MB of memory" in line
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    line = refused("generate", folder, "--prompt", "hi")
    assert "prompt 1: the chat template of" in line
    assert "was stopped, for it reaches for Python's own parts (__class__ of str)" in line
