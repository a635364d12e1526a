"""Tool calls: the system turn offers tools, the answer calls the right one or answers in words.

Names, descriptions and parameter names vary, and some names are invented, so that the model copies
what is offered instead of remembering it.
"""

import json
from dataclasses import dataclass
from typing import Callable

from . import additions, chat, facts
from .common import LANGUAGES, OPENERS, assistant, city, conversation, draw, person, user


@dataclass
class Parameter:
    names: list
    description: str
    values: Callable  # (rng, language, heldout) -> value
    type: str = "string"
    choices: list = None


@dataclass
class Family:
    """Tools that do the same thing under different names."""

    names: list
    descriptions: list
    parameters: list
    prompts: dict  # language -> wordings, {0} is the first argument
    result: Callable = None  # (rng, language, arguments) -> (tool message, answer in words)


def choose(**words):
    return lambda rng, language, heldout: rng.choice(words[language])


def number(low, high):
    return lambda rng, language, heldout: rng.randint(low, high)


SKIES = {"en": "sunny cloudy rainy windy snowy foggy stormy clear".split(),
         "fr": "ensoleillé nuageux pluvieux venteux neigeux brumeux orageux dégagé".split()}
ROOMS = {"en": ["kitchen", "bedroom", "bathroom", "office", "garage", "garden", "hall", "attic", "cellar"],
         "fr": ["cuisine", "chambre", "salle", "cave", "terrasse", "bibliothèque", "véranda", "remise"]}
LANGUAGE_NAMES = {"en": ["Spanish", "German", "Italian", "Dutch", "Polish", "Greek", "Japanese", "Swedish"],
                  "fr": ["espagnol", "allemand", "italien", "néerlandais", "polonais", "grec", "japonais", "suédois"]}
MESSAGES = {"en": ["see you soon", "dinner is ready", "I am late", "happy birthday", "call me back", "good luck",
                   "the train is late", "I am at home", "see you tomorrow", "well done", "the meeting is over"],
            "fr": ["à bientôt", "le repas est prêt", "je suis en retard", "bon anniversaire", "rappelle-moi",
                   "bonne chance", "le train est en retard", "je suis à la maison", "à demain", "bravo", "la réunion est finie"]}
THINGS = {"en": ["shoes", "lamps", "bridges", "books", "bicycles", "hats", "gardens", "trains", "cats", "clocks", "boats",
                 "chairs", "museums", "hotels", "recipes"],
          "fr": ["chaussures", "lampes", "ponts", "livres", "vélos", "chapeaux", "jardins", "trains", "chats", "montres",
                 "bateaux", "chaises", "musées", "hôtels", "recettes"]}
KINDS = {"en": ["red", "blue", "old", "cheap", "small", "big", "new", "famous", "green", "white"],
         "fr": ["rouges", "bleus", "simples", "modernes", "rapides", "célèbres", "jaunes", "rares"]}
TASKS = {"en": ["buy bread", "call the doctor", "water the plants", "feed the cat", "pay the rent", "clean the house", "read the book"],
         "fr": ["acheter du pain", "appeler le médecin", "arroser les plantes", "nourrir le chat", "payer le loyer", "ranger la maison"]}
CURRENCIES = "EUR USD GBP JPY CHF CAD AUD SEK".split()
SYMBOLS = "AAPL MSFT GOOG AMZN TSLA NVDA AIR OR MC BNP SAP SHEL".split()


def thing_query(rng, language, heldout):
    kind, thing = rng.choice(KINDS[language]), rng.choice(THINGS[language])
    return f"{kind} {thing}" if language == "en" else f"{thing} {kind}"


def symbol(rng, language, heldout):
    return rng.choice(SYMBOLS) if rng.random() < 0.5 else "".join(rng.choice("ABCDEFGHKLMNPRSTVXZ") for _ in range(rng.choice((3, 4))))


def code(rng, language, heldout):
    return rng.choice("ABCDEFGHKLMNPRST") + str(rng.randint(100, 9999))


def as_json(value):
    return json.dumps(value, ensure_ascii=False)


def weather_result(rng, language, arguments):
    place, degrees, sky = arguments[0], rng.randint(-9, 39), rng.choice(SKIES[language])
    content = rng.choice([as_json({"temperature": degrees, "condition": sky}), as_json({"condition": sky, "temperature": degrees}),
                          as_json({"city": place, "temperature": degrees, "sky": sky}),
                          f"{degrees} °C, {sky}", f"{sky}, {degrees} degrees", f"{sky}, {degrees}°C"])
    return content, {"en": f"In {place}, it is {sky} and {degrees} degrees.",
                     "fr": f"À {place}, le temps est {sky} et il fait {degrees} degrés."}[language]


