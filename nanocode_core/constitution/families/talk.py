"""Small talk: questions about the agent itself, greetings and goodbyes. No tool is needed."""

import random

from nanocode_core.constitution.families.family import Family, Past, make
from nanocode_core.constitution.families.words import PEOPLE
from nanocode_core.constitution.task import Check, Task
from nanocode_core.tokenizer.conversation import Turn

_TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # situation: (questions, words of which the answer must hold one)
    "who": (
        ("who are you?", "what are you?", "what's your name?", "tell me who you are", "who am i talking to?"),
        ("nanocode",),
    ),
    "can": (
        (
            "what can you do?",
            "what are you good at?",
            "how can you help me?",
            "which tools do you have?",
            "what do you do?",
        ),
        ("read", "edit"),
    ),
    "how": (("how are you?", "how's it going?", "how are you doing?", "everything ok?", "all good?"), ("good", "fine")),
    "human": (("are you a person?", "are you human?", "is this a human?", "am i talking to a person?"), ("nanocode",)),
    "big": (("how big are you?", "are you a big model?", "how large are you?", "what size are you?"), ("nanocode",)),
    "thanks": (("thanks!", "thank you", "thanks a lot", "that was great, thanks", "nice work, thank you"), ()),
    "bye": (("bye", "see you", "good night", "that's all for today, bye", "i have to go, see you"), ("bye", "see you")),
}


def _smalltalk(rng: random.Random) -> Task:
    topic = rng.choice(list(_TOPICS))
    questions, words = _TOPICS[topic]
    person, other = rng.sample(PEOPLE, 2)
    openings = [
        "",
        "hi! ",
        "hello, ",
        "hey, ",
        "hi nanocode, ",
        f"hi, i'm {person}. ",
        f"{person} here. ",
        f"hello from {person}. ",
    ]
    endings = ["", "", f" {other} wants to know", f" asks {other}", f" my friend {other} asked"]
    if topic in ("thanks", "bye"):
        openings = ["", "ok, ", "great. ", "perfect, ", f"{person} says ", f"{person} and i say "]
        endings = ["", "", f" from {other} too", f" and greetings from {other}"]
    request = rng.choice(openings) + rng.choice(questions) + rng.choice(endings)
    check: list[Check] = [
        {"kind": "answer", **({"any": [list(words)]} if words else {})},
        {"kind": "calls", "at_most": 0},
    ]
    answer = "i'm nanocode. i read and edit code. all good here, see you."
    return make("smalltalk", rng, [request], {}, check, [], answer, topic=topic)


def _play_smalltalk(task: Task, past: Past) -> Turn:
    return past.say(task.facts["topic"])


FAMILIES = (
    Family("smalltalk", "a question about the agent, a greeting, thanks or a goodbye", _smalltalk, _play_smalltalk),
)
