"""What happened to which rows while they were rendered: counted as they pass, said at the end in notices or one refusal."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tunesmith.data.records import Origin
from tunesmith.errors import InputError

_NAMED = 5
NOTHING = "left out: nothing to score (no answer, an empty one, or none that is trained)"


@dataclass
class Tally:
    """How many rows something happened to, and the first few of them; a row that comes again at once counts once."""

    n: int = 0
    first: list[Origin] = field(default_factory=list)
    last: Origin | None = None

    def add(self, origin: Origin) -> None:
        """Count a row."""
        if origin == self.last:
            return
        self.n += 1
        self.last = origin
        if len(self.first) < _NAMED and (not self.first or origin.file == self.first[0].file):
            self.first.append(origin)

    def __str__(self) -> str:
        rows = ", ".join(str(o.row) for o in self.first)
        more = f" and {self.n - len(self.first)} more" if self.n > len(self.first) else ""
        return f"{self.first[0].file}, row{'s' * (self.n > 1)} {rows}{more}"

    def sentence(self, one: str, many: str) -> list[str]:
        """Return "3 <many> (d.jsonl, rows 1, 2, 7)", or nothing where nothing happened."""
        return [f"{self.n:,} {many if self.n > 1 else one} ({self})"] if self.n else []


@dataclass
class Counts:
    """What happened to the rows of a set."""

    unscored: Tally = field(default_factory=Tally)
    leading: Tally = field(default_factory=Tally)
    no_tools: Tally = field(default_factory=Tally)
    no_text: Tally = field(default_factory=Tally)
    no_reasoning: Tally = field(default_factory=Tally)
    cut: Tally = field(default_factory=Tally)
    dropped: Tally = field(default_factory=Tally)
    windows: Tally = field(default_factory=Tally)
    long: Tally = field(default_factory=Tally)
    rewritten: int = 0
    chats: int = 0
    closed: int = 0


def where(origins: Iterable[Origin]) -> str:
    """Name the first few rows: "data.jsonl, rows 3, 8, 12 and 4 more"."""
    tally = Tally()
    for origin in origins:
        tally.add(origin)
    return str(tally)


def unanswered(rows: object) -> InputError:
    """Return the refusal of a set without an answer to train on."""
    return InputError(f"nothing would be scored: no row has an answer to train on ({rows}).")


def refuse(counts: Counts, examples: int, score: str, max_length: int | None) -> None:
    """InputError where nothing that was rendered is scored, or no answer's end is."""
    if not examples:
        if counts.dropped.n:
            raise InputError(
                f"no answer is left within max_length {max_length}: every one begins beyond it "
                f"({counts.dropped}); raise train.max_length."
            )
        if counts.long.n:
            raise InputError(
                f"no row is left: all are longer than max_length {max_length}, and a reward is read at a row's end ({counts.long}); raise "
                "train.max_length."
            )
        if counts.no_tools.n:
            raise InputError(
                f"nothing would be scored: the answers are tool calls, which the model's chat template does not write "
                f"({counts.no_tools})."
            )
        if counts.no_text.n:
            raise InputError(
                f"nothing would be scored: the model's chat template does not write what the answers say "
                f"({counts.no_text}); use a model whose template takes text."
            )
        raise unanswered(counts.unscored)
    if score == "answers" and counts.chats and not counts.closed:
        if counts.cut.n:
            raise InputError(
                f"no answer's end is left within max_length {max_length}: the model would never learn to stop "
                f"({counts.cut}); raise train.max_length."
            )
        raise InputError(
            "the model's chat template ends no answer with a special token of its tokenizer, so the model would never "
            "learn to stop; use a template that ends answers with one, or add that token to the tokenizer."
        )


def notices(counts: Counts, max_length: int | None) -> list[str]:
    """Return what people should know, a sentence each, with the first rows."""
    rest = "one example per answer: the chat template rewrites history"
    rewritten = "1 conversation makes " if counts.rewritten == 1 else f"{counts.rewritten:,} conversations make "
    leading = "with an answer to nothing, which is not scored"
    calls = "tool calls that the chat template does not write; those turns are not scored"
    text = "an answer that the chat template does not write; that turn is not scored"
    reasoning = "reasoning that the chat template does not write"
    beyond = f"answer that begins beyond max_length {max_length} and is left out"
    long = f"longer than max_length {max_length} and left out, for a reward is read at a row's end"
    windows = f"longer than max_length {max_length} and cut into windows"
    return [
        *([rewritten + rest] if counts.rewritten else []),
        *counts.unscored.sentence(f"row {NOTHING}", f"rows {NOTHING}"),
        *counts.leading.sentence(f"row begins {leading}", f"rows begin {leading}"),
        *counts.no_tools.sentence(f"row has {calls}", f"rows have {calls}"),
        *counts.no_text.sentence(f"row has {text}", f"rows have {text}"),
        *counts.no_reasoning.sentence(f"row has {reasoning}", f"rows have {reasoning}"),
        *counts.cut.sentence(f"row cut at max_length {max_length}", f"rows cut at max_length {max_length}"),
        *counts.dropped.sentence(f"row has an {beyond}", f"rows have an {beyond}"),
        *counts.windows.sentence(f"row is {windows}", f"rows are {windows}"),
        *counts.long.sentence(f"row is {long}", f"rows are {long}"),
    ]