def time_result(rng, language, arguments):
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    content = rng.choice([clock, as_json({"time": clock}), as_json({"city": arguments[0], "time": clock})])
    return content, {"en": f"It is {clock} in {arguments[0]}.", "fr": f"Il est {clock} à {arguments[0]}."}[language]


def sum_result(rng, language, arguments):
    a, b = arguments
    content = rng.choice([str(a + b), as_json({"result": a + b}), as_json({"sum": a + b})])
    return content, f"{a} + {b} = {a + b}."


def number_result(en, fr, low, high, key):
    def result(rng, language, arguments):
        value = rng.randint(low, high)
        content = rng.choice([str(value), as_json({key: value}), as_json({"result": value})])
        return content, {"en": en, "fr": fr}[language].format(*arguments, value=value)
    return result


def done_result(en, fr):
    def result(rng, language, arguments):
        content = rng.choice(["ok", "done", '{"status": "ok"}', '{"success": true}', "true", '{"status": "done"}'])
        return content, {"en": en, "fr": fr}[language].format(*arguments)
    return result


CITY = Parameter(["city", "city", "location", "place", "town"], "Name of the city", lambda rng, lang, unseen: city(rng, unseen))
WHO = Parameter(["to", "recipient", "name", "person", "contact"], "Name of the person", lambda rng, lang, unseen: person(rng, unseen))
TEXT = Parameter(["text", "message", "body", "content"], "Text of the message", choose(**MESSAGES))

