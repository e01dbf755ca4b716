"""Tables of the two worlds: vehicles, light, streets, frequencies and colours of each domain.

Lengths are metres; x is to the right, y up from the ground, z forward.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sda.streets.labels import BUS, CAR, TRAIN, TRUCK

Rng = np.random.Generator
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """A vehicle: its side view in metres (along, up), with the front to the right, extruded to its width."""

    train_id: int
    half_width: float
    outline: tuple[tuple[float, float], ...]  # from the rear bottom over the roof to the front bottom
    glass: tuple[int, ...]  # edges of the outline that are windows
    window: tuple[float, float, float, float]  # side windows: rear, front, bottom, top
    panes: int
    wheels: tuple[float, ...]
    radius: float
    taper: float = 0.0  # the roof is narrower by this share

    @property
    def length(self) -> float:
        return self.outline[-1][0] - self.outline[0][0]


@dataclass(frozen=True)
class Light:
    """Sun, air and lens of one image."""

    sky: tuple[Colour, Colour]  # top and horizon
    clouds: float  # mean number
    cloud: int  # opacity, of 255
    haze: float  # per metre
    sun: tuple[float, float, float]  # unit vector towards the sun
    strength: float  # of the sun relative to the sky
    softness: int  # of shadows: number of layers
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    texture: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    vignette: float = 0.0


def game_light(rng: Rng) -> Light:
    """Return light in good weather, at noon or in the evening."""
    sky = ((58, 128, 226), (164, 212, 250)) if rng.random() < 0.7 else ((40, 100, 205), (250, 205, 160))
    gain, gamma = (rng.uniform(0.85, 1.08),) * 3, rng.uniform(0.85, 1.2)
    return Light(sky, 4.0, cloud=150, haze=0.0012, sun=sun(rng, 0.9), strength=0.6, softness=1, gain=gain, gamma=gamma)


# fmt: off
# (sky top, at the horizon), share, haze per metre, sun, warmth, gamma
MOODS = (
    (((176, 182, 190), (206, 208, 208)), 0.30, 0.004, 0.15, 0.00, 1.00),  # overcast
    (((122, 150, 184), (196, 206, 214)), 0.30, 0.003, 0.45, 0.03, 0.95),  # hazy sun
    (((198, 200, 200), (214, 214, 210)), 0.08, 0.012, 0.05, -0.02, 0.92),  # fog
    (((104, 112, 128), (196, 172, 148)), 0.12, 0.005, 0.25, 0.08, 1.25),  # dusk
    (((236, 236, 232), (246, 244, 238)), 0.10, 0.005, 0.30, 0.02, 0.85),  # glare
    (((112, 122, 136), (158, 164, 172)), 0.10, 0.006, 0.10, -0.06, 1.15),  # rain
)
# fmt: on


def camera_light(rng: Rng) -> Light:
    """Return light in any weather, for a camera with imprecise exposure and white balance."""
    share = np.array([mood[1] for mood in MOODS])
    sky, _, haze, strength, warmth, gamma = MOODS[rng.choice(len(MOODS), p=share / share.sum())]
    exposure, warmth, green = rng.normal(1.0, 0.07), warmth + rng.normal(0, 0.03), rng.normal(0, 0.012)
    return Light(
        sky,
        clouds=2.0,
        cloud=22,
        haze=haze * rng.uniform(0.4, 1.2),
        sun=sun(rng, 0.6),
        strength=strength,
        softness=4,
        gain=(exposure * (1 + warmth), exposure * (1 + green), exposure * (1 - warmth)),
        gamma=gamma * math.exp(rng.normal(0, 0.08)),
        texture=rng.uniform(0.6, 1.1),
        blur=rng.uniform(0.25, 0.6),
        noise=rng.uniform(1.5, 4),
        vignette=rng.uniform(0.1, 0.35),
    )


def sun(rng: Rng, height: float) -> tuple[float, float, float]:
    """Return a unit vector towards a sun to the left or right, at an elevation of about `height`."""
    x, y, z = rng.choice([-1, 1]) * rng.uniform(0.4, 1), height * rng.uniform(0.8, 1.2), rng.uniform(-0.6, 0.3)
    size = math.sqrt(x * x + y * y + z * z)
    return (x / size, y / size, z / size)


@dataclass(frozen=True)
class World:
    """The differences between the domains: lens, streets, frequencies of objects, and colours."""

    code: int  # part of the random seed
    light: Callable[[Rng], Light]
    focal: float  # share of the image width
    eye: tuple[float, float]
    horizon: tuple[float, float]  # share of the image height
    lanes: tuple[int, int]  # per direction
    lane: float
    walk: tuple[float, float]
    linings: dict[str, float]  # kinds of roadside and their shares
    storeys: tuple[int, int]
    pitched: float  # share of houses with a pitched roof
    trees: tuple[str, ...]
    cars: tuple[Shape, ...]
    truck: Shape
    bus: Shape
    tram: Shape
    often: dict[str, float]  # mean number per image; "parked" and "trees" are shares of the possible places
    paint: dict[str, tuple[Colour, ...]]
    bonnet: float


def coach(train_id: int, half: float, width: float, height: float, panes: int, nose: float) -> Shape:
    """Return a box on wheels with a row of windows: a bus or a tram."""
    end = ((half - nose - 0.15, height), (half - nose, 0.86 * height), (half, 1.2), (half, 0.3))
    outline = (*((-along, y) for along, y in reversed(end)), *end)
    window = (-half + nose + 0.3, half - nose - 0.3, 1.3, 0.82 * height)
    return Shape(train_id, width, outline, (1, 5), window, panes, (-0.62 * half, 0.62 * half), 0.48)


# fmt: off
GAME = World(
    code=1, light=game_light, focal=0.78, eye=(1.5, 2.1), horizon=(0.44, 0.54), lanes=(1, 3), lane=3.6,
    walk=(2.5, 5.0), linings={"houses": 0.62, "park": 0.2, "wall": 0.07, "fence": 0.11}, storeys=(2, 12), pitched=0.1,
    trees=("palm", "palm", "ball", "ball", "bush"),
    cars=(
        Shape(CAR, 0.95, ((-2.4, 0.3), (-2.45, 0.95), (-1.6, 1.0), (-1.0, 1.38), (0.4, 1.4), (1.1, 1.0), (2.3, 0.85),
                          (2.35, 0.3)), (2, 4), (-1.2, 0.75, 1.0, 1.3), 2, (-1.5, 1.5), 0.34, 0.14),
        Shape(CAR, 1.0, ((-2.3, 0.4), (-2.35, 1.1), (-2.25, 1.8), (0.5, 1.85), (1.0, 1.2), (2.2, 1.1), (2.25, 0.4)),
              (1, 3), (-2.0, 0.5, 1.15, 1.7), 3, (-1.45, 1.45), 0.42, 0.06),
        Shape(CAR, 0.97, ((-2.2, 0.25), (-2.25, 0.85), (-0.9, 1.15), (0.0, 1.2), (0.8, 0.85), (2.2, 0.65),
                          (2.25, 0.25)), (1, 3), (-0.7, 0.4, 0.85, 1.12), 1, (-1.4, 1.45), 0.34, 0.16)),
    truck=Shape(TRUCK, 1.25, ((-4.2, 0.6), (-4.2, 3.4), (1.5, 3.4), (1.55, 2.5), (2.3, 2.4), (2.7, 1.6), (4.1, 1.5),
                              (4.2, 0.5)), (4,), (1.7, 2.4, 1.6, 2.25), 1, (-3.2, -2.1, 3.1), 0.52),
    bus=coach(BUS, 5.6, 1.3, 3.1, 10, 0.05), tram=coach(TRAIN, 11.0, 1.35, 3.8, 12, 1.3),
    often={"parked": 0.4, "traffic": 3.4, "truck": 0.24, "bus": 0.22, "tram": 0.24, "people": 2.6, "cyclists": 0.3,
           "bikers": 0.3, "bicycles": 0.25, "motorcycles": 0.2, "lamps": 3.0, "signs": 1.2, "signals": 0.7,
           "trees": 0.35, "junction": 0.4, "bins": 0.5},
    paint={
        "road": ((98, 100, 110), (84, 86, 96)), "line": ((250, 200, 40),), "walk": ((206, 196, 178), (190, 186, 184)),
        "kerb": ((226, 220, 206),), "grass": ((92, 176, 60), (120, 190, 70)),
        "house": ((236, 202, 142), (224, 130, 98), (246, 232, 200), (120, 180, 196), (214, 164, 178), (170, 196, 150)),
        "glass": ((64, 124, 176), (50, 92, 140)), "roof": ((176, 74, 50),), "wall": ((222, 186, 136), (200, 112, 80)),
        "fence": ((240, 240, 236), (150, 104, 66)), "pole": ((70, 78, 84),), "signal": ((236, 188, 36),),
        "sign": ((16, 130, 70), (240, 196, 30), (214, 36, 36)),
        "leaf": ((40, 146, 52), (72, 166, 48), (28, 122, 66)), "trunk": ((150, 104, 64),),
        "car": ((220, 36, 40), (245, 200, 40), (36, 90, 210), (245, 245, 245), (30, 32, 38), (40, 170, 120),
                (250, 120, 30)),
        "truck": ((230, 60, 50), (60, 120, 200), (240, 240, 240)), "bus": ((250, 186, 20), (40, 150, 220)),
        "tram": ((60, 170, 90), (214, 60, 110)),
        "cloth": ((230, 60, 70), (60, 110, 220), (250, 220, 80), (250, 250, 250), (40, 160, 110), (36, 40, 70))},
    bonnet=0.1)

CAMERA = World(
    code=2, light=camera_light, focal=0.9, eye=(1.2, 1.6), horizon=(0.4, 0.5), lanes=(1, 1), lane=3.1,
    walk=(1.8, 3.6), linings={"houses": 0.56, "park": 0.24, "wall": 0.09, "fence": 0.11}, storeys=(2, 5), pitched=0.6,
    trees=("crown", "crown", "crown", "bush"),
    cars=(
        Shape(CAR, 0.88, ((-1.95, 0.25), (-2.0, 0.9), (-1.7, 1.45), (0.3, 1.48), (1.1, 0.95), (1.95, 0.8), (2.0, 0.25)),
              (1, 3), (-1.6, 0.5, 0.95, 1.38), 2, (-1.25, 1.25), 0.31, 0.16),
        Shape(CAR, 0.9, ((-2.25, 0.25), (-2.3, 0.9), (-1.95, 1.45), (0.3, 1.47), (1.1, 0.98), (2.2, 0.8), (2.25, 0.25)),
              (1, 3), (-1.85, 0.55, 0.95, 1.37), 3, (-1.4, 1.4), 0.32, 0.16),
        Shape(CAR, 0.95, ((-2.3, 0.3), (-2.35, 1.0), (-2.2, 1.85), (0.9, 1.9), (1.7, 1.1), (2.3, 0.9), (2.35, 0.3)),
              (1, 3), (-1.9, 1.0, 1.05, 1.7), 3, (-1.45, 1.5), 0.33, 0.08)),
    truck=Shape(TRUCK, 1.2, ((-3.9, 0.6), (-3.9, 3.5), (1.9, 3.5), (1.95, 2.7), (3.2, 2.7), (3.6, 2.5), (3.8, 1.4),
                             (3.8, 0.4)), (5,), (2.3, 3.3, 1.5, 2.3), 1, (-2.7, 2.7), 0.48),
    bus=coach(BUS, 5.9, 1.27, 2.95, 6, 0.15), tram=coach(TRAIN, 13.0, 1.2, 3.5, 9, 0.7),
    often={"parked": 0.5, "traffic": 1.5, "truck": 0.28, "bus": 0.32, "tram": 0.28, "people": 3.2, "cyclists": 0.5,
           "bikers": 0.2, "bicycles": 0.9, "motorcycles": 0.3, "lamps": 2.0, "signs": 2.0, "signals": 0.8,
           "trees": 0.35, "junction": 0.35, "bins": 0.5},
    paint={
        "road": ((104, 103, 102), (88, 88, 90), (122, 119, 114)), "line": ((205, 203, 198),),
        "walk": ((136, 132, 128), (150, 140, 132), (118, 116, 116)), "kerb": ((158, 156, 152),),
        "grass": ((90, 112, 62), (114, 112, 76), (78, 104, 56)),
        "house": ((176, 164, 146), (150, 112, 94), (190, 184, 174), (128, 122, 118), (168, 148, 116), (146, 150, 156)),
        "glass": ((60, 66, 72), (84, 92, 100)), "roof": ((122, 74, 60), (84, 82, 84)),
        "wall": ((136, 130, 122), (124, 92, 78)), "fence": ((58, 66, 62), (104, 90, 74), (130, 134, 136)),
        "pole": ((112, 116, 116), (78, 84, 80)), "signal": ((34, 38, 38),),
        "sign": ((188, 44, 44), (40, 78, 150), (206, 200, 190)),
        "leaf": ((68, 98, 46), (90, 106, 52), (56, 80, 48), (122, 102, 52)), "trunk": ((84, 74, 64),),
        "car": ((40, 42, 46), (150, 152, 156), (196, 196, 194), (92, 98, 108), (48, 62, 92), (112, 40, 40),
                (74, 84, 70)),
        "truck": ((190, 188, 180), (84, 98, 120), (150, 120, 70)),
        "bus": ((178, 160, 70), (150, 60, 56), (190, 190, 186)), "tram": ((170, 64, 54), (176, 164, 112)),
        "cloth": ((46, 48, 56), (92, 84, 78), (70, 82, 110), (126, 60, 58), (150, 148, 140), (36, 36, 38))},
    bonnet=0.6)

# fmt: on
WORLDS = {"game": GAME, "camera": CAMERA}
