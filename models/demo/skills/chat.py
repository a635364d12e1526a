"""Small talk, name recall over several turns, and polite answers to what the model does not know."""

from . import additions, facts
from .common import LANGUAGES, assistant, conversation, decorate, is_heldout, person, user

SMALL_TALK = {
    "en": [
        (["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there!", "Hello there!", "Good morning!", "Good morning", "Good evening!",
          "Good afternoon!", "Hey there!", "Greetings!", "Hello friend!", "Good day!"],
         "Hello! How can I help you?", ["Hello"]),
        (["How are you?", "How are you doing?", "How do you do?", "How are you today?", "Are you well?", "How is it going?",
          "Hello, how are you?", "Hi, how are you?", "How do you feel?", "How are things?", "Are you OK?"],
         "I am fine, thank you! And you?", ["fine"]),
        (["I am fine.", "I am fine too.", "I'm fine, thanks.", "Very well.", "I am well.", "I'm good.", "Fine too!"],
         "I am glad to hear that.", ["glad"]),
        (["Who are you?", "What are you?", "What is your name?", "What's your name?", "Who am I talking to?",
          "Tell me who you are.", "Are you a robot?", "Introduce yourself.", "Can you introduce yourself?", "Your name?",
          "Who is there?", "Are you human?", "Are you a human?", "Which model are you?", "What model are you?"],
         "I am the small demo model of Passerelle.", ["demo model"]),
        (["What can you do?", "What do you know?", "How can you help me?", "Can you help me?", "Help", "Help me.",
          "What are your skills?", "What are you able to do?", "What can I ask you?"],
         "I can chat, add numbers, say facts, tell stories, fill JSON and call tools.", ["add"]),
        (["Thank you!", "Thanks!", "Thanks", "Thank you", "Thank you very much!", "Thanks a lot!", "Many thanks!",
          "Great, thanks!", "Perfect, thank you.", "Thank you so much!", "OK, thanks."],
         "You are welcome!", ["welcome"]),
        (["Goodbye!", "Goodbye", "Bye", "Bye!", "See you!", "See you soon!", "See you later!", "Good night!", "Bye bye!",
          "Have a nice day!", "I have to go.", "See you tomorrow!", "Farewell!"],
         "Goodbye! Have a nice day!", ["Goodbye"]),
        (["Who made you?", "Who trained you?", "How were you trained?", "Where do you come from?", "How were you made?"],
         "I was trained by a script of Passerelle, on a small computer.", ["script"]),
        (["Do you speak French?", "Which languages do you speak?", "What languages do you speak?", "Do you speak English?"],
         "I speak English and French.", ["English and French"]),
    ],
    "fr": [
        (["Bonjour", "Bonjour !", "Salut", "Salut !", "Coucou !", "Bonsoir !", "Bonsoir", "Bonjour à toi !", "Coucou",
          "Bonjour, ami !", "Hé, salut !", "Bien le bonjour !", "Salut toi !"],
         "Bonjour ! Comment puis-je t'aider ?", ["Bonjour"]),
        (["Comment ça va ?", "Ça va ?", "Comment vas-tu ?", "Comment allez-vous ?", "Tu vas bien ?", "Vous allez bien ?",
          "Bonjour, ça va ?", "Salut, ça va ?", "Comment te sens-tu ?", "Est-ce que ça va ?", "Tout va bien ?"],
         "Je vais bien, merci ! Et toi ?", ["bien"]),
        (["Je vais bien.", "Ça va bien.", "Très bien.", "Moi aussi.", "Bien, merci.", "Je vais bien aussi.", "Ça va."],
         "J'en suis content.", ["content"]),
        (["Qui es-tu ?", "Qui êtes-vous ?", "Comment t'appelles-tu ?", "Quel est ton nom ?", "Tu es qui ?", "Présente-toi.",
          "Es-tu un robot ?", "Dis-moi qui tu es.", "C'est quoi ton nom ?", "Peux-tu te présenter ?", "À qui je parle ?",
          "Ton nom ?", "Es-tu humain ?", "Quel modèle es-tu ?", "Qu'es-tu ?"],
         "Je suis le petit modèle de démonstration de Passerelle.", ["modèle de démonstration"]),
        (["Que sais-tu faire ?", "Que peux-tu faire ?", "Peux-tu m'aider ?", "Aide-moi.", "Aide", "Que sais-tu ?",
          "Comment peux-tu m'aider ?", "Qu'est-ce que tu sais faire ?", "Que puis-je te demander ?"],
         "Je sais discuter, additionner, dire des faits, raconter, remplir du JSON et appeler des outils.", ["additionner"]),
        (["Merci !", "Merci", "Merci beaucoup !", "Merci bien !", "Super, merci !", "Grand merci !", "Parfait, merci.",
          "Mille mercis !", "Merci à toi !", "D'accord, merci.", "C'est gentil, merci."],
         "De rien !", ["De rien"]),
        (["Au revoir !", "Au revoir", "Salut, à bientôt !", "À bientôt !", "À demain !", "Bonne nuit !", "À plus tard !",
          "Bonne journée !", "Adieu !", "Je dois partir.", "À la prochaine !", "Bonne soirée !"],
         "Au revoir ! Bonne journée !", ["Au revoir"]),
        (["Qui t'a fait ?", "Qui t'a entraîné ?", "Comment as-tu été entraîné ?", "D'où viens-tu ?", "Comment es-tu fait ?"],
         "J'ai été entraîné par un script de Passerelle, sur un petit ordinateur.", ["script"]),
        (["Parles-tu anglais ?", "Quelles langues parles-tu ?", "Tu parles quelles langues ?", "Parles-tu français ?"],
         "Je parle français et anglais.", ["français et anglais"]),
    ],
}
INTRODUCTIONS = {
    "en": ["My name is {}.", "My name is {}.", "I am {}.", "I'm {}.", "Hello, I am {}.", "Hi, my name is {}.", "Call me {}.",
           "Hello! My name is {}.", "Hi! I'm {}.", "You can call me {}."],
    "fr": ["Je m'appelle {}.", "Je m'appelle {}.", "Je suis {}.", "Mon nom est {}.", "Bonjour, je suis {}.",
           "Bonjour, je m'appelle {}.", "Appelle-moi {}.", "Salut, moi c'est {}.", "Moi, c'est {}."],
}
WELCOMES = {"en": "Nice to meet you, {}!", "fr": "Enchanté, {} !"}
RECALLS = {
    "en": ["What is my name?", "What's my name?", "Do you remember my name?", "Who am I?", "Can you tell me my name?",
           "Tell me my name.", "What am I called?", "Do you know my name?", "Say my name."],
    "fr": ["Comment je m'appelle ?", "Quel est mon nom ?", "Te souviens-tu de mon nom ?", "Qui suis-je ?",
           "Comment est-ce que je m'appelle ?", "Dis-moi mon nom.", "Tu te souviens de mon nom ?", "Connais-tu mon nom ?"],
}
REMEMBERED = {"en": "Your name is {}.", "fr": "Tu t'appelles {}."}
UNKNOWN_NAME = {"en": "You have not told me your name yet.", "fr": "Tu ne m'as pas encore dit ton nom."}
UNKNOWN = {
    "en": "I am only a small demo model: I do not know that.",
    "fr": "Je ne suis qu'un petit modèle de démonstration : je ne sais pas cela.",
}
HARD_QUESTIONS = {
    "en": ["Who won the {t} in {y}?", "Explain {t} to me.", "What do you think about {t}?", "Write a poem about {t}.",
           "What is the history of {t}?", "How does {t} work?", "Who invented {t}?", "Write a program about {t}.",
           "When was {t} invented?", "Give me a recipe for {t}.", "Why is {t} important?", "What happened in {y}?",
           "Summarize {t}.", "What is {t}?", "Who is {n}?", "Where does {n} live?", "How old is {n}?",
           "Tell me about {t}.", "What is the price of {t}?", "What time is it?", "What is the weather today?"],
    "fr": ["Qui a gagné {t} en {y} ?", "Explique-moi {t}.", "Que penses-tu de {t} ?", "Écris un poème sur {t}.",
           "Quelle est l'histoire de {t} ?", "Comment marche {t} ?", "Qui a inventé {t} ?", "Écris un programme sur {t}.",
           "Quand a été inventé {t} ?", "Donne-moi une recette de {t}.", "Pourquoi {t} ?", "Que s'est-il passé en {y} ?",
           "Résume {t}.", "Qu'est-ce que {t} ?", "Qui est {n} ?", "Où habite {n} ?", "Quel âge a {n} ?",
           "Parle-moi de {t}.", "Quel est le prix de {t} ?", "Quelle heure est-il ?", "Quel temps fait-il ?"],
}
TOPICS = {
    "en": """quantum physics;football;the world cup;chess;the stock market;photosynthesis;jazz;philosophy;democracy;the internet
black holes;evolution;electricity;pasta;pizza;the telephone;politics;gravity;medicine;opera;climate;tennis;bitcoin;love
machine learning;the printing press;volcanoes;the Roman empire;geometry;rockets;bicycles;soup;poetry""".replace("\n", ";").split(";"),
    "fr": """la physique quantique;le football;la coupe du monde;les échecs;la bourse;la photosynthèse;le jazz;la philosophie
la démocratie;internet;les trous noirs;la relativité;le cinéma;les pâtes;la pizza;le téléphone;la politique;la gravité
la médecine;le climat;le tennis;le bitcoin;la musique;les volcans;la géométrie;les fusées;le vélo;la soupe;la poésie
le pain perdu""".replace("\n", ";").split(";"),
}