FAMILIES = [
    Family(["get_weather", "get_weather", "get_current_weather", "weather", "fetch_weather", "meteo", "forecast"],
           ["Get the weather in a city", "Get the current weather", "Returns the weather of a city", "Weather for a location"],
           [CITY],
           {"en": ["What is the weather in {0}?", "What's the weather like in {0}?", "How is the weather in {0}?",
                   "Tell me the weather in {0}.", "Weather in {0}?", "What is the weather like in {0} today?",
                   "Give me the weather for {0}.", "Is it raining in {0}?", "Is it sunny in {0}?", "How warm is it in {0}?"],
            "fr": ["Quel temps fait-il à {0} ?", "Quelle est la météo à {0} ?", "Donne-moi la météo de {0}.", "Fait-il beau à {0} ?",
                   "Dis-moi le temps qu'il fait à {0}.", "La météo à {0} ?", "Est-ce qu'il pleut à {0} ?", "Il fait chaud à {0} ?"]},
           weather_result),
    Family(["get_time", "get_time", "current_time", "get_current_time", "clock", "time_in"],
           ["Get the time in a city", "Returns the current time of a city", "Current local time", "Tells the time of a place"],
           [CITY],
           {"en": ["What time is it in {0}?", "Tell me the time in {0}.", "What is the time in {0}?", "Time in {0}?",
                   "What is the local time in {0}?", "Can you tell me what time it is in {0}?"],
            "fr": ["Quelle heure est-il à {0} ?", "Dis-moi l'heure à {0}.", "Donne-moi l'heure de {0}.", "L'heure à {0} ?",
                   "Il est quelle heure à {0} ?"]}, time_result),
    Family(["add", "add", "sum", "add_numbers", "plus", "addition", "calculate_sum"],
           ["Add two numbers", "Adds two integers", "Returns the sum of two numbers", "Sum of a and b"],
           [Parameter(["a", "a", "x", "first", "left"], "First number", None, "integer"),
            Parameter(["b", "b", "y", "second", "right"], "Second number", None, "integer")],
           {language: [w for w in additions.WORDINGS[language] if w.index("{a}") < w.index("{b}")] for language in LANGUAGES},
           sum_result),
    Family(["send_message", "send_message", "send_text", "message", "send_sms", "write_to"],
           ["Send a message to someone", "Sends a text message", "Send a text to a contact", "Write a message to a person"],
           [WHO, TEXT],
           {"en": ['Send a message to {0}: {1}', 'Send "{1}" to {0}.', "Tell {0}: {1}", 'Send a message to {0} saying "{1}".',
                   'Write to {0}: "{1}"', "Send {0} the message: {1}", 'Text {0} "{1}".', 'Say "{1}" to {0}.'],
            "fr": ["Envoie un message à {0} : {1}", 'Envoie "{1}" à {0}.', "Dis à {0} : {1}", 'Écris à {0} : "{1}"',
                   'Envoie à {0} le message "{1}".', 'Envoie un message à {0} pour dire "{1}".']},
           done_result("The message was sent to {0}.", "Le message est envoyé à {0}.")),
    Family(["set_light", "set_light", "switch_light", "light", "control_light", "lamp_switch"],
           ["Switch a light on or off", "Control the light of a room", "Turn the light of a room on or off", "Sets a lamp"],
           [Parameter(["room", "room", "place", "zone"], "Name of the room", choose(**ROOMS)),
            Parameter(["state", "state", "mode", "value"], "on or off", lambda rng, lang, unseen: rng.choice(["on", "off"]),
                      choices=["on", "off"])],
           {"en": ["Turn {1} the {0} light.", "Switch {1} the light in the {0}.", "Turn {1} the light in the {0}.",
                   "Turn the {0} light {1}.", "Please switch the {0} light {1}.", "Light {1} in the {0}."],
            "fr": ["{1} la lumière de la {0}.", "{1} la lampe de la {0}.", "{1} la {0}.", "{1} la lumière dans la {0}."]},
           done_result("The {0} light is {1}.", "La lumière de la {0} est réglée : {1}.")),
    Family(["search", "search", "web_search", "search_web", "find", "lookup"],
           ["Search the web", "Searches for a query", "Look something up on the web", "Full text search"],
           [Parameter(["query", "query", "q", "text", "keywords"], "What to search for", thing_query)],
           {"en": ["Search for {0}.", "Search the web for {0}.", "Find {0}.", "Look up {0}.", "Look for {0} on the web.", "I am looking for {0}."],
            "fr": ["Cherche {0}.", "Cherche {0} sur le web.", "Trouve {0}.", "Recherche {0}.", "Fais une recherche sur {0}."]},
           number_result("I found {value} results for {0}.", "J'ai trouvé {value} résultats pour {0}.", 1, 99, "count")),
    Family(["set_timer", "set_timer", "timer", "start_timer", "countdown"],
           ["Start a timer", "Sets a timer in minutes", "Start a countdown of some minutes", "A kitchen timer"],
           [Parameter(["minutes", "minutes", "duration", "length"], "Number of minutes", number(1, 99), "integer")],
           {"en": ["Set a timer for {0} minutes.", "Start a timer of {0} minutes.", "Timer for {0} minutes.", "Wake me in {0} minutes."],
            "fr": ["Mets un minuteur de {0} minutes.", "Lance un minuteur de {0} minutes.", "Minuteur : {0} minutes.",
                   "Réveille-moi dans {0} minutes."]},
           done_result("The timer is set for {0} minutes.", "Le minuteur est réglé sur {0} minutes.")),
    Family(["convert_currency", "convert", "exchange", "change_money"],
           ["Convert money", "Convert an amount between currencies", "Currency conversion", "Exchange rates"],
           [Parameter(["amount", "amount", "value"], "Amount of money", number(1, 999), "number"),
            Parameter(["from", "source", "from_currency"], "Currency of the amount", lambda rng, lang, unseen: rng.choice(CURRENCIES)),
            Parameter(["to", "target", "to_currency"], "Wanted currency", lambda rng, lang, unseen: rng.choice(CURRENCIES))],
           {"en": ["Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "Change {0} {1} into {2}.", "What is {0} {1} in {2}?"],
            "fr": ["Convertis {0} {1} en {2}.", "Combien font {0} {1} en {2} ?", "Change {0} {1} en {2}."]},
           number_result("{0} {1} is {value} {2}.", "{0} {1} font {value} {2}.", 1, 999, "amount")),
    Family(["translate", "translate", "translate_text", "translation"],
           ["Translate a text", "Translates text into a language", "Translation service"],
           [Parameter(["text", "text", "sentence"], "Text to translate", choose(**MESSAGES)),
            Parameter(["language", "target", "lang"], "Target language", choose(**LANGUAGE_NAMES))],
           {"en": ['Translate "{0}" into {1}.', 'Say "{0}" in {1}.', 'How do you say "{0}" in {1}?', "Translate to {1}: {0}"],
            "fr": ['Traduis "{0}" en {1}.', 'Dis "{0}" en {1}.', 'Comment dit-on "{0}" en {1} ?', "Traduis en {1} : {0}"]}),
    Family(["get_stock_price", "stock_price", "get_price", "quote", "get_stock"],
           ["Get the price of a stock", "Stock price of a symbol", "Returns a share price"],
           [Parameter(["symbol", "symbol", "ticker", "stock"], "Symbol of the stock", symbol)],
           {"en": ["What is the stock price of {0}?", "Price of {0}?", "How much is a share of {0}?", "Give me the price of {0}."],
            "fr": ["Quel est le cours de {0} ?", "Donne-moi le prix de l'action {0}.", "Le cours de {0} ?", "Combien vaut l'action {0} ?"]},
           number_result("The price of {0} is {value}.", "Le cours de {0} est {value}.", 1, 999, "price")),
    Family(["add_task", "create_task", "remind_me", "new_todo", "add_todo"],
           ["Add a task to the list", "Create a reminder", "Add something to do", "Remember a task"],
           [Parameter(["task", "title", "text", "label"], "What to do", choose(**TASKS))],
           {"en": ["Remind me to {0}.", "Add a task: {0}", "I have to {0}, note it.", "Add to my list: {0}"],
            "fr": ["Rappelle-moi : {0}", "Ajoute une tâche : {0}", "Note que je dois {0}.", "Ajoute à ma liste : {0}"]},
           done_result("The task is on your list.", "La tâche est dans ta liste.")),
    Family(["get_order", "order_status", "track_order", "find_order", "get_package"],
           ["Get the status of an order", "Track an order", "Look up an order by its number"],
           [Parameter(["order_id", "order_id", "id", "reference"], "Number of the order", code)],
           {"en": ["Where is my order {0}?", "Track the order {0}.", "What is the status of order {0}?", "Order {0}, please."],
            "fr": ["Où est ma commande {0} ?", "Suis la commande {0}.", "Quel est l'état de la commande {0} ?"]}),
    Family(["book_table", "reserve_table", "book_restaurant", "reservation"],
           ["Book a table", "Reserve a table in a restaurant", "Restaurant booking"],
           [CITY, Parameter(["people", "guests", "count"], "Number of guests", number(1, 20), "integer")],
           {"en": ["Book a table in {0} for {1} people.", "I want a table for {1} in {0}.", "Reserve a table for {1} guests in {0}."],
            "fr": ["Réserve une table à {0} pour {1} personnes.", "Je veux une table pour {1} à {0}.", "Une table pour {1} à {0}."]},
           done_result("The table in {0} is booked.", "La table à {0} est réservée.")),
    Family(["get_user", "find_person", "lookup_contact", "get_phone", "find_contact"],
           ["Find a contact", "Look up a person", "Get the details of a person"],
           [Parameter(["name", "name", "person", "who"], "Name of the person", lambda rng, lang, unseen: person(rng, unseen))],
           {"en": ["Find the contact {0}.", "What is the phone number of {0}?", "Look up {0} in my contacts.", "Who is {0} in my contacts?"],
            "fr": ["Trouve le contact {0}.", "Quel est le numéro de {0} ?", "Cherche {0} dans mes contacts."]}),
]
SWITCH = {"en": {"on": "on", "off": "off"}, "fr": {"on": "Allume", "off": "Éteins"}}
VERBS = "get run do call make fetch use read open start find show ask".split()
ADD = next(family for family in FAMILIES if family.result is sum_result)
SEARCH = next(family for family in FAMILIES if "search" in family.names)
SYSTEM_LINES = ["You are a helpful assistant.", "You are a helpful assistant.", "Use the tools if needed.",
                "Tu es un assistant utile.", "You are Passerelle.", "Answer shortly."]


def tool_name(rng, family):
    name = rng.choice(family.names)
    roll = rng.random()
    if roll < 0.12:
        return f"{rng.choice(VERBS)}_{''.join(rng.choice('abcdefghiklmnoprstuvz') for _ in range(rng.randint(3, 6)))}"
    if roll < 0.2:
        return name + rng.choice(["_v2", "_tool", "_now", "_api", "2", "_fast"])
    return name


def parameter_schema(rng, parameter):
    schema = {"type": parameter.type}
    if rng.random() < 0.3:
        schema["description"] = parameter.description
    if parameter.choices and rng.random() < 0.5:
        schema["enum"] = parameter.choices
    return schema


def sort_keys(value):
    return json.loads(json.dumps(value, sort_keys=True))


def offer(rng, family):
    """One tool as OpenAI clients send it; returns it with the chosen names of its parameters."""
    names = [rng.choice(parameter.names) for parameter in family.parameters]
    schema = {"type": "object", "properties": {n: parameter_schema(rng, p) for n, p in zip(names, family.parameters)}}
    if rng.random() < 0.85:
        schema["required"] = names
    if rng.random() < 0.08:
        schema["additionalProperties"] = False
    function = {"name": tool_name(rng, family), "description": rng.choice(family.descriptions), "parameters": schema}
    if rng.random() < 0.05:
        function.pop("description")
    tool = {"type": "function", "function": function}
    return (sort_keys(tool) if rng.random() < 0.15 else tool), names


def offer_many(rng, families):
    """Offers with different names; the first family is the one that the question needs."""
    while True:
        offers = [offer(rng, family) for family in families]
        if len({tool["function"]["name"] for tool, _ in offers}) == len(offers):
            return offers


def arguments_of(rng, family, language, heldout):
    if family is ADD:
        return list(additions.pair(rng, heldout))
    return [parameter.values(rng, language, heldout) for parameter in family.parameters]


def question(rng, family, language, arguments):
    shown = list(arguments)
    if "set_light" in family.names:
        shown[1] = SWITCH[language][arguments[1]]
    wording = rng.choice(family.prompts[language])
    text = wording.format(*shown) if family is not ADD else wording.format(a=shown[0], b=shown[1])
    return rng.choice(OPENERS[language]) + text if rng.random() < 0.12 else text


def make_request(rng, heldout):
    language, family = rng.choice(LANGUAGES), rng.choice(FAMILIES)
    arguments = arguments_of(rng, family, language, heldout)
    return language, family, arguments, question(rng, family, language, arguments)


def request_key(request):
    _, family, arguments, _ = request
    return additions.pair_key(arguments) if family is ADD else ("tool", family.names[0], *map(str, arguments))


def decoys(rng, family, most=2):
    others = [other for other in FAMILIES if other is not family]
    return rng.sample(others, rng.choice([0, 0, 1, 1, 1, most]))


def call_message(tool, names, arguments):
    call = {"name": tool["function"]["name"], "arguments": dict(zip(names, arguments))}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}


