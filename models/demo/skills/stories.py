"""Short stories about two given nouns, from a small grammar."""

from .common import LANGUAGES, assistant, conversation, draw, user

NOUNS = {
    "en": """cat dog bridge river tower lamp boat house tree garden fox owl robot child king queen bird horse
mountain forest castle lion mouse frog star moon cloud flower book clock door key ship train wolf bear rabbit dragon
teacher baker sailor painter farmer girl boy island lake road village market school apple cake hat stone drum kite
piano letter wizard giant duck sheep cow fish turtle spider bee whale penguin monkey violin lantern ladder mirror""".split(),
    "fr": """le chat;le chien;le pont;la rivière;la tour;la lampe;le bateau;la maison;le jardin;le renard;le hibou
le robot;le roi;la reine;le cheval;la montagne;la forêt;le château;le lion;la souris;la grenouille;le nuage;la fleur
le livre;la porte;la clé;le train;le loup;le lapin;le dragon;le boulanger;le marin;le peintre;la fille;le garçon
le lac;la route;le village;le marché;la pomme;le gâteau;le chapeau;la pierre;le tambour;le piano;la lettre;le magicien
le canard;le mouton;la vache;le poisson;la tortue;la baleine;le singe;le violon;la lanterne;le miroir;la lune
la poule;le facteur;la sorcière;le moulin;la barque;la cloche;le berger;la princesse""".replace("\n", ";").split(";"),
}
PROMPTS = {
    "en": ["Tell me a story about {0} and {1}.", "Tell a story about {0} and {1}.", "Write a story about {0} and {1}.",
           "Tell me a short story about {0} and {1}.", "A story about {0} and {1}, please.",
           "Can you tell me a story about {0} and {1}?", "Write a short story with {0} and {1}.",
           "I want a story about {0} and {1}.", "Please tell me a story with {0} and {1}.", "Story: {0} and {1}."],
    "fr": ["Raconte-moi une histoire sur {0} et {1}.", "Raconte une histoire sur {0} et {1}.",
           "Écris une histoire sur {0} et {1}.", "Raconte-moi une courte histoire sur {0} et {1}.",
           "Une histoire sur {0} et {1}, s'il te plaît.", "Peux-tu me raconter une histoire sur {0} et {1} ?",
           "Écris une courte histoire avec {0} et {1}.", "Je veux une histoire sur {0} et {1}.",
           "Invente une histoire avec {0} et {1}.", "Histoire : {0} et {1}."],
}
PROMPTS_FOR_ONE = {
    "en": ["Tell me a story about {0}.", "Tell me a short story about {0}.", "Write a story about {0}."],
    "fr": ["Raconte-moi une histoire sur {0}.", "Raconte une histoire sur {0}.", "Écris une histoire sur {0}."],
}
# Each line of a grammar is one sentence of the story: one of its choices is told. {a}, {b}: "a cat", {A}, {B}: "the cat".
GRAMMAR = {
    "en": [
        ["Once upon a time, there was {a}.", "Long ago, there was {a} in a quiet land.", "One morning, there was {a} in the sun."],
        ["Not far away, there was {b}.", "Every day, {A} looked at {b}.", "One day, {A} found {b}."],
        ["At first, {A} was afraid of {B}.", "{A} was curious about {B}.", "{A} was happy to see {B}.", "{A} felt very small next to {B}."],
        ["Then the rain came, and {B} helped {A}.", "Then the wind blew, and {A} stayed close to {B}.", "Then night fell, and {A} kept {B} safe."],
        ["From that day on, {A} and {B} were never apart.", "Since then, {A} and {B} are the best of friends.", "In the end, {A} and {B} were happy together."],
        ["The end."],
    ],
    "fr": [
        ["Il était une fois {a}.", "Il y a longtemps, il y avait {a} dans un pays calme.", "Un matin, il y avait {a} au soleil."],
        ["Non loin de là, il y avait {b}.", "Chaque jour, {A} regardait {b}.", "Un jour, {A} trouva {b}."],
        ["Au début, {A} avait peur devant {B}.", "{A} voulait tout savoir sur {B}.", "{A} aimait beaucoup {B}."],
        ["Puis la pluie arriva, et {B} aida {A}.", "Puis le vent souffla, et {A} resta avec {B}.", "Puis la nuit tomba, et {A} veilla sur {B}."],
        ["Depuis ce jour, {A} et {B} ne se quittent plus.", "Depuis, {A} et {B} vivent côte à côte.", "À la fin, {A} et {B} vivaient en paix."],
        ["Fin."],
    ],
}


def indefinite(noun, language):
    if language == "fr":
        article, word = noun.split(" ")
        return ("un " if article == "le" else "une ") + word
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def definite(noun, language):
    return noun if language == "fr" else "the " + noun


def tell(rng, first, second, language):
    words = {"a": indefinite(first, language), "b": indefinite(second, language),
             "A": definite(first, language), "B": definite(second, language)}
    sentences = [rng.choice(choices).format(**words) for choices in GRAMMAR[language]]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def sample(rng, heldout=False):
    language = rng.choice(LANGUAGES)
    first, second = draw(rng, heldout, lambda r: r.sample(NOUNS[language], 2), lambda nouns: ("story", *sorted(nouns)))
    prompts = PROMPTS_FOR_ONE if rng.random() < 0.08 and not heldout else PROMPTS
    prompt = rng.choice(prompts[language]).format(indefinite(first, language), indefinite(second, language))
    story = tell(rng, first, second, language)
    nouns = [noun.split(" ")[-1] for noun in (first, second)]
    expected = {"contains": nouns, "ends_with": "The end." if language == "en" else "Fin."}
    return conversation("story", [user(prompt), assistant(story)], expected=expected)
