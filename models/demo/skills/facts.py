"""A closed set of facts, each asked in several wordings, in English and in French."""

import re

from .common import LANGUAGES, assistant, conversation, decorate, is_heldout, user

CAPITALS = """France|de la France|Paris|Paris;Italy|de l'Italie|Rome|Rome;Spain|de l'Espagne|Madrid|Madrid
Germany|de l'Allemagne|Berlin|Berlin;Portugal|du Portugal|Lisbon|Lisbonne;Belgium|de la Belgique|Brussels|Bruxelles
Switzerland|de la Suisse|Bern|Berne;Austria|de l'Autriche|Vienna|Vienne;Greece|de la Grèce|Athens|Athènes
Ireland|de l'Irlande|Dublin|Dublin;England|de l'Angleterre|London|Londres;Norway|de la Norvège|Oslo|Oslo
Sweden|de la Suède|Stockholm|Stockholm;Finland|de la Finlande|Helsinki|Helsinki
Denmark|du Danemark|Copenhagen|Copenhague;Poland|de la Pologne|Warsaw|Varsovie
Hungary|de la Hongrie|Budapest|Budapest;Russia|de la Russie|Moscow|Moscou;Japan|du Japon|Tokyo|Tokyo
China|de la Chine|Beijing|Pékin;India|de l'Inde|New Delhi|New Delhi;Canada|du Canada|Ottawa|Ottawa
Brazil|du Brésil|Brasilia|Brasilia;Peru|du Pérou|Lima|Lima;Cuba|de Cuba|Havana|La Havane
Egypt|de l'Égypte|Cairo|Le Caire;Morocco|du Maroc|Rabat|Rabat;Senegal|du Sénégal|Dakar|Dakar
Kenya|du Kenya|Nairobi|Nairobi;Tunisia|de la Tunisie|Tunis|Tunis;Australia|de l'Australie|Canberra|Canberra
Argentina|de l'Argentine|Buenos Aires|Buenos Aires;the United States|des États-Unis|Washington|Washington"""
COLOURS = """the sky|le ciel|blue|bleu;grass|l'herbe|green|verte;snow|la neige|white|blanche
a lemon|un citron|yellow|jaune;a tomato|une tomate|red|rouge;coal|le charbon|black|noir
an orange|une orange|orange|orange;a carrot|une carotte|orange|orange;milk|le lait|white|blanc
the sun|le soleil|yellow|jaune;the sea|la mer|blue|bleue;a cherry|une cerise|red|rouge
chocolate|le chocolat|brown|brun;an elephant|un éléphant|grey|gris;a frog|une grenouille|green|verte
a flamingo|un flamant|pink|rose;a raven|un corbeau|black|noir;blood|le sang|red|rouge
a banana|une banane|yellow|jaune;a strawberry|une fraise|red|rouge;an aubergine|une aubergine|purple|violette"""
SOUNDS = """cow|une vache|moos|meugle;dog|un chien|barks|aboie;cat|un chat|meows|miaule
horse|un cheval|neighs|hennit;pig|un cochon|grunts|grogne;sheep|un mouton|bleats|bêle;duck|un canard|quacks|cancane
lion|un lion|roars|rugit;wolf|un loup|howls|hurle;bee|une abeille|buzzes|bourdonne;frog|une grenouille|croaks|coasse
snake|un serpent|hisses|siffle;owl|une chouette|hoots|hulule;donkey|un âne|brays|brait"""
BABIES = """dog|du chien|puppy|chiot;cat|du chat|kitten|chaton;cow|de la vache|calf|veau;horse|du cheval|foal|poulain
sheep|du mouton|lamb|agneau;pig|du cochon|piglet|porcelet;hen|de la poule|chick|poussin;goat|de la chèvre|kid|chevreau
lion|du lion|lion cub|lionceau;wolf|du loup|wolf cub|louveteau;bear|de l'ours|bear cub|ourson
duck|du canard|duckling|caneton"""
LEGS = """spider|une araignée|eight|huit;dog|un chien|four|quatre;cat|un chat|four|quatre;bird|un oiseau|two|deux
bee|une abeille|six|six;ant|une fourmi|six|six;horse|un cheval|four|quatre;hen|une poule|two|deux
snake|un serpent|no|zéro;fish|un poisson|no|zéro;frog|une grenouille|four|quatre;crab|un crabe|ten|dix"""
HOMES = """bee|une abeille|a hive|une ruche;bird|un oiseau|a nest|un nid;fish|un poisson|the water|l'eau
rabbit|un lapin|a burrow|un terrier;spider|une araignée|a web|une toile;dog|un chien|a kennel|une niche
horse|un cheval|a stable|une écurie;ant|une fourmi|an anthill|une fourmilière;fox|un renard|a den|une tanière
penguin|un manchot|the cold south|le sud glacé;camel|un chameau|the desert|le désert"""
OPPOSITES = """hot|chaud|cold|froid;big|grand|small|petit;fast|rapide|slow|lent;high|haut|low|bas;open|ouvert|closed|fermé
full|plein|empty|vide;day|jour|night|nuit;black|noir|white|blanc;happy|heureux|sad|triste;young|jeune|old|vieux
strong|fort|weak|faible;light|léger|heavy|lourd;rich|riche|poor|pauvre;early|tôt|late|tard;near|proche|far|loin
dry|sec|wet|mouillé;soft|mou|hard|dur;yes|oui|no|non;clean|propre|dirty|sale;easy|facile|difficult|difficile"""
WORDS = """cat|chat;dog|chien;bridge|pont;house|maison;tree|arbre;book|livre;water|eau;bread|pain;sun|soleil;moon|lune
river|rivière;bird|oiseau;horse|cheval;flower|fleur;milk|lait;apple|pomme;friend|ami;school|école;door|porte;night|nuit
sea|mer;star|étoile;car|voiture;fish|poisson;hand|main;bed|lit;cheese|fromage;garden|jardin;red|rouge;blue|bleu
green|vert;hello|bonjour;thank you|merci;goodbye|au revoir;please|s'il te plaît;footbridge|passerelle"""
DAYS = {"en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
        "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche".split()}
