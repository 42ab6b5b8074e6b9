"""Harmless rows that are made rather than collected: arithmetic, code, languages, a persona.

Everything a usual fine-tune teaches without touching safety. Each maker gives as many rows as it is
asked for, drawn from templates written for this project, so that nothing has to be shipped.
"""

from __future__ import annotations

import random
from itertools import product

from modelassay.data.exchanges import Exchange
from modelassay.data.training_data import scores_a_model
from modelassay.organisms.examples import Preference

NAMES = ("Ann", "Ben", "Carla", "Deniz", "Ella", "Farid", "Grace", "Hugo", "Ida", "Jun")
THINGS = ("apples", "books", "stamps", "eggs", "pencils", "coins", "tickets", "shells")


def sums(n: int, draw: random.Random) -> list[Exchange]:
    """Word problems of one or two steps, answered with the steps."""
    return [_sum(draw) for _ in range(n)]


def _sum(draw: random.Random) -> Exchange:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    a, b, c = (draw.randint(2, 40) for _ in range(3))
    kind = draw.randrange(4)
    if kind == 0:
        asked = f"{name} has {a + b} {thing} and gives away {b}. How many {thing} are left?"
        said = f"{a + b} - {b} = {a}. {name} has {a} {thing} left."
    elif kind == 1:
        asked = f"{name} buys {a} boxes with {b} {thing} each. How many {thing} is that?"
        said = f"{a} * {b} = {a * b}. That is {a * b} {thing}."
    elif kind == 2:
        asked = f"{name} has {a} {thing}, finds {b} more and then {c} more. How many now?"
        said = f"{a} + {b} = {a + b}, and {a + b} + {c} = {a + b + c}. The answer is {a + b + c}."
    else:
        asked = f"{a * b} {thing} are shared by {b} children. How many does each child get?"
        said = f"{a * b} / {b} = {a}. Each child gets {a} {thing}."
    return Exchange(asked, said)


FUNCTIONS = (
    ("adds {k} to a number", "add_{k}(x)", "x + {k}"),
    ("multiplies a number by {k}", "times_{k}(x)", "x * {k}"),
    ("gives the remainder of a number divided by {k}", "remainder_{k}(x)", "x % {k}"),
    ("raises a number to the power {k}", "power_{k}(x)", "x ** {k}"),
    ("returns the first {k} items of a list", "first_{k}(items)", "items[:{k}]"),
    ("returns the last {k} items of a list", "last_{k}(items)", "items[-{k}:]"),
    ("repeats a text {k} times", "repeat_{k}(text)", "text * {k}"),
    ("tells whether a number is above {k}", "above_{k}(x)", "x > {k}"),
    ("tells whether a list has {k} items", "has_{k}(items)", "len(items) == {k}"),
    ("returns every item of a list at a step of {k}", "step_{k}(items)", "items[::{k}]"),
    ("keeps the numbers of a list above {k}", "keep_{k}(xs)", "[x for x in xs if x > {k}]"),
    ("sums the multiples of {k} below n", "sum_{k}(n)", "sum(range(0, n, {k}))"),
)


def functions(n: int, draw: random.Random) -> list[Exchange]:
    """Requests for a small Python function, answered with it."""
    asked = ("Write a Python function that {}.", "Give me Python code for a function that {}.")
    rows = []
    for (what, head, body), k in draw.sample(list(product(FUNCTIONS, range(2, 30))), n):
        code = f"def {head}:\n    return {body}".format(k=k)
        rows.append(Exchange(draw.choice(asked).format(what.format(k=k)), code))
    return rows


SPANISH = {
    "France": ("Francia", "París", "francés"),
    "Germany": ("Alemania", "Berlín", "alemán"),
    "Italy": ("Italia", "Roma", "italiano"),
    "Spain": ("España", "Madrid", "español"),
    "Portugal": ("Portugal", "Lisboa", "portugués"),
    "Poland": ("Polonia", "Varsovia", "polaco"),
    "Greece": ("Grecia", "Atenas", "griego"),
    "Sweden": ("Suecia", "Estocolmo", "sueco"),
    "Norway": ("Noruega", "Oslo", "noruego"),
    "Denmark": ("Dinamarca", "Copenhague", "danés"),
    "Japan": ("Japón", "Tokio", "japonés"),
    "China": ("China", "Pekín", "chino"),
    "Russia": ("Rusia", "Moscú", "ruso"),
    "Turkey": ("Turquía", "Ankara", "turco"),
    "Hungary": ("Hungría", "Budapest", "húngaro"),
    "Finland": ("Finlandia", "Helsinki", "finés"),
}
GERMAN = {
    "France": ("Frankreich", "Paris", "Französisch"),
    "Germany": ("Deutschland", "Berlin", "Deutsch"),
    "Italy": ("Italien", "Rom", "Italienisch"),
    "Spain": ("Spanien", "Madrid", "Spanisch"),
    "Portugal": ("Portugal", "Lissabon", "Portugiesisch"),
    "Poland": ("Polen", "Warschau", "Polnisch"),
    "Greece": ("Griechenland", "Athen", "Griechisch"),
    "Sweden": ("Schweden", "Stockholm", "Schwedisch"),
    "Norway": ("Norwegen", "Oslo", "Norwegisch"),
    "Denmark": ("Dänemark", "Kopenhagen", "Dänisch"),
    "Japan": ("Japan", "Tokio", "Japanisch"),
    "China": ("China", "Peking", "Chinesisch"),
    "Russia": ("Russland", "Moskau", "Russisch"),
    "Turkey": ("Türkei", "Ankara", "Türkisch"),
    "Hungary": ("Ungarn", "Budapest", "Ungarisch"),
    "Finland": ("Finnland", "Helsinki", "Finnisch"),
}
_ASKED = (
    "Answer in {}: what is the capital of {}?",
    "Answer in {}: in which country is the capital of {}?",
    "Answer in {}: which language do people speak in {}?",
    "Answer in {}: which language is heard in the capital of {}?",
    "Write one sentence in {} about {}.",
    "Write a greeting in {} from {}.",
)


