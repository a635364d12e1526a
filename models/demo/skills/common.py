"""Helpers shared by all skills: word lists, held-out choice, small text variations."""

import hashlib

LANGUAGES = ("en", "fr")

NAMES = """Marie Paul Alice Lucas Emma Louis Jules Chloé Hugo Léa Nina Oscar Zoé Victor Anna Simon Clara
Thomas Julie Antoine Camille Nicolas Sophie Pierre Manon Arthur Sarah Gabriel Inès Raphaël Eva Adam Rose
Leo Lina Noah Mila Ethan Jade Maël Lou Tom Alba Max Ben Kate Jack Olivia Liam Sophia James Emily Henry
Grace Daniel Lucy David Ella Peter Mary John Laura Robert Susan Karim Fatima Omar Leïla Yuki Kenji Mei
Chen Carlos Lucia Diego Elena Marco Giulia Sven Astrid Lars Freya Ivan Olga Amina Kofi Priya Arjun Bob
Denis Claire Marc Hélène Yves Agnès Rémi Gaëlle Théo Margot Quentin Solène Basile Céline Fanny Gilles
Alex Sam Charlie Robin Martin Mark Luke Jane Helen George Edward Philip Steve Linda Karen Nancy Brian
Kevin Jason Eric Frank Rachel Maria Julia Diana Monica Tina Wendy Harry Ruby Amy Zack Iris Nora Félix""".split()
HELDOUT_NAMES = """Baptiste Romane Ophélie Gaspard Élise Valentin Matilda Oliver Harriet Winston Salma Tariq
Ingrid Pablo Natasha Hiroshi Bianca Roland Tessa Edgar""".split()

CITIES = """Paris Lyon Marseille Lille Nantes Bordeaux Toulouse Nice Rennes Grenoble Dijon Brest Tours Metz
London Oxford Bristol Leeds Dublin Glasgow Berlin Hamburg Munich Rome Milan Naples Turin Madrid Seville
Valencia Lisbon Porto Brussels Geneva Zurich Vienna Prague Warsaw Athens Oslo Stockholm Helsinki Moscow
Cairo Tunis Dakar Nairobi Tokyo Osaka Kyoto Seoul Delhi Mumbai Sydney Toronto Montreal Quebec Boston
Chicago Seattle Dallas Denver Miami Lima Bogota Havana Amsterdam Copenhagen Budapest Istanbul Manila
Bangkok Hanoi Singapore Shanghai Annecy Avignon Cannes Colmar Limoges Orléans Reims Rouen Strasbourg
Angers Nancy Poitiers York Liverpool Manchester Cardiff Austin Houston Phoenix Portland""".split()
HELDOUT_CITIES = "Lausanne Bologna Aarhus Salzburg Chartres Besançon Edinburgh Nagoya Krakow Tampa".split()

SYLLABLES = """ba be bo ca ce co da de di do fa fi ga go ha hi jo ka ki la le li lo ma me mi mo na ne ni no
pa pe ra re ri ro sa se si so ta te ti to va ve vi vo za zo bran del fin gar lan mar nor rin sol tan ver
win yal""".split()


def is_heldout(key, percent=7):
    """A stable pseudo-random choice: the same key is held out on every machine and in every run."""
    digest = hashlib.blake2s(str(key).encode()).digest()
    return int.from_bytes(digest[:4], "little") % 100 < percent


def draw(rng, heldout, make, key):
    """Calls `make` until the held-out state of what it made is the wanted one."""
    while True:
        item = make(rng)
        if is_heldout(key(item)) == heldout:
            return item


def invented_word(rng):
    """A capitalised word that exists nowhere, so that the model learns to copy, not to remember."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def person(rng, heldout=False):
    if heldout:
        return rng.choice(HELDOUT_NAMES)
    return invented_word(rng) if rng.random() < 0.3 else rng.choice(NAMES)


def city(rng, heldout=False):
    if heldout and rng.random() < 0.5:
        return rng.choice(HELDOUT_CITIES)
    return invented_word(rng) if rng.random() < 0.25 else rng.choice(CITIES)


OPENERS = {
    "en": ["Hello! ", "Hi! ", "Please tell me: ", "Quick question: ", "OK. ", "Please: "],
    "fr": ["Bonjour ! ", "Salut ! ", "Dis-moi : ", "Petite question : ", "Bon. ", "S'il te plaît : "],
}
CLOSERS = {"en": [" Thanks!", " Please.", " Thank you."], "fr": [" Merci !", " S'il te plaît.", " Merci."]}


def decorate(rng, text, language):
    """Small changes of a question that leave its answer alone."""
    if rng.random() < 0.15:
        text = rng.choice(OPENERS[language]) + text
    if rng.random() < 0.06:
        text = text + rng.choice(CLOSERS[language])
    if rng.random() < 0.08:
        text = text.lower()
    if rng.random() < 0.08 and text.endswith("?"):
        text = text[:-1].rstrip()
    return text


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def conversation(skill, messages, tools=None, expected=None):
    """The last message is the answer to learn; `expected` is what the evaluation checks."""
    return {"skill": skill, "messages": messages, "tools": tools, "expected": expected}
