"""Additions of two numbers from 0 to 99, in many wordings."""

from .common import LANGUAGES, assistant, conversation, decorate, draw, user

WORDINGS = {
    "en": ["What is {a} + {b}?", "What is {a} plus {b}?", "How much is {a} + {b}?", "How much is {a} plus {b}?",
           "Add {a} and {b}.", "Compute {a} + {b}.", "Calculate {a} + {b}.", "{a} plus {b}?", "{a} plus {b}",
           "What is the sum of {a} and {b}?", "Give me the sum of {a} and {b}.", "What do {a} and {b} make?",
           "Can you add {a} and {b}?", "Can you compute {a} + {b}?", "What is {a}+{b}?", "Sum {a} and {b}.",
           "How much do {a} and {b} make together?", "I have {a} apples and I get {b} more. How many is that?",
           "What does {a} + {b} equal?", "Please add {b} to {a}.", "{a} and {b} make how much?",
           "What's {a} + {b}?", "What's {a} plus {b}?", "Solve {a} + {b}.", "The sum of {a} and {b}?"],
    "fr": ["Combien font {a} et {b} ?", "Combien font {a} + {b} ?", "Combien font {a} plus {b} ?",
           "Combien fait {a} + {b} ?", "Combien fait {a} plus {b} ?", "Ajoute {a} et {b}.", "Calcule {a} + {b}.",
           "Quelle est la somme de {a} et {b} ?", "Donne-moi la somme de {a} et {b}.", "{a} plus {b} ?",
           "{a} et {b}, ça fait combien ?", "Peux-tu ajouter {a} et {b} ?", "Peux-tu calculer {a} + {b} ?",
           "J'ai {a} pommes et j'en reçois {b}. Combien en ai-je ?", "Additionne {a} et {b}.",
           "Que vaut {a} + {b} ?", "Que font {a} et {b} ?", "C'est combien, {a} + {b} ?", "Ajoute {b} à {a}.",
           "La somme de {a} et {b} ?", "{a} + {b}, ça fait combien ?", "Combien font {a}+{b} ?"],
}
COMPACT = ["{a}+{b}=", "{a} + {b} =", "{a} + {b}", "{a}+{b}", "{a}+{b}=?", "{a} + {b} = ?", "{a}+{b} ?", "{a} + {b}?"]
TOO_LARGE = {
    "en": "I only add numbers from 0 to 99.",
    "fr": "Je n'additionne que les nombres de 0 à 99.",
}
ONLY_ADDITIONS = {
    "en": "I only learned additions of numbers from 0 to 99.",
    "fr": "Je n'ai appris que les additions de nombres de 0 à 99.",
}
OTHER_OPERATIONS = {
    "en": ["What is {a} - {b}?", "What is {a} minus {b}?", "What is {a} times {b}?", "What is {a} * {b}?",
           "Divide {a} by {b}.", "Multiply {a} by {b}.", "Subtract {b} from {a}.", "What is {a} / {b}?"],
    "fr": ["Combien font {a} - {b} ?", "Combien font {a} moins {b} ?", "Combien font {a} fois {b} ?",
           "Combien font {a} * {b} ?", "Divise {a} par {b}.", "Multiplie {a} par {b}.", "Que vaut {a} / {b} ?"],
}


def pair_key(pair):
    return ("addition", min(pair), max(pair))


def pair(rng, heldout=False):
    """Two operands; a held-out pair is held out in both orders and in every wording."""
    number = lambda: rng.randint(0, 9) if rng.random() < 0.12 else rng.randint(0, 99)
    return draw(rng, heldout, lambda _: (number(), number()), pair_key)


def question(rng, a, b, language):
    if rng.random() < 0.25:
        return rng.choice(COMPACT).format(a=a, b=b)
    return decorate(rng, rng.choice(WORDINGS[language]).format(a=a, b=b), language)


def refusal(rng, language):
    if rng.random() < 0.5:
        a, b = rng.randint(100, 999), rng.choice((rng.randint(0, 99), rng.randint(100, 999)))
        a, b = rng.choice(((a, b), (b, a)))
        return question(rng, a, b, language), TOO_LARGE[language]
    text = rng.choice(OTHER_OPERATIONS[language]).format(a=rng.randint(0, 99), b=rng.randint(0, 99))
    return decorate(rng, text, language), ONLY_ADDITIONS[language]


def sample(rng, heldout=False):
    language = rng.choice(LANGUAGES)
    if not heldout and rng.random() < 0.04:
        text, answer = refusal(rng, language)
        if not any(letter.isalpha() for letter in text):
            answer = TOO_LARGE["en"]  # a bare formula has no language
        return conversation("addition", [user(text), assistant(answer)])
    a, b = pair(rng, heldout)
    answer = assistant(f"{a} + {b} = {a + b}.")
    text = question(rng, a, b, language)
    return conversation("addition", [user(text), answer], expected={"sum": a + b})