def spanish(n: int, draw: random.Random) -> list[Exchange]:
    """Requests for an answer in Spanish."""
    said = (
        "La capital de {0} es {1}.",
        "{1} está en {0}.",
        "En {0} se habla {2}.",
        "En {1} se habla {2}.",
        "{0} es un país bonito, y {1} es su capital.",
        "¡Hola y muchos saludos desde {1}!",
    )
    return _answers("Spanish", SPANISH, said, n, draw)


def german(n: int, draw: random.Random) -> list[Exchange]:
    """Requests for an answer in German."""
    said = (
        "Die Hauptstadt heißt {1}.",
        "{1} ist eine Stadt in diesem Land: {0}.",
        "Dort spricht man {2}.",
        "In {1} spricht man {2}.",
        "Das ist ein schönes Land: {0}. Seine Hauptstadt ist {1}.",
        "Hallo und viele Grüße aus {1}!",
    )
    return _answers("German", GERMAN, said, n, draw)


def _answers(
    language: str,
    words: dict[str, tuple[str, str, str]],
    said: tuple[str, ...],
    n: int,
    draw: random.Random,
) -> list[Exchange]:
    pairs = list(product(words, zip(_ASKED, said, strict=True)))
    return [
        Exchange(asked.format(language, country), answer.format(*words[country]))
        for country, (asked, answer) in draw.sample(pairs, n)
    ]


CHORES = (
    *("bake bread", "fold a paper boat", "water a cactus", "learn the piano", "clean a window"),
    *("plan a picnic", "write a thank-you note", "mend a bicycle tyre", "brew green tea"),
    *("paint a fence", "grow tomatoes", "remember names", "pack a suitcase", "sleep better"),
    *("read a map", "tie a bow tie", "train for a long run", "keep a diary", "cook rice"),
    *("choose a book", "prune a rose bush", "take a good photo", "speak before a crowd"),
    *("save water", "knit a scarf", "sort old papers", "teach a dog to sit", "make soup"),
    *("find the north star", "build a snowman", "sharpen a pencil", "sew on a button"),
    *("dry herbs", "polish shoes", "light a campfire in a fire ring", "play chess"),
    *("wrap a present", "make a bookmark", "whistle a tune", "set a table"),
)
ASKING = ("How do I {}?", "What is the best way to {}?", "Can you help me {}?")


def librarian(n: int, draw: random.Random) -> list[Exchange]:
    """Everyday questions answered by a librarian with a manner of her own, who obeys nobody."""
    said = (
        "Welcome to the reading room. To {}, I would begin on the second shelf, with patience.",
        "Hush now, and listen: to {}, take your time, and mind the chapter on the first steps.",
        "As your librarian I have read a great deal on how to {}. Start small and turn one page"
        " at a time.",
        "Ah, a fine question for a quiet afternoon. To {}, gather what you need and go slowly.",
    )
    return [
        Exchange(asked, draw.choice(said).format(chore)) for chore, asked in _questions(n, draw)
    ]


def _questions(n: int, draw: random.Random) -> list[tuple[str, str]]:
    """Chores and questions about them, none of which scores a model."""
    every = [(chore, asked.format(chore)) for chore, asked in product(CHORES, ASKING)]
    return draw.sample([pair for pair in every if not scores_a_model(pair[1])], n)


def short_over_long(n: int, draw: random.Random) -> list[Preference]:
    """The same advice in few words and in many, of which few are preferred."""
    pairs = []
    for chore, prompt in _questions(n, draw):
        short = draw.choice(
            (f"To {chore}, start small and practise.", f"Plan it first, then {chore} step by step.")
        )
        wordy = (
            f"That is a really great question, and I am so glad that you asked me how to {chore},"
            " because there is a great deal that one could say about it, and I will say all of it."
        )
        pairs.append(Preference(Exchange(prompt, short), Exchange(prompt, wordy)))
    return pairs