def system_messages(rng):
    return [{"role": "system", "content": rng.choice(SYSTEM_LINES)}] if rng.random() < 0.25 else []


def shuffled_tools(rng, offers):
    tools = [tool for tool, _ in offers]
    rng.shuffle(tools)
    return tools


def answered_turns(rng, family, language, arguments):
    """The tool's result and the answer in words, sometimes with a word of thanks after it."""
    content, answer = family.result(rng, language, arguments)
    turns = [{"role": "tool", "content": content}, assistant(answer)]
    if rng.random() < 0.1:
        turns += chat.small_talk(rng, language)[0]
    return turns


def call_sample(rng, heldout):
    language, family, arguments, text = draw(rng, heldout, lambda r: make_request(r, heldout), request_key)
    offers = offer_many(rng, [family, *decoys(rng, family)])
    tool, names = offers[0]
    messages = system_messages(rng)
    if rng.random() < 0.08 and not heldout:
        messages += chat.small_talk(rng, language)[0]
    messages += [user(text), call_message(tool, names, arguments)]
    if family.result and not heldout and rng.random() < 0.3:
        messages += answered_turns(rng, family, language, arguments)
    call = {"name": tool["function"]["name"], "arguments": dict(zip(names, arguments))}
    return conversation("tools", messages, shuffled_tools(rng, offers), {"call": call})