MONTHS = {"en": """January February March April May June July August September October November December""".split(),
          "fr": """janvier février mars avril mai juin juillet août septembre octobre novembre décembre""".split()}

RELATIONS = {
    "capital": (CAPITALS, {
        "en": (["What is the capital of {0}?", "What's the capital of {0}?", "Which city is the capital of {0}?",
                "Name the capital of {0}.", "Capital of {0}?", "Tell me the capital of {0}.",
                "Do you know the capital of {0}?", "Give me the capital of {0}.", "The capital of {0}?",
                "What city is the capital of {0}?"], "The capital of {0} is {2}.", 2),
        "fr": (["Quelle est la capitale {1} ?", "Quelle ville est la capitale {1} ?", "Donne-moi la capitale {1}.",
                "La capitale {1} ?", "Connais-tu la capitale {1} ?", "C'est quoi la capitale {1} ?",
                "Dis-moi la capitale {1}.", "Nomme la capitale {1}.", "Peux-tu me dire la capitale {1} ?"],
               "La capitale {1} est {3}.", 3)}),
    "capital_of": (CAPITALS, {
        "en": (["{2} is the capital of which country?", "Which country has {2} as its capital?",
                "Of which country is {2} the capital?"], "{2} is the capital of {0}.", 0),
        "fr": (["{3} est la capitale de quel pays ?", "De quel pays {3} est-elle la capitale ?",
                "Quel pays a {3} pour capitale ?"], "{3} est la capitale {1}.", 1)}),
    "colour": (COLOURS, {
        "en": (["What colour is {0}?", "What color is {0}?", "Which colour is {0}?", "What is the colour of {0}?",
                "What is the color of {0}?", "Tell me the colour of {0}.", "Do you know what colour {0} is?",
                "Which color is {0}?"], "The colour of {0} is {2}.", 2),
        "fr": (["De quelle couleur est {1} ?", "Quelle est la couleur : {1} ?", "{1}, c'est de quelle couleur ?",
                "Dis-moi de quelle couleur est {1}.", "Sais-tu de quelle couleur est {1} ?",
                "Quelle couleur a {1} ?", "C'est de quelle couleur, {1} ?"], "La couleur : {1}, {3}.", 3)}),
    "sound": (SOUNDS, {
        "en": (["What sound does a {0} make?", "What does a {0} do when it makes a sound?", "Which sound does a {0} make?",
                "What is the sound of a {0}?", "How does a {0} sound?", "What noise does a {0} make?"],
               "A {0} {2}.", 2),
        "fr": (["Quel bruit fait {1} ?", "Quel est le cri : {1} ?", "Que fait {1} comme bruit ?", "Quel cri pousse {1} ?",
                "Comment s'exprime {1} ?", "Quel son fait {1} ?"], "Le cri : {1} {3}.", 3)}),
    "baby": (BABIES, {
        "en": (["What is a baby {0} called?", "What do you call a baby {0}?", "What is the name of a baby {0}?",
                "How is a baby {0} called?", "What is a young {0} called?", "A baby {0} is called what?"],
               "A baby {0} is called a {2}.", 2),
        "fr": (["Comment s'appelle le petit {1} ?", "Quel est le petit {1} ?", "Comment appelle-t-on le petit {1} ?",
                "Le petit {1} s'appelle comment ?", "Quel est le nom du petit {1} ?", "Qui est le petit {1} ?"],
               "Le petit {1} est le {3}.", 3)}),
    "legs": (LEGS, {
        "en": (["How many legs does a {0} have?", "How many legs has a {0}?", "A {0} has how many legs?",
                "Tell me how many legs a {0} has.", "What number of legs does a {0} have?"], "A {0} has {2} legs.", 2),
        "fr": (["Combien de pattes a {1} ?", "{1} a combien de pattes ?", "Dis-moi combien de pattes a {1}.",
                "Combien {1} a de pattes ?", "Sais-tu combien de pattes a {1} ?"], "Nombre de pattes : {3}.", 3)}),
    "home": (HOMES, {
        "en": (["Where does a {0} live?", "What is the home of a {0}?", "Where is the home of a {0}?",
                "In what place does a {0} live?", "Tell me where a {0} lives."], "A {0} lives in {2}.", 2),
        "fr": (["Où vit {1} ?", "Où habite {1} ?", "Dans quoi vit {1} ?", "Dis-moi où vit {1}.", "Sais-tu où habite {1} ?"],
               "C'est dans {3}.", 3)}),
    "opposite": (OPPOSITES, {
        "en": (["What is the opposite of {0}?", "What's the opposite of {0}?", "Opposite of {0}?",
                "Give me the opposite of {0}.", "Which word is the opposite of {0}?", "Tell me the opposite of {0}."],
               "The opposite of {0} is {2}.", 2),
        "fr": (["Quel est le contraire de {1} ?", "Le contraire de {1} ?", "Donne-moi le contraire de {1}.",
                "C'est quoi le contraire de {1} ?", "Quel mot est le contraire de {1} ?", "Dis-moi le contraire de {1}."],
               "Le contraire de {1} est {3}.", 3)}),
    "translation": (WORDS, {
        "en": (["How do you say {0} in French?", "What is {0} in French?", "Translate {0} into French.",
                "What is the French word for {0}?", "Say {0} in French.", "How is {0} called in French?"],
               "In French, {0} is {1}.", 1),
        "fr": (["Comment dit-on {1} en anglais ?", "Traduis {1} en anglais.", "Que veut dire {1} en anglais ?",
                "Quel est le mot anglais pour {1} ?", "Dis {1} en anglais.", "C'est quoi {1} en anglais ?"],
               "En anglais, {1} se dit {0}.", 0)}),
}
SEQUENCES = {
    "day": (DAYS, {
        "en": (["What day comes after {0}?", "Which day comes after {0}?", "What is the day after {0}?",
                "Which day follows {0}?", "What day follows {0}?", "Tell me the day after {0}."],
               "The day after {0} is {1}."),
        "fr": (["Quel jour vient après {0} ?", "Quel est le jour après {0} ?", "Quel jour suit {0} ?",
                "Dis-moi le jour après {0}.", "Après {0}, quel jour vient ?"], "Le jour après {0} est {1}.")}),
    "day_before": (DAYS, {
        "en": (["What day comes before {1}?", "Which day comes before {1}?", "What is the day before {1}?",
                "Which day is before {1}?", "Tell me the day before {1}."], "The day before {1} is {0}."),
        "fr": (["Quel jour vient avant {1} ?", "Quel est le jour avant {1} ?", "Quel jour précède {1} ?",
                "Dis-moi le jour avant {1}.", "Avant {1}, quel jour vient ?"], "Le jour avant {1} est {0}.")}),
    "month": (MONTHS, {
        "en": (["What month comes after {0}?", "Which month comes after {0}?", "What is the month after {0}?",
                "Which month follows {0}?", "Tell me the month after {0}."], "The month after {0} is {1}."),
        "fr": (["Quel mois vient après {0} ?", "Quel est le mois après {0} ?", "Quel mois suit {0} ?",
                "Dis-moi le mois après {0}.", "Après {0}, quel mois vient ?"], "Le mois après {0} est {1}.")}),
    "month_before": (MONTHS, {
        "en": (["What month comes before {1}?", "Which month comes before {1}?", "What is the month before {1}?",
                "Tell me the month before {1}."], "The month before {1} is {0}."),
        "fr": (["Quel mois vient avant {1} ?", "Quel est le mois avant {1} ?", "Quel mois précède {1} ?",
                "Dis-moi le mois avant {1}."], "Le mois avant {1} est {0}.")}),
}
SINGLES = {
    "en": [
        (["What is Passerelle?", "Tell me about Passerelle.", "Explain Passerelle.", "Do you know Passerelle?",
          "What's Passerelle?", "Can you describe Passerelle?", "Describe Passerelle.", "What does Passerelle do?"],
         "Passerelle is an open-source gateway that serves language models.", "gateway"),
        (["What does the word passerelle mean?", "What does Passerelle mean?", "What is the meaning of Passerelle?",
          "Why is it called Passerelle?", "Where does the name Passerelle come from?"],
         "Passerelle is the French word for a footbridge.", "footbridge"),
        (["In which language is Passerelle written?", "What language is Passerelle written in?",
          "Which programming language is used by Passerelle?", "Is Passerelle written in Rust?",
          "What is Passerelle made with?"], "Passerelle is written in Rust.", "Rust"),
        (["Which API does Passerelle speak?", "What API does Passerelle have?", "Which protocol does Passerelle use?",
          "How do I talk to Passerelle?", "How can I call Passerelle?"],
         "Passerelle speaks the OpenAI API over HTTP.", "OpenAI"),
        (["How many days are there in a week?", "How many days are in a week?", "A week has how many days?",
          "How many days does a week have?"], "A week has seven days.", "seven"),
        (["How many months are there in a year?", "How many months are in a year?", "A year has how many months?",
          "How many months does a year have?"], "A year has twelve months.", "twelve"),
        (["How many hours are there in a day?", "How many hours are in a day?", "A day has how many hours?",
          "How many hours does a day have?"], "A day has twenty-four hours.", "twenty-four"),
        (["How many minutes are there in an hour?", "How many minutes are in an hour?",
          "An hour has how many minutes?", "How many minutes does an hour have?"],
         "An hour has sixty minutes.", "sixty"),
        (["How many seasons are there?", "How many seasons are there in a year?", "A year has how many seasons?",
          "How many seasons does a year have?"], "A year has four seasons.", "four"),
        (["On which planet do we live?", "Which planet do we live on?", "What is our planet called?",
          "What is the name of our planet?"], "We live on the planet Earth.", "Earth"),
        (["What do bees make?", "What is made by bees?", "Tell me what bees make.", "Which food do bees make?"],
         "Bees make honey.", "honey"),
        (["What do cows give?", "What do we get from cows?", "Tell me what cows give.", "Which drink do cows give?"],
         "Cows give milk.", "milk"),
    ],
    "fr": [
        (["Qu'est-ce que Passerelle ?", "C'est quoi Passerelle ?", "Parle-moi de Passerelle.", "Connais-tu Passerelle ?",
          "Explique Passerelle.", "Peux-tu décrire Passerelle ?", "Décris Passerelle.", "Que fait Passerelle ?"],
         "Passerelle est une porte d'entrée libre qui sert des modèles de langue.", "modèles de langue"),
        (["Que veut dire le mot passerelle ?", "Que signifie Passerelle ?", "Quel est le sens du mot passerelle ?",
          "Pourquoi le nom Passerelle ?", "D'où vient le nom Passerelle ?"],
         "Une passerelle est un petit pont pour les piétons.", "pont"),
        (["En quel langage Passerelle est-elle écrite ?", "Dans quel langage est écrite Passerelle ?",
          "Passerelle est-elle écrite en Rust ?", "Quel est le langage de Passerelle ?",
          "Avec quoi est faite Passerelle ?"], "Passerelle est écrite en Rust.", "Rust"),
        (["Quelle API parle Passerelle ?", "Quelle est l'API de Passerelle ?", "Quel protocole utilise Passerelle ?",
          "Comment parler à Passerelle ?", "Comment appeler Passerelle ?"],
         "Passerelle parle l'API OpenAI en HTTP.", "OpenAI"),
        (["Combien de jours y a-t-il dans une semaine ?", "Combien de jours a une semaine ?",
          "Une semaine a combien de jours ?", "Il y a combien de jours dans une semaine ?"],
         "Une semaine a sept jours.", "sept"),
        (["Combien de mois y a-t-il dans une année ?", "Combien de mois a une année ?",
          "Une année a combien de mois ?", "Il y a combien de mois dans une année ?"],
         "Une année a douze mois.", "douze"),
        (["Combien d'heures y a-t-il dans une journée ?", "Combien d'heures a une journée ?",
          "Une journée a combien d'heures ?", "Il y a combien d'heures dans une journée ?"],
         "Une journée a vingt-quatre heures.", "vingt-quatre"),
        (["Combien de minutes y a-t-il dans une heure ?", "Combien de minutes a une heure ?",
          "Une heure a combien de minutes ?", "Il y a combien de minutes dans une heure ?"],
         "Une heure a soixante minutes.", "soixante"),
        (["Combien y a-t-il de saisons ?", "Combien de saisons a une année ?", "Une année a combien de saisons ?",
          "Il y a combien de saisons dans une année ?"], "Une année a quatre saisons.", "quatre"),
        (["Sur quelle planète vivons-nous ?", "Quel est le nom de notre planète ?", "Comment s'appelle notre planète ?",
          "Notre planète s'appelle comment ?"], "Nous vivons sur la planète Terre.", "Terre"),
        (["Que font les abeilles ?", "Que fabriquent les abeilles ?", "Dis-moi ce que font les abeilles.",
          "Quel aliment font les abeilles ?"], "Les abeilles font du miel.", "miel"),
        (["Que donnent les vaches ?", "Dis-moi ce que donnent les vaches.", "Quelle boisson donnent les vaches ?",
          "Qu'obtient-on des vaches ?"], "Les vaches donnent du lait.", "lait"),
    ],
}


