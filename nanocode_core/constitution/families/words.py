"""The words that tasks are made of.

Most are short, common and few, so that a small model meets each of them often. But an agent has to
copy names that it has never seen. So a part of the names is made of rarer words, and a part of words
that are made up on the spot.
"""

import keyword
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

RARER = _words(
    """account action address alarm album amount anchor angle answer answers archive area argument arrow article asset
atlas author avatar axis backup badge balance banner batch beacon bill bottom branch bridge buffer button cache
call camera candle canvas cell chain channel chapter charge client clip cluster column command comment config
contact content context corner course cover cursor curve customer cycle dash data date debug delay delta demo
depth detail device diff digit display document domain draft driver edge element engine entry epoch error event
example factor feature feed fetch filter final finder flow folder font footer form format frame friend front
function global graph greeting group guide handle hash header heap height hello helper hint history host hour
icon index info input invoice island job join journal kernel label language lantern layer layout leader ledger
length letter level library limit link loader local logger loop loss machine main manager matrix meadow member
memory merge message meter method middle minute mirror mode model module monitor month mountain network node
object offset option orbit outer output packet panel parser part pass patch pattern payload pixel player plugin
pocket point pointer policy post power prefix project prompt query question radius range rate ratio reader
record region report request reset result retry root rotate round route row rule runner sample scale scanner
schema screen script section sender server session setting shape shift simple single slice slot source space
speed stack stage start state station status step stream style sum switch system tail target task temp text
theme thread thumb tick timer title total tracker trip tuple type unit upload url utils vector version video
view visit voice volume weather web weight welcome widget width window winner worker world wrapper writer zero
zone"""
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


def noun(rng: random.Random) -> str:
    """Three times in five a common word, else a rarer one or one that is made up, like tobaki."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(NOUNS)
    return rng.choice(RARER) if kind < 0.8 else made_up(rng)


def made_up(rng: random.Random) -> str:
    """Two or three syllables that are no word of Python."""
    while True:
        syllables = [rng.choice("bdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))]
        word = "".join(syllables) + rng.choice(("", "", "n", "r", "x", "l"))
        if not keyword.iskeyword(word):
            return word


def function_name(rng: random.Random) -> str:
    """A name like load_apple."""
    return f"{rng.choice(VERBS)}_{noun(rng)}"


def constant_name(rng: random.Random) -> str:
    """A name like APPLE_SIZE."""
    return f"{noun(rng)}_{noun(rng)}".upper()


def file_name(rng: random.Random) -> str:
    """A path like apple.py, red_apple.py or src/apple.py."""
    name = noun(rng) if rng.random() < 0.5 else f"{rng.choice(ADJECTIVES)}_{noun(rng)}"
    folder = rng.choice(("", "", "", "src/", "app/", "lib/"))
    return f"{folder}{name}.py"


def phrase(rng: random.Random) -> str:
    """Two or three words, as a program might print."""
    if rng.random() < 0.3:
        return " ".join(noun(rng) for _ in range(rng.choice((2, 2, 3))))
    words = [rng.choice(ADJECTIVES), noun(rng)]
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
