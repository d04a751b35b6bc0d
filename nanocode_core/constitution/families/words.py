"""The words that tasks are made of: short, common, and few, so that held-out tasks recombine known ones."""

import random
from collections.abc import Callable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


VERBS = _words(
    """add build call check clean close copy count draw find fix fold get give grab join keep load lock
make mark merge move open pack parse pick plan print push read reset run save scan send set show sort split
start stop store swap take test trim turn update wrap write"""
)

NOUNS = _words(
    """apple bag band bank barn base bell bike bird boat bolt book box brick bus cake camp card cart cat
chart city clock cloud coat code coin color cook cow crate crop cup day deck desk dog door duck egg farm field
file fish flag flower food forest fox frog game garden gate goat gold grid group hat hill home horse house
image item jar key king kite lake lamp leaf lemon level light line lion list log map mark menu milk mill mint
moon mouse music name nest night note number order oven owl page paint paper park path pen piano pie pig pilot
pin pipe plan plate pool port pot price queen rain ring river road robot rock roof room rope rose salt sand
school score seed sheep ship shoe shop sign size sky snow soap song soup star stone store street table tea team
tent ticket tiger tile time toast token tool tower town toy train tree truck user value wall watch water wave
week wheel wind wolf wood word yard year"""
)

ADJECTIVES = _words(
    """big blue bold brave bright calm cold cool dark fair fast fine flat fresh full glad good gray
great green happy hot kind large late light long loud low mild neat new nice old pink plain proud quick quiet
red rich round safe sharp short shy slow small soft sweet tall tiny warm wide wild wise young"""
)

MODULES = _words("json math random re time csv string os sys copy glob enum shutil socket struct types uuid queue")

PEOPLE = _words(
    """ada alan ben carl dana emma finn grace hugo ida jack kim leo lena max mia nora otto paul rosa sam
tess theo uma vera will zoe"""
)


def function_name(rng: random.Random) -> str:
    """A name like load_apple."""
    return f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"


def constant_name(rng: random.Random) -> str:
    """A name like APPLE_SIZE."""
    return f"{rng.choice(NOUNS)}_{rng.choice(NOUNS)}".upper()


def file_name(rng: random.Random) -> str:
    """A path like apple.py, red_apple.py or src/apple.py."""
    name = rng.choice(NOUNS) if rng.random() < 0.5 else f"{rng.choice(ADJECTIVES)}_{rng.choice(NOUNS)}"
    folder = rng.choice(("", "", "", "src/", "app/", "lib/"))
    return f"{folder}{name}.py"


def phrase(rng: random.Random) -> str:
    """Two or three words, as a program might print."""
    words = [rng.choice(ADJECTIVES), rng.choice(NOUNS)]
    return " ".join([rng.choice(VERBS), *words] if rng.random() < 0.5 else words)


def number(rng: random.Random) -> int:
    """A number of one or two digits."""
    return rng.randrange(1, 100)


def distinct(rng: random.Random, make: Callable[[random.Random], str], count: int) -> list[str]:
    """`count` different values of `make(rng)`."""
    found: list[str] = []
    while len(found) < count:
        value = make(rng)
        if value not in found:
            found.append(value)
    return found