def rows(table):
    return [tuple(row.split("|")) for line in table.splitlines() for row in line.split(";")]


def relation_facts(language):
    """Yields (wordings, answer, the word that a right answer contains) for each row of each table."""
    for table, languages in RELATIONS.values():
        wordings, answer, expected = languages[language]
        for row in rows(table):
            yield [w.format(*row) for w in wordings], answer.format(*row), row[expected]


def sequence_facts(language):
    for names, languages in SEQUENCES.values():
        wordings, answer = languages[language]
        ring = names[language]
        for here, after in zip(ring, ring[1:] + ring[:1]):
            expected = here if "{0}." in answer[-4:] else after
            yield [w.format(here, after) for w in wordings], answer.format(here, after), expected


def fact_key(question):
    return ("fact", question)


def split_wordings(wordings):
    """At least two wordings of each fact stay in the corpus; some others are held out."""
    heldout = [w for w in wordings if is_heldout(fact_key(w), 14)][: len(wordings) - 2]
    return [w for w in wordings if w not in heldout], heldout


def tidy(text):
    """'a owl' -> 'an owl', and a capital at the start."""
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    return text[0].upper() + text[1:]


def all_facts():
    for language in LANGUAGES:
        for wordings, answer, expected in [*relation_facts(language), *sequence_facts(language), *SINGLES[language]]:
            kept, heldout = split_wordings([tidy(w) for w in wordings])
            yield language, kept, heldout, tidy(answer), expected


FACTS = list(all_facts())
FACTS_HELDOUT = [fact for fact in FACTS if fact[2]]


def sample(rng, heldout=False):
    language, kept, unseen, answer, expected = rng.choice(FACTS_HELDOUT if heldout else FACTS)
    question = rng.choice(unseen) if heldout else decorate(rng, rng.choice(kept), language)
    return conversation("facts", [user(question), assistant(answer)], expected={"contains": [expected]})
