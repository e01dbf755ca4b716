"""The embedded data set "streets": drawn road scenes with the 19 Cityscapes classes, so that a demo needs no download.

Two worlds share one meaning of the labels and little else. *game*, the labelled source, is clean, saturated and sunny;
*camera*, the target, is muted, hazy, textured and noisy, and varies a lot from picture to picture. `render` draws one
scene, `write` puts a whole set on disk in the layouts of GTA5 (game) and Cityscapes (camera), for their own readers.

World coordinates are metres: x to the right, y up from the ground, z forward; the eye is at x = z = 0.
"""

import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from sda.errors import SdaError

VERSION = 1  # goes up whenever the pictures change

# fmt: off
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS,
 TRAIN, MOTORCYCLE, BICYCLE) = range(19)
VOID = 255
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
COLOURS = ((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
           (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
           (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32))
# fmt: on
TRAIN_CITIES = ("aldheim", "brunnau", "carsted", "dorvik")
VAL_CITIES = ("elmsund", "farnholt")
VAL_OFFSET = 1_000_000  # camera scenes from here on are for validation, however many are for training

NEAR = 1.0  # metres; whatever is nearer is drawn as if it were here
FAR = 150.0  # where the street ends and the skyline begins
CIRCLE = tuple((math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 12, endpoint=False).tolist())
BLACK, WHITE, GLASS, SKIN = (18, 18, 20), (235, 235, 230), (44, 56, 68), (205, 160, 130)
Rng = np.random.Generator
Colour = tuple[int, int, int]
Point = tuple[float, float, float]


# --- the two worlds


@dataclass(frozen=True)
class Shape:
    """A vehicle: a side view in metres (along, up), front to the right, drawn out to its width."""

    train_id: int
    half_width: float
    outline: tuple[tuple[float, float], ...]  # from the rear bottom over the roof to the front bottom
    glass: tuple[int, ...]  # the outline's edges that are windows
    window: tuple[float, float, float, float]  # side windows: rear, front, bottom, top
    panes: int
    wheels: tuple[float, ...]
    radius: float
    taper: float = 0.0  # how much narrower the roof is

    @property
    def length(self) -> float:
        return self.outline[-1][0] - self.outline[0][0]


@dataclass(frozen=True)
class Light:
    """Sun, air and lens of one picture."""

    sky: tuple[Colour, Colour]  # top and horizon
    clouds: float  # mean number
    cloud: int  # how opaque, of 255
    haze: float  # per metre
    sun: tuple[float, float, float]  # unit vector towards the sun
    strength: float  # of the sun against the open sky
    softness: int  # of shadows: how many layers
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    texture: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    vignette: float = 0.0


def game_light(rng: Rng) -> Light:
    """Always a sunny day."""
    sky = ((58, 128, 226), (164, 212, 250)) if rng.random() < 0.75 else ((40, 100, 205), (250, 205, 160))
    return Light(sky, clouds=4.0, cloud=150, haze=0.0012, sun=sun(rng, 0.9), strength=0.6, softness=1)


# fmt: off
# (sky top, at the horizon), share, haze per metre, sun, warmth, gamma
MOODS = (
    (((176, 182, 190), (206, 208, 208)), 0.32, 0.008, 0.05, 0.00, 1.00),  # overcast
    (((122, 150, 184), (196, 206, 214)), 0.22, 0.006, 0.35, 0.04, 0.95),  # hazy sun
    (((198, 200, 200), (214, 214, 210)), 0.14, 0.022, 0.00, -0.03, 0.90),  # fog
    (((104, 112, 128), (196, 172, 148)), 0.14, 0.009, 0.15, 0.12, 1.40),  # dusk
    (((236, 236, 232), (246, 244, 238)), 0.10, 0.010, 0.20, 0.02, 0.75),  # glare
    (((112, 122, 136), (158, 164, 172)), 0.08, 0.012, 0.00, -0.10, 1.25),  # rain
)
# fmt: on


def camera_light(rng: Rng) -> Light:
    """Any weather, and a camera whose exposure and white balance are seldom right."""
    share = np.array([mood[1] for mood in MOODS])
    sky, _, haze, strength, warmth, gamma = MOODS[rng.choice(len(MOODS), p=share / share.sum())]
    exposure, warmth, green = rng.normal(0.98, 0.10), warmth + rng.normal(0, 0.06), rng.normal(0, 0.025)
    return Light(
        sky,
        clouds=2.0,
        cloud=22,
        haze=haze * rng.uniform(0.6, 1.5),
        sun=sun(rng, 0.6),
        strength=strength,
        softness=4,
        gain=(exposure * (1 + warmth), exposure * (1 + green), exposure * (1 - warmth)),
        gamma=gamma * math.exp(rng.normal(0, 0.12)),
        texture=rng.uniform(0.7, 1.3),
        blur=rng.uniform(0.25, 0.85),
        noise=rng.uniform(2, 8),
        vignette=rng.uniform(0.1, 0.45),
    )


def sun(rng: Rng, height: float) -> tuple[float, float, float]:
    """A unit vector towards a sun to the left or right, its elevation about `height`."""
    x, y, z = rng.choice([-1, 1]) * rng.uniform(0.4, 1), height * rng.uniform(0.8, 1.2), rng.uniform(-0.6, 0.3)
    size = math.sqrt(x * x + y * y + z * z)
    return (x / size, y / size, z / size)


@dataclass(frozen=True)
class World:
    """What distinguishes a domain: its lens, its streets, what stands in them how often, and its paints."""

    code: int  # part of the random seed
    light: Callable[[Rng], Light]
    focal: float  # share of the image width
    eye: tuple[float, float]
    horizon: tuple[float, float]  # share of the image height
    lanes: tuple[int, int]  # per direction
    lane: float
    walk: tuple[float, float]
    linings: dict[str, float]  # what lines the street
    storeys: tuple[int, int]
    pitched: float  # share of houses with a pitched roof
    trees: tuple[str, ...]
    cars: tuple[Shape, ...]
    truck: Shape
    bus: Shape
    tram: Shape
    often: dict[str, float]  # mean number in a picture; "parked" and "trees" are shares of the places for them
    paint: dict[str, tuple[Colour, ...]]
    bonnet: float


def coach(train_id: int, half: float, width: float, height: float, panes: int, nose: float) -> Shape:
    """A box on wheels with a row of windows: a bus or a tram."""
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
    code=2, light=camera_light, focal=1.02, eye=(1.15, 1.4), horizon=(0.37, 0.47), lanes=(1, 1), lane=3.1,
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
    often={"parked": 0.5, "traffic": 1.5, "truck": 0.24, "bus": 0.24, "tram": 0.26, "people": 3.2, "cyclists": 0.5,
           "bikers": 0.2, "bicycles": 0.9, "motorcycles": 0.3, "lamps": 2.0, "signs": 2.0, "signals": 0.8,
           "trees": 0.35, "junction": 0.35, "bins": 0.5},
    paint={
        "road": ((104, 103, 102), (88, 88, 90), (122, 119, 114)), "line": ((205, 203, 198),),
        "walk": ((136, 132, 128), (150, 140, 132), (118, 116, 116)), "kerb": ((158, 156, 152),),
        "grass": ((92, 104, 66), (116, 112, 78), (80, 96, 60)),
        "house": ((176, 164, 146), (150, 112, 94), (190, 184, 174), (128, 122, 118), (168, 148, 116), (146, 150, 156)),
        "glass": ((60, 66, 72), (84, 92, 100)), "roof": ((122, 74, 60), (84, 82, 84)),
        "wall": ((136, 130, 122), (124, 92, 78)), "fence": ((58, 66, 62), (104, 90, 74), (130, 134, 136)),
        "pole": ((112, 116, 116), (78, 84, 80)), "signal": ((34, 38, 38),),
        "sign": ((188, 44, 44), (40, 78, 150), (206, 200, 190)),
        "leaf": ((66, 84, 48), (86, 96, 54), (56, 72, 52), (120, 100, 52)), "trunk": ((84, 74, 64),),
        "car": ((40, 42, 46), (150, 152, 156), (196, 196, 194), (92, 98, 108), (48, 62, 92), (112, 40, 40),
                (74, 84, 70)),
        "truck": ((190, 188, 180), (84, 98, 120), (150, 120, 70)),
        "bus": ((178, 160, 70), (150, 60, 56), (190, 190, 186)), "tram": ((170, 64, 54), (176, 164, 112)),
        "cloth": ((46, 48, 56), (92, 84, 78), (70, 82, 110), (126, 60, 58), (150, 148, 140), (36, 36, 38))},
    bonnet=0.6)

# fmt: on
WORLDS = {"game": GAME, "camera": CAMERA}


# --- the drawing board


class Canvas:
    """A picture and its labels, twice as fine as asked for, drawn through one camera with the very same polygons."""

    def __init__(self, world: World, rng: Rng, height: int, width: int):
        self.world, self.rng, self.light = world, rng, world.light(rng)
        self.height, self.width = 2 * height, 2 * width
        self.focal = world.focal * self.width
        self.eye = rng.uniform(*world.eye)
        self.horizon = self.height * rng.uniform(*world.horizon)
        self.centre = self.width * rng.uniform(0.42, 0.58)
        self.curve = rng.normal(0, 5e-4)
        self.image = Image.new("RGB", (self.width, self.height))
        self.label = Image.new("L", (self.width, self.height), SKY)
        self.pen, self.label_pen = ImageDraw.Draw(self.image, "RGBA"), ImageDraw.Draw(self.label)
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def pick(self, paint: str) -> Colour:
        """A colour of this world's paint, a little off."""
        choices = self.world.paint[paint]
        return toned(choices[self.rng.integers(len(choices))], self.rng.uniform(0.9, 1.1))

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        z = max(z, NEAR)
        scale = self.focal / z
        return self.centre + scale * x + self.focal * self.curve * z, self.horizon + scale * (self.eye - y)

    def fill(self, points: Sequence[Point], colour: Colour, train_id: int | None = None, alpha: int = 255) -> None:
        """Fill a polygon of (x, y, z) points, faded by haze; without a class it is a detail that leaves the label."""
        flat = [self.project(*point) for point in points]
        across, down = zip(*flat, strict=True)
        if max(across) < 0 or min(across) > self.width or max(down) < 0 or min(down) > self.height:
            return  # out of sight
        depth = sum(max(point[2], 0) for point in points) / len(flat)
        clear = math.exp(-self.light.haze * depth)
        self.pen.polygon(flat, fill=(*blend(self.light.sky[1], colour, clear), alpha))
        if train_id is not None:
            self.label_pen.polygon(flat, fill=train_id)

    def facing(self, x: float, y: float, z: float) -> float:
        """Brightness of a surface with this unit normal."""
        sun = self.light.sun
        direct = max(0.0, x * sun[0] + y * sun[1] + z * sun[2])
        return 1 - 0.55 * self.light.strength + self.light.strength * direct - 0.12 * (1 - y) * (1 - direct)

    def shadow(self, corners, height: float) -> None:
        """Cast the footprint `corners`, (x, z) each, of something `height` tall; soft shadows are many faint layers."""
        sun, layers = self.light.sun, self.light.softness
        reach = height * self.light.strength / max(sun[1], 0.3)
        x0, z0 = np.mean(corners, axis=0).tolist()
        for layer in range(layers):
            for share in (0, 0.5, 1):  # of the way from the foot to the top's shadow
                grow, x1, z1 = 1 + 0.12 * layer, x0 - share * reach * sun[0], z0 - share * reach * sun[2]
                self.fill(
                    [(x1 + grow * (x - x0), 0, z1 + grow * (z - z0)) for x, z in corners], BLACK, None, 70 // layers
                )

    def later(self, x: float, z: float, draw: Callable[[], None]) -> None:
        """Draw when everything farther away is drawn."""
        self.waiting.append((math.hypot(x, z), draw))

    def draw_waiting(self) -> None:
        for _, draw in sorted(self.waiting, key=lambda entry: -entry[0]):
            draw()

    def disc(self, x, y, z, rx, ry, colour: Colour, train_id: int | None = None) -> None:
        self.fill([(x + rx * c, y + ry * s, z) for c, s in CIRCLE], colour, train_id)

    def panel(self, x0, x1, y0, y1, z, colour: Colour, train_id: int | None = None) -> None:
        """An upright rectangle that faces the camera."""
        self.fill([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], colour, train_id)

    def along(self, x, y0, y1, z0, z1, colour: Colour, train_id: int | None = None, alpha: int = 255) -> None:
        """An upright rectangle that runs along the street."""
        self.fill([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)], colour, train_id, alpha)

    def floor(self, x0, x1, z0, z1, colour: Colour, train_id: int | None = None, alpha: int = 255) -> None:
        """A rectangle on the ground."""
        self.fill([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], colour, train_id, alpha)


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """From `a` (share 0) to `b` (share 1)."""
    return tuple(int(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def toned(colour: Colour, factor: float) -> Colour:
    """Lighter or darker."""
    return tuple(min(255, int(c * factor)) for c in colour)


# --- street and ground


@dataclass
class Street:
    """The plan of one scene, seen from above. Sides are -1 (left) and 1 (right)."""

    middle: float
    lanes: int
    kerb: dict[int, float]
    walk: dict[int, float]  # the far side of the sidewalk, where houses or gardens begin
    verge: dict[int, float]  # width of the strip of grass at the kerb
    junction: tuple[float, float] | None
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # x, z and half length of what stands there

    def crosses(self, z0: float, z1: float) -> bool:
        return self.junction is not None and z0 < self.junction[1] and z1 > self.junction[0]

    def take(self, x: float, z: float, half: float) -> bool:
        """Reserve a place; False if it is taken."""
        if any(abs(x - x1) < 1.9 and abs(z - z1) < half + half1 + 0.6 for x1, z1, half1 in self.taken):
            return False
        self.taken.append((x, z, half))
        return True


def plan(canvas: Canvas) -> Street:
    world, rng = canvas.world, canvas.rng
    lanes = int(rng.integers(world.lanes[0], world.lanes[1] + 1))
    middle = -(int(rng.integers(lanes)) + 0.5) * world.lane
    kerb = {side: middle + side * (lanes * world.lane + rng.choice([0.6, 2.1])) for side in (-1, 1)}
    verge = {side: rng.uniform(0.8, 2.2) if rng.random() < 0.3 else 0.0 for side in (-1, 1)}
    walk = {side: kerb[side] + side * (verge[side] + rng.uniform(*world.walk)) for side in (-1, 1)}
    start = rng.uniform(12, 45)
    junction = (start, start + rng.uniform(8, 13)) if rng.random() < world.often["junction"] else None
    return Street(middle, lanes, kerb, walk, verge, junction)


def draw_sky(canvas: Canvas) -> None:
    """A gradient, some clouds, and a skyline of houses and trees at the end of the world."""
    rng, (top, low) = canvas.rng, canvas.light.sky
    for v in range(0, int(canvas.horizon) + 2, 2):
        share = min(1, v / canvas.horizon)
        canvas.pen.rectangle((0, v, canvas.width, v + 1), fill=blend(top, low, share))
    for _ in range(rng.poisson(canvas.light.clouds)):
        u, v, size = rng.uniform(0, canvas.width), rng.uniform(0, 0.7 * canvas.horizon), rng.uniform(20, 50)
        for _ in range(7):
            du, dv, r = rng.normal(0, size), rng.normal(0, size / 8), rng.uniform(0.2, 0.4) * size
            box = (u + du - 1.6 * r, v + dv - 0.6 * r, u + du + 1.6 * r, v + dv + 0.6 * r)
            canvas.pen.ellipse(box, fill=(255, 255, 255, canvas.light.cloud))
    x = -130.0
    while x < 130:
        width = rng.uniform(8, 22)
        if rng.random() < 0.45:
            canvas.disc(x + width / 2, 3, FAR, width * 0.8, rng.uniform(5, 10), canvas.pick("leaf"), VEGETATION)
        else:
            canvas.panel(x, x + width, 0, rng.uniform(7, 22), FAR, toned(canvas.pick("house"), 0.85), BUILDING)
        x += width


def draw_ground(canvas: Canvas, street: Street) -> None:
    """Grass, sidewalks, kerbs, road and markings, in slices so that haze and bends follow the depth."""
    rng = canvas.rng
    bright = canvas.facing(0, 1, 0)
    paint = {name: toned(canvas.pick(name), bright) for name in ("road", "walk", "kerb", "grass", "line")}
    cuts = sorted([*np.geomspace(1.5, FAR, 26).tolist(), *(street.junction or ())], reverse=True)
    for far, near in pairwise(cuts):
        canvas.floor(-120, 120, near, far, paint["grass"], TERRAIN)
        if street.crosses(near + 0.01, far - 0.01):
            canvas.floor(-120, 120, near, far, paint["road"], ROAD)
            continue
        canvas.floor(street.walk[-1], street.walk[1], near, far, paint["walk"], SIDEWALK)
        for side in (-1, 1):
            inner = street.kerb[side] + side * 0.25
            if street.verge[side]:
                canvas.floor(inner, inner + side * street.verge[side], near, far, paint["grass"], TERRAIN)
            canvas.floor(street.kerb[side], inner, near, far, paint["kerb"], SIDEWALK)
        canvas.floor(street.kerb[-1], street.kerb[1], near, far, paint["road"], ROAD)
    dashes = [street.middle + lane * canvas.world.lane for lane in range(1 - street.lanes, street.lanes)]
    for z in np.arange(1.5 + rng.uniform(0, 6), 90, 7.5).tolist():
        for x in dashes:
            if not street.crosses(z, z + 3):
                canvas.floor(x - 0.08, x + 0.08, z, z + 3.2, paint["line"] if x == street.middle else WHITE, alpha=220)
    if street.junction:
        z = street.junction[0] - 4
        for x in np.arange(street.kerb[-1] + 0.4, street.kerb[1] - 0.5, 1.0).tolist():
            canvas.floor(x, x + 0.5, z, z + 3, WHITE, alpha=200)


# --- what lines the street


def line_street(canvas: Canvas, street: Street) -> None:
    """Cut both sides into stretches and put houses, a park, a wall or a fence along each."""
    rng, linings = canvas.rng, canvas.world.linings
    draw = {"houses": put_houses, "park": put_park, "wall": put_wall, "fence": put_fence}
    for side in (-1, 1):
        z = rng.uniform(1, 3)
        while z < FAR - 10:
            kind = list(linings)[rng.choice(len(linings), p=list(linings.values()))]
            end = min(z + rng.uniform(15, 50), FAR)
            if street.junction and z < street.junction[0] - 6 < end:
                end = street.junction[0] - 3
            if street.crosses(z, end):
                z = street.junction[1] + 3
                continue
            draw[kind](canvas, street.walk[side], side, z, end)
            z = end


def put_houses(canvas: Canvas, x: float, side: int, z0: float, z1: float) -> None:
    rng, world = canvas.rng, canvas.world
    while z0 < z1 - 3:
        end = min(z0 + rng.uniform(8, 20), z1)
        storeys = int(rng.integers(world.storeys[0], world.storeys[1] + 1))
        draw_house(canvas, x + side * rng.uniform(0, 0.6), side, z0, end, storeys, rng.random() < world.pitched)
        z0 = end + (rng.uniform(2, 6) if rng.random() < 0.15 else 0.0)


def draw_house(canvas: Canvas, x: float, side: int, z0: float, z1: float, storeys: int, pitched: bool) -> None:
    """Queue a house bay by bay, so that what stands before it is sorted right."""
    rng = canvas.rng
    wall, shop, roof, glass = (canvas.pick(name) for name in ("house", "house", "roof", "glass"))
    front, end = canvas.facing(-side, 0, 0), canvas.facing(0, 0, -1)
    storey, bays = rng.uniform(2.9, 3.4), max(1, round((z1 - z0) / rng.uniform(2.6, 4.2)))
    height, step = storeys * storey, (z1 - z0) / bays
    tall, margin = rng.uniform(0.45, 0.6) * storey, rng.uniform(0.15, 0.32) * step
    eaves, ridge = (x - side * 0.3, height), (x + side * 3, height + 3.2)
    canvas.shadow([(x, z0), (x + side, z0), (x + side, z1), (x, z1)], min(height, 12))

    def bay(near: float) -> None:
        far = near + step
        canvas.along(x, 0, height, near, far, toned(wall, front), BUILDING)
        if pitched:
            points = (*eaves, near), (*eaves, far), (*ridge, far), (*ridge, near)
            canvas.fill(points, toned(roof, canvas.facing(-side * 0.7, 0.7, 0)), BUILDING)
        canvas.along(x, 0, 0.85 * storey, near, far, toned(shop, 0.8 * front))
        if near > 70:
            return  # too far for windows
        for low in (0.25 * storey + level * storey for level in range(storeys)):
            pane, frame = (near + margin, far - margin), (near + margin - 0.12, far - margin + 0.12)
            canvas.along(x, low - 0.12, low + tall + 0.1, *frame, toned(wall, 1.2 * front))
            canvas.along(x, low, low + tall, *pane, toned(glass, rng.uniform(0.7, 1.3)))

    def end_wall() -> None:
        canvas.panel(x, x + side * 12, 0, height, z0, toned(wall, end), BUILDING)
        if pitched:
            points = (x, height, z0), (*ridge, z0), (x + side * 9, ridge[1], z0), (x + side * 12, height, z0)
            canvas.fill(points, toned(wall, end), BUILDING)

    canvas.later(x, z1 + 0.1, end_wall)
    for index in range(bays):
        canvas.later(x, z0 + (index + 1) * step, partial(bay, z0 + index * step))


def put_park(canvas: Canvas, x: float, side: int, z0: float, z1: float) -> None:
    """Trees and bushes on grass."""
    rng = canvas.rng
    for z in np.arange(z0 + 1, z1, 5.0).tolist():
        for offset in (rng.uniform(1, 6), rng.uniform(7, 22)):
            put_tree(canvas, x + side * offset, z + rng.uniform(-2, 2), rng.uniform(0.7, 1.3))


def put_wall(canvas: Canvas, x: float, side: int, z0: float, z1: float) -> None:
    """A wall with trees or houses behind it."""
    rng, height, colour = canvas.rng, canvas.rng.uniform(1.6, 3.2), canvas.pick("wall")
    put_backdrop(canvas, x, side, z0, z1)
    front = canvas.facing(-side, 0, 0)

    def stretch(near: float, far: float, tone: float) -> None:
        canvas.along(x, 0, height, near, far, toned(colour, front * tone), WALL)
        canvas.along(x, height - 0.15, height, near, far, toned(colour, 1.25 * front))
        canvas.along(x, 0, height, near, near + 0.1, toned(colour, 0.7 * front))

    for z in np.arange(z0, z1, 3.0).tolist():
        canvas.later(x, z + 3, partial(stretch, z, z + 3, rng.uniform(0.93, 1.05)))


def put_fence(canvas: Canvas, x: float, side: int, z0: float, z1: float) -> None:
    """A fence one can see through; as in Cityscapes its gaps are fence too."""
    rng, height, colour = canvas.rng, canvas.rng.uniform(1.1, 2.0), canvas.pick("fence")
    put_backdrop(canvas, x, side, z0, z1)
    bars = rng.uniform(0.35, 0.8)

    def stretch(near: float) -> None:
        canvas.along(x, 0, height, near, near + 2.5, colour, FENCE, alpha=70)
        for low in (0.15, height - 0.15):
            canvas.along(x, low, low + 0.12, near, near + 2.5, colour)
        for z in np.arange(near, near + 2.5, bars if near < 30 else 2.5).tolist():
            canvas.along(x, 0, height, z, z + 0.14, colour)

    for z in np.arange(z0, z1, 2.5).tolist():
        canvas.later(x, z + 2.5, partial(stretch, z))


def put_backdrop(canvas: Canvas, x: float, side: int, z0: float, z1: float) -> None:
    """What shows above a wall or through a fence."""
    if canvas.rng.random() < 0.5:
        put_houses(canvas, x + side * canvas.rng.uniform(3, 8), side, z0, z1)
    else:
        put_park(canvas, x + side, side, z0, z1)


def put_tree(canvas: Canvas, x: float, z: float, size: float) -> None:
    if z < 3.5:
        return
    kinds = {"palm": draw_palm, "ball": draw_ball, "crown": draw_crown, "bush": draw_bush}
    kind = canvas.world.trees[canvas.rng.integers(len(canvas.world.trees))]
    canvas.shadow([(x - size, z - size), (x + size, z - size), (x + size, z + size), (x - size, z + size)], 3 * size)
    canvas.later(x, z, partial(kinds[kind], canvas, x, z, size))


def draw_palm(canvas: Canvas, x: float, z: float, size: float) -> None:
    top, reach, colour = 6.5 * size, 2.4 * size, canvas.pick("leaf")
    canvas.panel(x - 0.17 * size, x + 0.17 * size, 0, top, z, canvas.pick("trunk"), VEGETATION)
    for frond, angle in enumerate(np.linspace(0, math.pi, 9).tolist()):
        across, up = reach * math.cos(angle), reach * math.sin(angle)
        knee_x, knee_y, tip_y = x + 0.55 * across, top + 0.6 * up + 0.12 * reach, top + 0.75 * up - 0.45 * reach
        points = [(x, top, z), (knee_x, knee_y + 0.25, z), (x + across, tip_y, z), (knee_x, knee_y - 0.2, z)]
        canvas.fill(points, toned(colour, 0.8 + 0.06 * (frond % 4)), VEGETATION)


def draw_ball(canvas: Canvas, x: float, z: float, size: float) -> None:
    colour = canvas.pick("leaf")
    canvas.panel(x - 0.16, x + 0.16, 0, 2.5 * size, z, canvas.pick("trunk"), VEGETATION)
    canvas.disc(x, 3.9 * size, z, 1.8 * size, 1.8 * size, toned(colour, 0.8), VEGETATION)
    canvas.disc(x - 0.2 * size, 4.2 * size, z, 1.35 * size, 1.3 * size, colour, VEGETATION)


def draw_crown(canvas: Canvas, x: float, z: float, size: float) -> None:
    canvas.panel(x - 0.16 * size, x + 0.16 * size, 0, 3.5 * size, z, canvas.pick("trunk"), VEGETATION)
    heap_leaves(canvas, x, 5.2 * size, z, 2.5 * size, 2.6 * size, 22)


def draw_bush(canvas: Canvas, x: float, z: float, size: float) -> None:
    heap_leaves(canvas, x, 0.7 * size, z, 1.2 * size, 0.8 * size, 6)


def heap_leaves(canvas: Canvas, x: float, y: float, z: float, rx: float, ry: float, count: int) -> None:
    """Many leafy discs, light above and dark below."""
    rng, colour = canvas.rng, canvas.pick("leaf")
    canvas.disc(x, y, z, rx, ry, toned(colour, 0.8), VEGETATION)
    for dx, dy in sorted(rng.uniform(-0.8, 0.8, (count if z < 45 else 3, 2)).tolist(), key=lambda spot: spot[1]):
        size = rng.uniform(0.3, 0.5)
        canvas.disc(x + dx * rx, y + dy * ry, z, size * rx, size * ry, toned(colour, 0.95 + 0.22 * dy), VEGETATION)


# --- things on the street


def put_vehicle(canvas: Canvas, street: Street, shape: Shape, paint: str, x: float, z: float, heading: float) -> None:
    """Queue a vehicle with its middle at (x, z); heading 0 drives away, pi comes towards the camera."""
    half = shape.length / 2
    if z - half * abs(math.cos(heading)) < 3 or not street.take(x, z, half):
        return
    sin, cos = math.sin(heading), math.cos(heading)
    spots = ((-half, -1), (half, -1), (half, 1), (-half, 1))
    corners = [(x + along * sin + a * cos, z + along * cos - a * sin) for along, a in spots]
    canvas.shadow(corners, max(y for _, y in shape.outline))
    canvas.later(x, z, partial(draw_vehicle, canvas, shape, canvas.pick(paint), x, z, sin, cos))


def draw_vehicle(canvas: Canvas, shape: Shape, colour: Colour, x: float, z: float, sin: float, cos: float) -> None:
    """Draw the outline's edges as strips across the vehicle, far ones first, then the side that is seen."""
    outline, train_id, r = shape.outline, shape.train_id, shape.radius

    def place(along: float, y: float, across: float) -> Point:
        a = across * shape.half_width * (1 - shape.taper * min(max((y - 0.9) / 0.5, 0), 1.2))
        return x + along * sin + a * cos, y, z + along * cos - a * sin

    def strip(p, q, left: float, right: float, paint: Colour, label: int | None = None) -> None:
        canvas.fill([place(*p, left), place(*p, right), place(*q, right), place(*q, left)], paint, label)

    def wheels(across: float, size: float, paint: Colour, label: int | None = None) -> None:
        for middle in shape.wheels:
            canvas.fill([place(middle + size * r * c, r + size * r * s, across) for c, s in CIRCLE], paint, label)

    def end(low, high, lamps: Colour) -> None:
        (l0, y0), (l1, y1), share = low, high, min(1, 0.65 / math.dist(low, high))
        heights = (0.22 * share, 0.5 * share, 0.6 * share, 0.9 * share)
        bumper, plate, edge, top = ((l0 + h * (l1 - l0), y0 + h * (y1 - y0)) for h in heights)
        strip(low, bumper, -1, 1, (38, 38, 40))
        strip(bumper, plate, -0.28, 0.28, WHITE)
        for side in (-1, 1):
            strip(edge, top, 0.62 * side, 0.96 * side, lamps)

    wheels(-0.85, 1, BLACK, train_id)
    wheels(0.85, 1, BLACK, train_id)
    edges = [(p, q, index in shape.glass) for index, (p, q) in enumerate(pairwise(outline))]
    for p, q, glass in sorted(edges, key=lambda edge: -(edge[0][0] + edge[1][0]) * cos):
        along, up = (p[1] - q[1]) / math.dist(p, q), (q[0] - p[0]) / math.dist(p, q)  # the normal
        x1, y1, z1 = place(*p, 0)
        if along * (sin * x1 + cos * z1) + up * (y1 - canvas.eye) > 0:
            continue  # turned away from the eye
        bright = canvas.facing(along * sin, up, along * cos)
        strip(p, q, -1, 1, toned(colour, bright), train_id)
        if glass:
            strip(p, q, -0.86, 0.86, toned(GLASS, 1.2 * bright))
        elif p == outline[0]:
            end(p, q, (190, 30, 28))
        elif q == outline[-1]:
            end(q, p, (240, 238, 220))
    for side in (-1, 1):
        x1, _, z1 = place(0, 0, side)
        if side * (cos * x1 - sin * z1) > 0:
            continue
        bright = canvas.facing(side * cos, 0, -side * sin)
        canvas.fill([place(along, y, side) for along, y in outline], toned(colour, bright), train_id)
        rear, front, low, high = shape.window
        pane = (front - rear) / shape.panes
        for index in range(shape.panes):
            l0, l1 = rear + index * pane + 0.06, rear + (index + 1) * pane - 0.06
            lean = 0.3 if train_id == CAR and index == shape.panes - 1 else 0.0
            window = (l0, low), (l1 + lean, low), (l1, high), (l0, high)
            canvas.fill([place(along, y, side) for along, y in window], toned(GLASS, bright))
        wheels(1.01 * side, 1, BLACK, train_id)
        wheels(1.01 * side, 0.55, (120, 122, 126))


def put_traffic(canvas: Canvas, street: Street) -> None:
    """Vehicles in the lanes, across the junction and parked at the kerbs; the big and rare ones choose first."""
    rng, world = canvas.rng, canvas.world
    for name, shape in (("tram", world.tram), ("bus", world.bus), ("truck", world.truck)):
        for _ in range(rng.poisson(world.often[name])):
            drive(canvas, street, shape, name, 6 + shape.length / 2)
    for _ in range(rng.poisson(world.often["traffic"])):
        drive(canvas, street, world.cars[rng.integers(len(world.cars))], "car", 9.0)
    for side in (-1, 1):
        if abs(street.kerb[side] - street.middle) < street.lanes * world.lane + 1:
            continue  # no room to park
        for z in np.arange(4 + rng.uniform(0, 4), 75, 6.0).tolist():
            if rng.random() < world.often["parked"] and not street.crosses(z - 7, z + 4):
                shape = world.cars[rng.integers(len(world.cars))]
                turn = rng.normal(0, 0.02) + (math.pi if side < 0 else 0)
                put_vehicle(canvas, street, shape, "car", street.kerb[side] - side * 1.1, z, turn)


def drive(canvas: Canvas, street: Street, shape: Shape, paint: str, nearest: float) -> None:
    rng, lane = canvas.rng, canvas.world.lane
    if street.junction and rng.random() < 0.3:
        way = rng.choice([-1, 1])
        z = street.junction[0] + (0.3 if way > 0 else 0.7) * (street.junction[1] - street.junction[0])
        return put_vehicle(canvas, street, shape, paint, rng.uniform(-14, 14), z, way * math.pi / 2)
    way = rng.choice([-1, 1])
    x = street.middle + way * (rng.integers(street.lanes) + 0.5) * lane
    z = nearest + rng.uniform(0, 1) ** 1.5 * 45
    if shape.train_id == TRAIN:
        lay_rails(canvas, x)
    put_vehicle(canvas, street, shape, paint, x + rng.normal(0, 0.05), z, 0.0 if way > 0 else math.pi)


def lay_rails(canvas: Canvas, x: float) -> None:
    cuts = np.geomspace(1.5, FAR, 16).tolist()
    for near, far in pairwise(cuts):
        for rail in (x - 0.72, x + 0.72):
            canvas.floor(rail - 0.06, rail + 0.06, near, far, (52, 50, 50))


def put_furniture(canvas: Canvas, street: Street) -> None:
    """Lamps, signs, traffic lights, bins and trees along the kerbs."""
    rng, often = canvas.rng, canvas.world.often
    for name, draw in (("lamps", draw_lamp), ("signs", draw_sign), ("signals", draw_signal), ("bins", draw_bin)):
        for _ in range(rng.poisson(often[name])):
            side = rng.choice([-1, 1])
            x, z = street.kerb[side] + side * rng.uniform(0.35, 0.8), 5.5 + 30 * rng.uniform(0, 1) ** 1.3
            if name == "signals" and street.junction:
                z = street.junction[0] - 1.0
            canvas.later(x, z, partial(draw, canvas, x, z, side))
    for side in (-1, 1):
        if rng.random() < 0.5:
            for z in np.arange(6 + rng.uniform(0, 6), 110, 8.0).tolist():
                if rng.random() < 2 * often["trees"] and not street.crosses(z - 2, z + 2):
                    put_tree(canvas, street.kerb[side] + side * 1.0, z, rng.uniform(0.75, 1.1))


def draw_pole(canvas: Canvas, x: float, z: float, height: float, half: float = 0.07) -> None:
    canvas.panel(x - half, x + half, 0, height, z, canvas.pick("pole"), POLE)


def draw_lamp(canvas: Canvas, x: float, z: float, side: int) -> None:
    height, reach = canvas.rng.uniform(5.5, 8), canvas.rng.uniform(0.8, 2)
    draw_pole(canvas, x, z, height, 0.09)
    canvas.panel(x, x - side * reach, height - 0.12, height, z, canvas.pick("pole"), POLE)
    canvas.panel(x - side * (reach - 0.5), x - side * reach, height - 0.25, height, z, WHITE, POLE)


def draw_sign(canvas: Canvas, x: float, z: float, side: int) -> None:
    rng, y, r = canvas.rng, canvas.rng.uniform(2.1, 2.8), canvas.rng.uniform(0.32, 0.5)
    draw_pole(canvas, x, z, y + r)
    colour, corners, turn = canvas.pick("sign"), int(rng.choice([3, 4, 4, 12])), rng.choice([0, 1])
    for size, paint, train_id in ((r, colour, SIGN), (0.6 * r, WHITE, None)):
        angles = [math.pi * (2 * k / corners + 0.5 + turn / corners) for k in range(corners)]
        canvas.fill([(x + size * math.cos(a), y + size * math.sin(a), z) for a in angles], paint, train_id)


def draw_signal(canvas: Canvas, x: float, z: float, side: int) -> None:
    """A traffic light on a post, in the game also hanging over the road."""
    low, lit = canvas.rng.uniform(2.2, 2.8), int(canvas.rng.integers(3))
    spots = [(x, low)]
    if canvas.world is GAME:
        spots.append((x - side * 3.2, 4.8))
        draw_pole(canvas, x, z, 5.9)
        canvas.panel(x, x - side * 3.4, 5.75, 5.9, z, canvas.pick("pole"), POLE)
    else:
        draw_pole(canvas, x, z, low + 0.2)
    for u, v in spots:
        canvas.panel(u - 0.22, u + 0.22, v, v + 1.1, z, canvas.pick("signal"), LIGHT)
        for index, colour in enumerate(((60, 210, 110), (250, 180, 40), (240, 50, 40))):
            canvas.disc(u, v + 0.22 + 0.33 * index, z, 0.13, 0.13, colour if index == lit else (40, 40, 36))


def draw_bin(canvas: Canvas, x: float, z: float, side: int) -> None:
    """Something none of the 19 classes names."""
    x += side * 0.6
    canvas.panel(x - 0.3, x + 0.3, 0, 1.0, z, (60, 70, 66), VOID)
    canvas.panel(x - 0.34, x + 0.34, 1.0, 1.12, z, (40, 46, 44), VOID)


# --- people and two-wheelers


def put_people(canvas: Canvas, street: Street) -> None:
    """Walkers on the sidewalks and before the junction, alone or in company."""
    rng, often = canvas.rng, canvas.world.often
    for _ in range(rng.poisson(often["people"])):
        side = rng.choice([-1, 1])
        z, share = 6 + 34 * rng.uniform(0, 1) ** 1.4, rng.uniform(0.2, 0.9)
        x = street.kerb[side] + share * (street.walk[side] - street.kerb[side])
        if street.junction and rng.random() < 0.35:
            x, z = rng.uniform(street.kerb[-1], street.kerb[1]), street.junction[0] - rng.uniform(1, 4)
        for _ in range(1 + rng.poisson(0.5)):
            canvas.shadow([(x - 0.3, z - 0.2), (x + 0.3, z - 0.2), (x + 0.3, z + 0.2), (x - 0.3, z + 0.2)], 1.5)
            canvas.later(x, z, partial(draw_walker, canvas, x, z))
            x, z = x + rng.choice([-0.7, 0.7]), z + rng.uniform(0, 0.8)


def put_cycles(canvas: Canvas, street: Street) -> None:
    """Riders on the road, bicycles and motorcycles parked at the kerb."""
    rng, often = canvas.rng, canvas.world.often
    kinds = {"cyclists": BICYCLE, "bikers": MOTORCYCLE, "bicycles": BICYCLE, "motorcycles": MOTORCYCLE}
    for name, train_id in kinds.items():
        ridden = name in ("cyclists", "bikers")
        for _ in range(rng.poisson(often[name])):
            side = rng.choice([-1, 1])
            x, z = street.kerb[side] + side * (-0.7 if ridden else 0.6), 6 + 24 * rng.uniform(0, 1) ** 1.4
            if ridden and not street.take(x, z, 1):
                x = street.middle
            for _ in range(1 if ridden else 1 + rng.poisson(1.0)):
                turn = rng.uniform(0.4, 1) * rng.choice([-1, 1])
                canvas.later(x, z, partial(draw_cycle, canvas, x, z, turn, train_id, ridden))
                z += 0.9


def draw_walker(canvas: Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    size, stride, build = rng.uniform(0.86, 1.04), rng.uniform(-0.28, 0.28), rng.uniform(0.9, 1.25)
    coat, legs, skin = canvas.pick("cloth"), canvas.pick("cloth"), toned(SKIN, rng.uniform(0.5, 1.1))

    def part(points, colour: Colour) -> None:
        canvas.fill([(x + build * size * across, size * y, z) for across, y in points], colour, PERSON)

    for step, tone in ((stride, 0.85), (-stride, 1.0)):
        part(((-0.13, 0.9), (0.13, 0.9), (step + 0.11, 0), (step - 0.09, 0)), toned(legs, tone))
    for arm, hand in ((-1, -0.25 - stride / 2), (1, 0.25 - stride / 2)):
        part(((0.18 * arm, 1.45), (0.27 * arm, 1.4), (hand + 0.05, 0.85), (hand - 0.05, 0.85)), toned(coat, 0.8))
    part(((-0.2, 0.82), (0.2, 0.82), (0.23, 1.42), (0.1, 1.52), (-0.1, 1.52), (-0.23, 1.42)), coat)
    part([(0.12 * c, 1.64 + 0.15 * s) for c, s in CIRCLE], skin)
    part([(0.125 * c, 1.69 + 0.11 * abs(s)) for c, s in CIRCLE[:7]], toned(legs, 0.6))


FRAME = (((-0.52, 0.35), (-0.15, 0.85)), ((-0.15, 0.85), (0.4, 0.85)), ((-0.05, 0.35), (0.4, 0.85)),
         ((-0.15, 0.9), (-0.05, 0.35)), ((0.52, 0.35), (0.38, 1.0)))  # fmt: skip
MOTOR = ((-0.85, 0.6), (-0.75, 0.95), (0.0, 0.82), (0.4, 1.08), (0.68, 0.75), (0.4, 0.3), (-0.4, 0.28))


def draw_cycle(canvas: Canvas, x: float, z: float, turn: float, train_id: int, ridden: bool) -> None:
    """A bicycle or motorcycle, `turn` from -1 to 1 being how much of its side shows, and its rider if ridden."""
    motor = train_id == MOTORCYCLE
    paint = canvas.pick("car") if motor else canvas.pick("cloth")
    base, radius, tyre = (0.68, 0.32, 0.1) if motor else (0.52, 0.35, 0.05)

    def part(points, colour: Colour, label: int | None = None) -> None:
        canvas.fill([(x + turn * along, y, z) for along, y in points], colour, label)

    for centre in (-base, base):
        part([(centre + (radius + tyre) * c, radius + (radius + tyre) * s) for c, s in CIRCLE], BLACK, train_id)
        part([(centre + 0.72 * radius * c, radius + 0.72 * radius * s) for c, s in CIRCLE], (110, 110, 110))
    if motor:
        part(MOTOR, paint, train_id)
    else:
        for (l0, y0), (l1, y1) in FRAME:
            part(((l0 - 0.04, y0), (l0 + 0.04, y0), (l1 + 0.04, y1), (l1 - 0.04, y1)), paint, train_id)
    part(((0.3, 1.0), (0.45, 1.0), (0.45, 1.08), (0.3, 1.08)), BLACK, train_id)
    if ridden:
        coat, legs, skin = canvas.pick("cloth"), canvas.pick("cloth"), toned(SKIN, canvas.rng.uniform(0.5, 1.1))
        part(((-0.3, 0.88), (-0.1, 1.0), (0.3, 0.72), (0.12, 0.15), (-0.02, 0.15), (0.08, 0.62)), legs, RIDER)
        part(((-0.34, 0.85), (-0.02, 0.9), (0.2, 1.42), (0.0, 1.52), (-0.2, 1.35)), coat, RIDER)
        part(((0.08, 1.42), (0.18, 1.36), (0.42, 1.06), (0.34, 1.0)), toned(coat, 0.8), RIDER)
        part([(0.16 + 0.14 * c, 1.66 + 0.17 * s) for c, s in CIRCLE], BLACK if motor else skin, RIDER)


# --- lens and film


@lru_cache(maxsize=1)
def texture_tiles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wrapping noise of unit deviation for ground, masonry and leaves, (256, 256) each; 16 texels are a metre."""
    rng = np.random.default_rng(0)

    def noise(*sigma: float) -> np.ndarray:
        field = gaussian_filter(rng.normal(size=(256, 256)), sigma, mode="wrap")
        return (field / field.std()).astype(np.float32)

    ground = 0.6 * noise(0.5, 0.5) + 0.5 * noise(3, 3) + 0.8 * noise(14, 14)
    rows, columns = np.mgrid[:256, :256]
    joints = (rows % 8 < 1) | ((columns + 8 * (rows // 8 % 2)) % 16 < 1)
    masonry = 0.5 * noise(0.7, 1.5) + 0.6 * noise(12, 8) - 1.2 * joints
    return ground, masonry, 0.6 * noise(0.8, 0.8) + 0.6 * noise(2.5, 2.5)


def add_texture(picture: np.ndarray, label: np.ndarray, canvas: Canvas, street: Street) -> np.ndarray:
    """Roughen asphalt, grass, masonry and leaves; `picture` is float32 (H, W, 3), `label` (H, W)."""
    ground, masonry, foliage = texture_tiles()
    height, width = label.shape
    u = np.arange(width, dtype=np.float32)[None] * 2 - canvas.centre
    v = np.arange(height, dtype=np.float32)[:, None] * 2 - canvas.horizon

    def sample(tile: np.ndarray, down: np.ndarray, right: np.ndarray, depth: np.ndarray) -> np.ndarray:
        fade = np.minimum(1, 14 / depth)  # far away the grain is finer than a pixel
        return fade * tile[(16 * down).astype(np.int32) % 256, (16 * right).astype(np.int32) % 256]

    depth = canvas.focal * canvas.eye / np.maximum(v, 2)
    rough = np.array([0.09, 0.08, 0, 0, 0.05, 0, 0, 0, 0, 0.2] + [0] * 9, np.float32)
    amount = rough[np.minimum(label, 18)] * sample(ground, depth, u * depth / canvas.focal, depth)
    wall = np.where(u > 0, street.walk[1], -street.walk[-1]).astype(np.float32)
    depth = canvas.focal * wall / np.maximum(np.abs(u), 4)
    upright = np.isin(label, (BUILDING, WALL))
    amount += 0.09 * upright * sample(masonry, canvas.eye - v * depth / canvas.focal, depth, depth)
    shift = canvas.rng.integers(256, size=2)
    leaves = foliage[(np.arange(height)[:, None] + shift[0]) % 256, (np.arange(width) + shift[1]) % 256]
    amount += 0.14 * (label == VEGETATION) * leaves
    return picture * (1 + canvas.light.texture * amount[..., None])


def develop(canvas: Canvas, street: Street) -> tuple[np.ndarray, np.ndarray]:
    """Bring picture and labels to their size and put the picture through lens and film."""
    rng, light = canvas.rng, canvas.light
    label = np.asarray(canvas.label)[::2, ::2].copy()
    picture = np.asarray(canvas.image.reduce(2), np.float32)
    if light.texture:
        picture = add_texture(picture, label, canvas, street)
    if light.blur:
        picture = gaussian_filter(picture, (light.blur, light.blur, 0))
    height, width = label.shape
    y, x = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[None, :, None]
    picture = picture / 255 * np.float32(light.gain) * (1 - light.vignette * (x * x + y * y) / 2).astype(np.float32)
    picture = 255 * np.clip(picture, 0, 1) ** np.float32(light.gamma)
    if light.noise:
        picture += light.noise * rng.standard_normal(picture.shape, np.float32)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), label


def draw_bonnet(canvas: Canvas) -> None:
    """The own car at the lower edge: void."""
    colour, top = canvas.pick("car"), canvas.height * canvas.rng.uniform(0.9, 0.95)
    box = (-0.1 * canvas.width, top, 1.1 * canvas.width, 1.5 * canvas.height)
    canvas.pen.ellipse(box, fill=colour)
    canvas.pen.arc(box, 180, 360, fill=toned(colour, 1.4), width=3)
    canvas.label_pen.ellipse(box, fill=VOID)


def render(domain: str, seed: int, index: int, height: int = 128, width: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene: the same (domain, seed, index) and size always give the same picture.

    Args:
        domain: "game" (source) or "camera" (target).
        seed, index: not negative; the scene's number within the set of that seed.

    Returns:
        The picture, uint8 RGB (height, width, 3), and its labels, uint8 (height, width): train ids 0..18 or 255 (void).

    Raises:
        SdaError: the domain is unknown.
    """
    if domain not in WORLDS:
        raise SdaError(f"streets has no domain {domain!r}; choose one of {', '.join(WORLDS)}")
    world = WORLDS[domain]
    canvas = Canvas(world, np.random.default_rng((world.code, seed, index)), height, width)
    street = plan(canvas)
    draw_sky(canvas)
    draw_ground(canvas, street)
    for put in (line_street, put_traffic, put_furniture, put_people, put_cycles):  # casts shadows now, stands up later
        put(canvas, street)
    canvas.draw_waiting()
    if canvas.rng.random() < world.bonnet:
        draw_bonnet(canvas)
    return develop(canvas, street)


# --- on disk

Job = tuple[str, int, str, str]  # domain, index, where the image goes and where its label, relative to the root


def jobs(game: int, camera_train: int, camera_val: int) -> Iterator[Job]:
    for index in range(game):
        yield "game", index, f"game/images/{index + 1:05d}.png", f"game/labels/{index + 1:05d}.png"
    for split, count, cities, first in (
        ("train", camera_train, TRAIN_CITIES, 0),
        ("val", camera_val, VAL_CITIES, VAL_OFFSET),
    ):
        for index in range(count):
            city = cities[index % len(cities)]
            stem = f"{split}/{city}/{city}_{index // len(cities):06d}_000019"
            image, label = f"camera/leftImg8bit/{stem}_leftImg8bit.png", f"camera/gtFine/{stem}_gtFine_labelIds.png"
            yield "camera", first + index, image, label


def draw_jobs(folder: Path, seed: int, batch: list[Job]) -> int:
    """Render and save a batch of scenes; returns how many."""
    to_id = np.zeros(256, np.uint8)
    to_id[:19] = LABEL_IDS
    palette = np.zeros((256, 3), np.uint8)
    palette[list(LABEL_IDS)] = COLOURS
    for domain, index, image_path, label_path in batch:
        image, label = render(domain, seed, index)
        picture = Image.fromarray(to_id[label])
        if domain == "game":  # as in GTA5: the index is the id, the palette shows the colour
            picture.putpalette(palette.tobytes())
        Image.fromarray(image).save(folder / image_path, compress_level=3)
        picture.save(folder / label_path, compress_level=3)
    return len(batch)


def write(
    root: Path,
    seed: int = 0,
    game: int = 320,
    camera_train: int = 320,
    camera_val: int = 60,
    progress: Callable[[int], None] | None = None,
    processes: int | None = None,
) -> None:
    """Write the set: `root`/game as GTA5 lays it out, `root`/camera as Cityscapes does. All of it or nothing.

    Args:
        root: a folder that does not exist, is empty, or holds this very set (then nothing happens).
        game, camera_train, camera_val: how many pictures of each.
        progress: called with the number of pictures done so far.
        processes: how many draw at once; as many as there are cores by default.

    Raises:
        SdaError: `root` holds something else (it is left as it is), or a number is negative.
    """
    if min(seed, game, camera_train, camera_val) < 0:
        raise SdaError(f"streets: seed and counts cannot be negative: {seed}, {game}, {camera_train}, {camera_val}")
    root = Path(root).resolve()
    wanted = {"streets": VERSION, "seed": seed, "game": game, "camera_train": camera_train, "camera_val": camera_val}
    if holds(root, wanted):
        return
    part = root.with_name(f".{root.name}.{os.getpid()}.part")
    try:
        todo = list(jobs(game, camera_train, camera_val))
        for folder in {(part / path).parent for _, _, *paths in todo for path in paths} | {part}:
            folder.mkdir(parents=True, exist_ok=True)
        draw_all(part, seed, todo, progress or (lambda done: None), processes or os.cpu_count() or 1)
        (part / "streets.json").write_text(json.dumps(wanted, indent=1) + "\n")
        part.replace(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def holds(root: Path, wanted: dict[str, int]) -> bool:
    """Whether `root` is the wanted set already; False if there is room for it, an error if not."""
    if not root.exists() or root.is_dir() and not any(root.iterdir()):
        return False
    note = root / "streets.json"
    try:
        found = json.loads(note.read_text()) if note.is_file() else "no streets.json"
    except ValueError:
        found = "a streets.json that is not JSON"
    if found != wanted:
        raise SdaError(
            f"{root} is not the set asked for: expected {wanted}, found {found}; "
            "nothing was changed: name another folder, or remove this one yourself"
        )
    return True


def draw_all(folder: Path, seed: int, todo: list[Job], progress: Callable[[int], None], processes: int) -> None:
    batches, done = [todo[start : start + 8] for start in range(0, len(todo), 8)], 0
    if processes == 1 or len(batches) < 2:
        for batch in batches:
            done += draw_jobs(folder, seed, batch)
            progress(done)
        return
    # spawn, not fork: the caller may have threads or a GPU in use
    with ProcessPoolExecutor(min(processes, len(batches)), multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(draw_jobs, folder, seed, batch) for batch in batches]):
                done += future.result()
                progress(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