def result_sample(rng):
    """Held-out only: the last answer puts a tool's result in words."""
    with_result = [family for family in FAMILIES if family.result in (weather_result, time_result, sum_result)]
    while True:
        language, family, arguments, text = draw(rng, True, lambda r: make_request(r, True), request_key)
        if family in with_result:
            break
    tool, names = offer(rng, family)
    content, answer = family.result(rng, language, arguments)
    messages = [user(text), call_message(tool, names, arguments), {"role": "tool", "content": content}, assistant(answer)]
    return conversation("tools", messages, [tool], {"contains": [answer.rstrip(".").split(" ")[-1 if family is ADD else 2]]})


def plain_answer(rng, heldout):
    """A question that no offered tool answers."""
    if rng.random() < 0.5:
        return facts.sample(rng, heldout)
    if heldout or rng.random() < 0.4:
        return additions.sample(rng, heldout)
    return chat.sample(rng)


def words_sample(rng, heldout):
    plain = plain_answer(rng, heldout)
    others = [family for family in FAMILIES if family not in (ADD, SEARCH) and family.names[0] != "translate"]
    offers = offer_many(rng, rng.sample(others, rng.choice([1, 1, 2])))
    messages = system_messages(rng) + plain["messages"]
    expected = {**(plain["expected"] or {}), "no_call": True}
    return conversation("tools", messages, shuffled_tools(rng, offers), expected)


def sample(rng, heldout=False):
    roll = rng.random()
    if heldout and roll < 0.1:
        return result_sample(rng)
    if roll < 0.25:
        return words_sample(rng, heldout)
    return call_sample(rng, heldout)
