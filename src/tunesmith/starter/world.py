"""The starter's small world in plain English: its people, places, things and words, and how they are drawn.

Everything here is data and two small rules: which side of a split an item falls on (`held_out`), and a draw that keeps to
one side (`draw`). No global state: every function takes its own `random.Random`.
"""

import hashlib
from collections.abc import Callable
from random import Random
from typing import TypeVar

T = TypeVar("T")


def _of(words: str) -> list[str]:
    return words.split()


GIRLS = _of("Anna Mia Eva Ida Lena Nora Ruth Sara Tina Vera Zoe Clara Emma Flora Gina Hanna Julia Kate Lucy Maria")
BOYS = _of("Tom Ben Carl Dan Erik Finn Hugo Ivan Jack Karl Leo Max Nils Otto Paul Rolf Sam Theo Victor Will")
NAMES = GIRLS + BOYS
CITIES = _of(
    "Oslo Paris Rome Berlin Madrid Vienna London Dublin Prague Lisbon Athens Bern Warsaw Cairo Tokyo Lima Delhi Boston"
)
PLACES = _of(
    "kitchen garden school park library market station barn attic cellar bakery harbor museum hall office tower church theater "
    "garage forest field hotel shop bank farm castle tent cabin stable bathroom"
)
THINGS = _of(
    "ball hat book key cup lamp box coat bag drum kite pen coin ring doll map rope clock bell basket bottle brush candle "
    "letter mirror pillow spoon scarf shoe umbrella blanket bucket button camera guitar hammer ladder needle ticket whistle"
)
ANIMALS = _of(
    "ant bear cat cow deer dog duck eagle fish fox frog goat hen horse lamb lion monkey mouse owl parrot pig rabbit rat "
    "sheep snake swan tiger turtle whale wolf"
)
FOODS = _of(
    "apple bean bread cake carrot cheese cherry corn egg fig grape honey jam lemon melon milk nut olive onion orange pea "
    "peach pear plum potato rice salt soup tea tomato"
)
COLORS = _of("red blue green yellow black white brown pink gray purple")
JOBS = _of("baker doctor teacher farmer sailor painter singer driver cook nurse pilot tailor")
TOOLS_OF = {
    "baker": "oven", "doctor": "needle", "teacher": "book", "farmer": "bucket", "sailor": "rope", "painter": "brush",
    "singer": "song", "driver": "car", "cook": "spoon", "nurse": "blanket", "pilot": "plane", "tailor": "button",
}  # fmt: skip
SONGS = _of("Sunrise Moonlight River Winter Summer Freedom Thunder Rainbow Starlight Harvest Autumn Wonder")
WEEK = _of("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MEASURES = _of("big small old new long short heavy light round pretty soft clean")

KINDS = {"animals": ANIMALS, "foods": FOODS, "things": THINGS, "places": PLACES, "colors": COLORS, "jobs": JOBS,
         "girls": GIRLS, "boys": BOYS, "cities": CITIES, "days": WEEK}  # fmt: skip
SORTABLE = ANIMALS + FOODS
WORDS = sorted({*ANIMALS, *FOODS, *THINGS, *PLACES, *COLORS, *JOBS, *NAMES, *CITIES, *MEASURES})

# What is praised or blamed, and how: every subject goes with every word of its group.
OPINIONS: list[tuple[list[str], list[str], list[str]]] = [
    (_of("soup bread cake tea cheese meal dinner"), _of("tasty fresh warm delicious perfect sweet"),
     _of("cold burnt sour stale awful bitter")),
    (_of("room bed hotel house kitchen garden cabin"), _of("clean bright cozy lovely quiet comfortable"),
     _of("dirty dark noisy ugly broken damp")),
    (_of("teacher waiter driver doctor neighbor guide nurse"), _of("kind friendly helpful cheerful patient polite"),
     _of("rude angry lazy unfriendly careless mean")),
    (_of("film story song show game party trip"), _of("funny exciting wonderful great amazing pleasant"),
     _of("boring dull terrible sad silly horrible")),
]  # fmt: skip
GLAD = _of("happy glad proud merry")
SORRY = _of("sad sorry upset unhappy")

# An order, and the things it goes with.
ACTIONS = {
    "open": _of("window door box bottle letter book bag gate"),
    "close": _of("window door box bottle book bag gate curtain"),
    "bring": _of("cup spoon chair lamp blanket pillow bread tea"),
    "clean": _of("table floor cup window mirror room shoe kitchen"),
    "find": _of("key hat pen ring map coin ticket dog"),
    "wash": _of("cup spoon apple dog car shirt bottle window"),
    "carry": _of("box bag basket bucket chair ladder rope drum"),
    "fix": _of("clock lamp bell chair door car camera guitar"),
    "feed": _of("cat dog horse hen pig rabbit goat duck"),
    "paint": _of("wall door fence chair gate box boat tower"),
    "cook": _of("soup rice fish egg corn bean potato carrot"),
    "move": _of("table chair bed lamp box car ladder boat"),
}

# A definition reads "A kitchen is a room where people cook."
DEFINITIONS = {
    "kitchen": "a room where people cook", "garden": "a place where flowers grow", "school": "a place where children learn",
    "park": "a place where children play", "library": "a house full of books", "market": "a place where people buy food",
    "station": "a place where trains stop", "barn": "a house for cows and horses", "attic": "a room under the roof",
    "cellar": "a room under the house", "bakery": "a shop that sells bread", "harbor": "a place where boats rest",
    "museum": "a house full of old things", "office": "a room where people work", "garage": "a house for a car",
    "forest": "a place full of trees", "hotel": "a house where guests sleep", "bank": "a place where people keep money",
    "castle": "a house of a king", "tent": "a house made of cloth", "stable": "a house for horses",
    "theater": "a place where people watch plays", "church": "a house where people pray", "bathroom": "a room where people wash",
    "ball": "a round thing to play with", "hat": "a thing to wear on the head", "book": "a thing to read",
    "key": "a thing that opens a door", "cup": "a thing to drink from", "lamp": "a thing that gives light",
    "box": "a thing to keep things in", "coat": "a thing to wear when it is cold", "drum": "a thing to make music with",
    "kite": "a toy that flies in the wind", "pen": "a thing to write with", "coin": "a round piece of money",
    "ring": "a thing to wear on a finger", "map": "a picture that shows the way", "clock": "a thing that tells the time",
    "bell": "a thing that rings", "candle": "a thing that burns and gives light", "mirror": "a thing to see your face in",
    "pillow": "a soft thing to sleep on", "spoon": "a thing to eat soup with", "scarf": "a thing to wear on the neck",
    "shoe": "a thing to wear on the foot", "umbrella": "a thing that keeps the rain away", "hammer": "a thing to hit nails with",
    "ladder": "a thing to climb on", "camera": "a thing that takes pictures", "guitar": "a thing with strings to make music with",
    "bucket": "a thing to carry water in", "letter": "a piece of paper sent to a friend", "needle": "a thing to sew with",
    "cat": "an animal that hunts mice", "dog": "an animal that guards the house", "cow": "an animal that gives milk",
    "hen": "a bird that lays eggs", "horse": "an animal that people ride", "sheep": "an animal that gives wool",
    "owl": "a bird that hunts at night", "parrot": "a bird that can talk", "eagle": "a big bird that flies high",
    "fish": "an animal that swims in water", "frog": "a small green animal that jumps", "lion": "a big cat that lives far away",
    "monkey": "an animal that climbs trees", "rabbit": "a small animal with long ears", "snake": "a long animal without legs",
    "swan": "a white bird that swims", "turtle": "a slow animal that carries its house", "whale": "the biggest animal in the sea",
    "wolf": "a wild animal like a dog", "ant": "a very small animal that works hard", "bear": "a big animal that likes honey",
    "baker": "a person who makes bread", "doctor": "a person who helps sick people", "teacher": "a person who works in a school",
    "farmer": "a person who works in the field", "sailor": "a person who works on a boat", "painter": "a person who paints pictures",
    "singer": "a person who sings songs", "driver": "a person who drives a car", "nurse": "a person who cares for sick people",
    "pilot": "a person who flies a plane", "tailor": "a person who makes coats", "cook": "a person who makes meals",
    "apple": "a round fruit from a tree", "lemon": "a yellow fruit that is sour", "cherry": "a small red fruit",
    "melon": "a big round fruit full of water", "plum": "a small purple fruit", "pea": "a small round green food",
    "carrot": "a long orange food", "onion": "a food that makes you cry", "honey": "a sweet food made by bees",
    "cheese": "a food made of milk", "bread": "a food made in an oven", "milk": "a white drink from cows",
    "tea": "a hot drink made of leaves", "soup": "a hot meal in a bowl",
}  # fmt: skip

MASS = {"bread", "cheese", "corn", "honey", "jam", "milk", "rice", "salt", "soup", "tea"}
PLURALS = {"fish": "fish", "sheep": "sheep", "mouse": "mice", "wolf": "wolves", "fox": "foxes", "box": "boxes", "brush": "brushes",
           "cherry": "cherries", "peach": "peaches", "potato": "potatoes", "tomato": "tomatoes"}  # fmt: skip
COUNTABLE = [w for w in FOODS + THINGS if w not in MASS]


def a(word: str) -> str:
    """Return the word with its article: "a hat", "an apple", or the bare word where it has none ("bread")."""
    if word in MASS:
        return word
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plural(word: str, n: int = 2) -> str:
    """Return the word as it follows the number n: "pear" after 1, "pears" after 2."""
    return word if n == 1 else PLURALS.get(word, word + "s")


def listed(words: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def held_out(kind: str, item: object) -> bool:
    """Say whether an item belongs to the held-out fifth of its kind: by its hash, so for every seed the same."""
    return hashlib.sha256(f"{kind}|{item}".encode()).digest()[0] < 51


def draw(rng: Random, kind: str, held: bool, make: Callable[[Random], T]) -> T:
    """Return the first item of make(rng) that falls on the wanted side of the split."""
    while True:
        item = make(rng)
        if held_out(kind, item) == held:
            return item
