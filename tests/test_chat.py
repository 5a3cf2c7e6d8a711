"""The terminal chat, fed with lines."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from tunesmith import chat as module
from tunesmith.errors import InputError
from tunesmith.model.loading import ModelSource
from tunesmith.model.many import Several


class Script:
    """Stands for generate.stream: answers with the words given, keeps what it was asked; an exception is raised."""

    def __init__(self, *answers):
        self.answers, self.asked, self.closed = list(answers), [], 0

    def __call__(self, model, tokenizer, messages, tools=None, **sampling):
        self.asked.append(messages)
        try:
            for piece in self.answers.pop(0):
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed += 1


@pytest.fixture
def talk(monkeypatch):
    def run(script, lines, system=None, context=1000):
        monkeypatch.setattr("tunesmith.model.generate.stream", script)
        count = lambda tokenizer, chats: [[0] * sum(len(m["content"]) for m in chats[0][0])]  # noqa: E731
        monkeypatch.setattr("tunesmith.model.generate.encode_prompts", count)
        monkeypatch.setattr("tunesmith.model.generate.context_length", lambda model: context)
        out = io.StringIO()
        console = Console(file=out, highlight=False, markup=False, soft_wrap=True)
        given = iter(lines)

        def read():
            line = next(given, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line + "\n"

        one = Several({"none": SimpleNamespace(tokenizer=None, source=ModelSource("base"))})
        messages = module.converse(SimpleNamespace(), one, read, console, system, max_new_tokens=20)
        return messages, out.getvalue()

    return run


def said(messages):
    return [m["content"] for m in messages]


def test_history_is_kept(talk):
    script = Script([" Hel", "lo."], ["Fine."])
    messages, out = talk(script, ["hi", "", "how?"], system="Be brief.")
    assert [said(m) for m in script.asked] == [["Be brief.", "hi"], ["Be brief.", "hi", "Hello.", "how?"]]
    assert said(messages) == ["Be brief.", "hi", "Hello.", "how?", "Fine."]
    assert out == "Hello.\nFine.\n"  # no colour codes, no prompt signs: this is no terminal


def test_commands(talk):
    script = Script(["A"], ["B"], ["C"])
    lines = ["one", "/system Rhyme.", "two", "/reset", "three", "/sytem x", "/help", "/system", "/quit", "never"]
    messages, out = talk(script, lines)
    assert [said(m) for m in script.asked] == [["one"], ["Rhyme.", "one", "A", "two"], ["Rhyme.", "three"]]
    assert said(messages) == ["three", "C"]
    assert 'There is no command "/sytem". Did you mean "/system"?' in out
    assert "/reset" in out


def test_ctrl_c_stops_the_answer_not_the_program(talk):
    script = Script(["Once upon", KeyboardInterrupt(), "never"], ["Yes."])
    messages, out = talk(script, ["a story", KeyboardInterrupt(), "again"])
    assert said(messages) == ["a story", "Once upon", "again", "Yes."]
    assert "Once upon (stopped)" in out
    assert script.closed == 2


def test_a_turn_the_model_cannot_take_is_dropped(talk):
    script = Script([InputError("the template refuses it.")], ["Yes."])
    messages, out = talk(script, ["bad", "good"])
    assert said(messages) == ["good", "Yes."]
    assert "the template refuses it." in out


def test_the_oldest_turns_leave_a_full_context(talk):
    """Of 40 tokens a quarter is kept for the answer: 31 tokens of prompt are too many, the system message stays."""
    script = Script(["a" * 8], ["b" * 8], ["c"])
    messages, out = talk(script, ["q" * 8, "r" * 8, "s" * 8], system="SYS", context=40)
    assert said(script.asked[1]) == ["SYS", "q" * 8, "a" * 8, "r" * 8]
    assert said(script.asked[2]) == ["SYS", "r" * 8, "b" * 8, "s" * 8]
    assert said(messages) == ["SYS", "r" * 8, "b" * 8, "s" * 8, "c"]
    assert out.count("oldest turns") == 1


def test_what_a_model_writes_does_not_steer_the_terminal(talk):
    _, out = talk(Script(["\x1b[2Jred\x07 ", "é 😀\n\tx"]), ["hi"])
    assert out == "[2Jred é 😀\n\tx\n"


def test_piped_lines_reach_a_real_model(shared, monkeypatch):
    out = io.StringIO()
    model = str(shared / "models" / "tinystories-656k-llama")
    messages = module.chat(model, stdin=io.StringIO("Tell me a story.\n/quit\n"), stdout=out, max_new_tokens=12)
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[1]["content"]
    assert out.getvalue().endswith(messages[1]["content"] + "\n")
    with pytest.raises(InputError, match="temperature is -1"):
        module.chat(model, temperature=-1)
