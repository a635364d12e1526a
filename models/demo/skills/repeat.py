"""Repeating words, known and spliced: short and dense practice of copying, which JSON and tools build on."""

from . import stories
from .common import CITIES, LANGUAGES, NAMES, assistant, conversation, draw, invented_word, user

PROMPTS = {
    "en": ["Repeat: {}", "Repeat after me: {}", 'Repeat "{}".', 'Say "{}".', "Copy: {}", "Copy this: {}", "Say this again: {}"],
    "fr": ["Répète : {}", "Répète après moi : {}", 'Répète "{}".', 'Dis "{}".', "Copie : {}", "Recopie ceci : {}"],
}
WORDS = NAMES + CITIES + stories.NOUNS["en"] + [noun.split(" ")[-1] for noun in stories.NOUNS["fr"]]


def spliced_word(rng):
    """The start of a word and the end of another: 'Marbon', 'lisge'."""
    first, second = rng.sample(WORDS, 2)
    return first[: rng.randint(1, 4)] + second[-rng.randint(1, 4):].lower()


def word(rng):
    roll = rng.random()
    if roll < 0.5:
        made = spliced_word(rng)
        return made.capitalize() if rng.random() < 0.6 else made
    if roll < 0.7:
        return invented_word(rng)
    return rng.choice(WORDS) if roll < 0.9 else str(rng.randint(0, 9999))


def sample(rng, heldout=False):
    language = rng.choice(LANGUAGES)
    text = draw(rng, heldout, lambda r: " ".join(word(r) for _ in range(r.randint(1, 6))), lambda t: ("repeat", t))
    prompt = rng.choice(PROMPTS[language]).format(text)
    return conversation("repeat", [user(prompt), assistant(text)], expected={"contains": [text]})