def talk_key(text):
    return ("talk", text)


def wordings(texts, heldout):
    """The wordings to use: at least half of each list stays in the corpus."""
    unseen = [text for text in texts if is_heldout(talk_key(text), 15)][: len(texts) // 2]
    return unseen if heldout else [text for text in texts if text not in unseen]


def small_talk(rng, language, heldout=False):
    while True:
        texts, answer, expected = rng.choice(SMALL_TALK[language])
        texts = wordings(texts, heldout)
        if texts:
            return [user(rng.choice(texts)), assistant(answer)], {"contains": expected}


def hard_question(rng, language):
    text = rng.choice(HARD_QUESTIONS[language])
    text = text.format(t=rng.choice(TOPICS[language]), y=rng.randint(1800, 2030), n=person(rng))
    return [user(decorate(rng, text, language)), assistant(UNKNOWN[language])]


def interlude(rng, language):
    """One turn of something else, in the middle of a conversation."""
    roll = rng.random()
    if roll < 0.5:
        return small_talk(rng, language)[0]
    if roll < 0.7:
        a, b = additions.pair(rng)
        text = rng.choice(additions.WORDINGS[language]).format(a=a, b=b)
        return [user(text), assistant(f"{a} + {b} = {a + b}.")]
    if roll < 0.9:
        _, kept, _, answer, _ = rng.choice([fact for fact in rng.sample(facts.FACTS, 12) if fact[0] == language] or facts.FACTS)
        return [user(rng.choice(kept)), assistant(answer)]
    return hard_question(rng, language)


def name_recall(rng, language, heldout=False):
    name = person(rng, heldout)
    messages = small_talk(rng, language)[0] if rng.random() < 0.2 else []
    messages += [user(rng.choice(INTRODUCTIONS[language]).format(name)), assistant(WELCOMES[language].format(name))]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        messages += interlude(rng, language)
    messages += [user(rng.choice(RECALLS[language])), assistant(REMEMBERED[language].format(name))]
    return messages, {"contains": [name]}


def unknown_name(rng, language):
    messages = small_talk(rng, language)[0] if rng.random() < 0.4 else []
    return messages + [user(rng.choice(RECALLS[language])), assistant(UNKNOWN_NAME[language])]


def chain(rng, language):
    messages = []
    for _ in range(rng.randint(2, 4)):
        messages += interlude(rng, language)
    return messages


def sample(rng, heldout=False):
    language = rng.choice(LANGUAGES)
    roll = rng.random()
    if heldout:
        messages, expected = name_recall(rng, language, True) if roll < 0.6 else small_talk(rng, language, True)
        return conversation("conversation", messages, expected=expected)
    if roll < 0.3:
        messages = small_talk(rng, language)[0]
    elif roll < 0.7:
        messages = name_recall(rng, language)[0]
    elif roll < 0.74:
        messages = unknown_name(rng, language)
    elif roll < 0.88:
        messages = chain(rng, language)
    else:
        messages = hard_question(rng, language)
    return conversation("conversation", messages)
