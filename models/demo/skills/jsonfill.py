"""Filling a JSON object from a sentence: the values are copied from the sentence."""

import json

from .common import LANGUAGES, assistant, city, conversation, draw, person, user

COLOURS = {"en": "red blue green yellow black white purple orange pink brown grey".split(),
           "fr": "rouge bleu vert jaune noir blanc violet orange rose brun gris".split()}
PRODUCTS = {"en": "lamps chairs books pens apples tables cups shirts hats bags boxes bottles keys clocks plates shoes "
                  "candles mirrors carpets kettles".split(),
            "fr": "lampes chaises livres stylos pommes tables tasses chemises chapeaux sacs boîtes bouteilles clés "
                  "montres assiettes chaussures bougies miroirs tapis vases".split()}
JOBS = {"en": "teacher baker doctor nurse painter farmer lawyer sailor driver cook writer plumber pilot singer".split(),
        "fr": "professeur boulanger médecin infirmier peintre fermier avocat marin chauffeur cuisinier pilote".split()}
EVENTS = {"en": "concert meeting wedding party match lecture festival market workshop exhibition".split(),
          "fr": "concert mariage match festival marché spectacle tournoi dîner cours voyage".split()}
MONTHS = {"en": "January February March April May June July August September October November December".split(),
          "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split()}


def a_date(rng, language):
    if rng.random() < 0.5:
        return f"{rng.randint(1990, 2039)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS[language])}"


def a_price(rng):
    return rng.randint(1, 99) if rng.random() < 0.5 else rng.randint(100, 9999) / 100


VALUES = {
    "name": lambda rng, lang, unseen: person(rng, unseen),
    "age": lambda rng, lang, unseen: rng.randint(1, 99),
    "city": lambda rng, lang, unseen: city(rng, unseen),
    "colour": lambda rng, lang, unseen: rng.choice(COLOURS[lang]),
    "product": lambda rng, lang, unseen: rng.choice(PRODUCTS[lang]),
    "quantity": lambda rng, lang, unseen: rng.randint(2, 99),
    "price": lambda rng, lang, unseen: a_price(rng),
    "job": lambda rng, lang, unseen: rng.choice(JOBS[lang]),
    "event": lambda rng, lang, unseen: rng.choice(EVENTS[lang]),
    "date": lambda rng, lang, unseen: a_date(rng, lang),
}
KEYS = {
    "en": {"name": ["name", "name", "first_name", "person"], "age": ["age"], "city": ["city", "city", "town"],
           "colour": ["colour", "color"], "product": ["product", "item"], "quantity": ["quantity", "count"],
           "price": ["price", "price", "cost"], "job": ["job", "job", "profession"], "event": ["event"], "date": ["date"]},
    "fr": {"name": ["nom", "nom", "prénom", "name"], "age": ["âge", "age"], "city": ["ville", "ville", "city"],
           "colour": ["couleur", "couleur", "colour"], "product": ["produit", "article", "product"],
           "quantity": ["quantité", "nombre", "quantity"], "price": ["prix", "prix", "price"],
           "job": ["métier", "métier", "job"], "event": ["événement", "event"], "date": ["date"]},
}
SENTENCES = {
    "en": ["{name} is {age} and lives in {city}.", "{name} is {age} years old and lives in {city}.",
           "{name}, {age}, lives in {city}.", "{name} from {city} is {age} years old.",
           "My name is {name}, I am {age} and I live in {city}.", "I am {name}, I am {age} years old, from {city}.",
           "{name} lives in {city}.", "{name} is {age} years old.", "{name} is {age}.", "{name} comes from {city}.",
           "{name} is a {job} in {city}.", "{name} is a {age} year old {job}.", "{name} works as a {job} in {city}.",
           "{name}, a {job} from {city}, is {age} years old.", "{name} works as a {job} and is {age}.",
           "{name} bought {quantity} {product} for {price} euros.", "{name} ordered {quantity} {colour} {product}.",
           "{quantity} {product} cost {price} euros.", "{name} wants {quantity} {product} in {city}.",
           "{name} sold {quantity} {colour} {product} for {price} dollars.", "The price of {quantity} {product} is {price} euros.",
           "The {product} are {colour} and cost {price} euros.", "We sent {quantity} {product} to {name} in {city}.",
           "The {event} is in {city} on {date}.", "{name} goes to the {event} in {city} on {date}.",
           "The {event} takes place on {date} in {city}.", "{name} booked the {event} on {date}.",
           "On {date}, {name} arrives in {city}.", "{name} likes {colour} and is {age}.",
           "The favourite colour of {name} is {colour}.", "{name} lives in {city} and likes {colour}."],
    "fr": ["{name} a {age} ans et habite à {city}.", "{name}, {age} ans, habite à {city}.", "{name} a {age} ans et vit à {city}.",
           "{name} vit à {city} et a {age} ans.", "Je m'appelle {name}, j'ai {age} ans et j'habite à {city}.",
           "{name} habite à {city}.", "{name} a {age} ans.", "{name} vient de {city}.", "Je suis {name}, {age} ans, de {city}.",
           "{name} est {job} à {city}.", "{name} travaille comme {job} à {city}.", "{name}, {job} à {city}, a {age} ans.",
           "{name} est {job} et a {age} ans.", "{name} a acheté {quantity} {product} pour {price} euros.",
           "{name} achète {quantity} {product} à {price} euros.", "{quantity} {product} coûtent {price} euros.",
           "{name} veut {quantity} {product} à {city}.", "{name} vend {quantity} {product} pour {price} euros.",
           "Le prix de {quantity} {product} est de {price} euros.", "Nous envoyons {quantity} {product} à {name} à {city}.",
           "Le {event} a lieu à {city} le {date}.", "{name} va au {event} à {city} le {date}.",
           "Le {event} du {date} est à {city}.", "{name} a réservé le {event} du {date}.", "Le {date}, {name} arrive à {city}.",
           "{name} aime le {colour} et a {age} ans.", "La couleur préférée de {name} est le {colour}.",
           "{name} habite à {city} et aime le {colour}."],
}
PROMPTS = {
    "en": ["Fill the JSON {schema} from: {text}", "Fill the JSON {schema} from: {text}", "Fill {schema} from: {text}",
           "Fill in the JSON {schema} with: {text}", "{text} Fill the JSON {schema}.", "Complete the JSON {schema} from: {text}",
           "Extract {schema} from: {text}", "Extract the JSON {schema} from this sentence: {text}",
           "From the sentence: {text} Fill the JSON {schema}.", "Turn this into the JSON {schema}: {text}",
           "Write the JSON {schema} for: {text}", "Fill the JSON {schema} from this text:\n{text}"],
    "fr": ["Remplis le JSON {schema} avec : {text}", "Remplis le JSON {schema} à partir de : {text}",
           "Complète le JSON {schema} avec : {text}", "{text} Remplis le JSON {schema}.", "Remplis {schema} avec : {text}",
           "Extrais {schema} de : {text}", "Extrais le JSON {schema} de cette phrase : {text}",
           "À partir de la phrase : {text} Remplis le JSON {schema}.", "Écris le JSON {schema} pour : {text}",
           "Remplis le JSON {schema} à partir de ce texte :\n{text}"],
}
BY_KEYS = {
    "en": ["Give the JSON with keys {keys} for: {text}", "Extract {keys} as JSON from: {text}",
           "Extract {keys} as JSON: {text}", "Make a JSON object with {keys} from: {text}"],
    "fr": ["Donne le JSON avec les clés {keys} pour : {text}", "Extrais {keys} en JSON de : {text}",
           "Extrais {keys} en JSON : {text}", "Fais un objet JSON avec {keys} à partir de : {text}"],
}
BLANKS = ["...", "...", "...", '""', "null", "?"]


def slots_of(sentence):
    return [slot for slot in VALUES if "{" + slot + "}" in sentence]


def schema_text(rng, keys):
    blank = rng.choice(BLANKS)
    colon, comma = (": ", ", ") if rng.random() < 0.85 else (":", ",")
    return "{" + comma.join(f'"{key}"{colon}{blank}' for key in keys) + "}"


def make(rng, unseen):
    """A sentence, the slots that it fills and their values."""
    language = rng.choice(LANGUAGES)
    sentence = rng.choice(SENTENCES[language])
    slots = slots_of(sentence)
    values = {slot: VALUES[slot](rng, language, unseen) for slot in slots}
    rng.shuffle(slots) if rng.random() < 0.4 else slots.sort(key=lambda slot: sentence.index("{" + slot))
    if len(slots) > 2 and rng.random() < 0.2:
        slots.pop()
    return language, sentence, slots, values


def written(value):
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def json_text(answer):
    """Like json.dumps, but a price keeps its two decimals, as in the sentence."""
    return "{" + ", ".join(
        f"{json.dumps(key, ensure_ascii=False)}: "
        + (written(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False))
        for key, value in answer.items()) + "}"


def sample(rng, heldout=False):
    language, sentence, slots, values = draw(
        rng, heldout, lambda r: make(r, heldout), lambda made: ("json", *map(str, made[3].values())))
    names = {slot: rng.choice(KEYS[language][slot]) for slot in slots}
    text = sentence.format(**{slot: written(value) for slot, value in values.items()})
    if rng.random() < 0.2:
        keys = list(names.values())
        listed = ", ".join(keys[:-1]) + (" and " if language == "en" else " et ") + keys[-1] if len(keys) > 1 else keys[0]
        prompt = rng.choice(BY_KEYS[language]).format(keys=listed, text=text)
    else:
        prompt = rng.choice(PROMPTS[language]).format(schema=schema_text(rng, names.values()), text=text)
    answer = {names[slot]: values[slot] for slot in slots}
    return conversation("json", [user(prompt), assistant(json_text(answer))], expected={"json": answer})
