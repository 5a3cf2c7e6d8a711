"""instruction: the same wish in another frame ("Could you ...?", "Your task: ..."), so that wording is not learnt by heart."""

import re
from collections.abc import Collection

import numpy as np

from tunesmith.data.augment._words import asked_part
from tunesmith.errors import InputError

WHOLE = True
POLITE = (  # before an instruction that begins with a verb, which loses its capital
    "Please {}", "Could you please {}", "Can you {}", "I would like you to {}", "I need you to {}", "Would you {}",
    "Kindly {}", "Your task is to {}", "Help me with this: {}",
)  # fmt: skip
FRAMES = ("### Instruction\n{}", "Hello! {}", "Hi there. {}")  # around any prompt, which stays as it is
WISHES = ("Here is what I want: {}", "Task: {}", "Request: {}")  # before what is no question
QUESTIONS = ("Question: {}", "I have a question: {}", "A quick question: {}")
THANKS = "{}\n\nThank you."  # only where no material stands at the end, which it would be taken for a part of
_QUESTION = re.compile(
    r"(?:what|who|whom|whose|which|when|where|why|how|is|are|was|were|do|does|did|can|could|should|will|would)\b", re.I
)
_ASKS = ("Could", "Can", "Would")
# Verbs that instructions begin with; only before these may "Please" stand and the capital fall.
_IMPERATIVES = """
add analyse analyze answer apply arrange assign brainstorm build calculate categorize change check choose cite
classify combine come compare complete compose compute conclude construct convert correct count craft create debug
define delete demonstrate derive describe design detect determine develop differentiate discuss distinguish divide
draft edit elaborate estimate evaluate examine explain explore extract fill find fix form formulate gather generate
give group guess highlight identify illustrate imagine implement improve infer insert interpret introduce invent join
judge justify label list locate look make match measure modify multiply name offer optimize order organize outline
paraphrase pick plan play point predict prepare present produce propose prove provide put rank rate read rearrange
recommend reduce refactor rephrase replace reply report research respond restate retrieve return reverse review revise
reword rewrite round say select separate share show simplify simulate sketch solve sort specify spell split state
structure suggest summarize suppose take tell test think transform translate turn update use utilize verify visualize
walk write
"""
_VERBS = frozenset(_IMPERATIVES.split())


def vary(
    text: str,
    rng: np.random.Generator,
    keep: Collection[str] = (),
    *,
    templates: list[str] | None = None,
) -> str:
    """Return the prompt in one of the frames, or of your `templates`, each with {} where the prompt goes.

    A frame that goes on into the prompt ("Could you {}") is taken only where that begins with a verb of the imperative.
    InputError for a template without exactly one {}.
    """
    del keep  # nothing of the prompt is touched but its first capital
    own = check_templates(templates)
    if own:
        return own[int(rng.integers(len(own)))].replace("{}", text)
    first = re.match(r"([A-Z][a-z]+)\s+(?!(?:is|are|was|were|has|had|shows|says)\b)", text)
    wish = text[: asked_part(text)].rstrip()
    question = wish.endswith("?") or _QUESTION.match(text) is not None
    frames: tuple[str, ...] = FRAMES + (QUESTIONS if question else WISHES)
    frames += POLITE if first is not None and first[1].lower() in _VERBS else ()
    frames += (THANKS,) if wish == text.rstrip() else ()
    frame = frames[int(rng.integers(len(frames)))]
    if frame not in POLITE:
        return frame.replace("{}", text)
    said = frame.replace("{}", text if frame.endswith(": {}") else text[:1].lower() + text[1:])
    one = re.fullmatch(r"[^.!?\n]+\.?", wish)
    if frame.startswith(_ASKS) and one and not text[len(wish) :].startswith(":"):
        end = len(said) - len(text) + len(wish)
        said = said[:end].removesuffix(".") + "?" + said[end:]
    return said


def check_templates(templates: list[str] | None) -> list[str]:
    """Return the templates; InputError where one does not have exactly one {}."""
    for template in templates or []:
        if template.count("{}") != 1:
            raise InputError(
                f'augment.instruction.templates: "{template[:60]}" needs exactly one {{}}, where the prompt goes.'
            )
    return templates or []
