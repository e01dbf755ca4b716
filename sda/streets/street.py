"""The plan of a street, and everything behind the objects: ground, sky and skyline."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from sda.streets.canvas import WHITE, Canvas, blend, toned
from sda.streets.labels import BUILDING, ROAD, SIDEWALK, TERRAIN, VEGETATION

FAR = 150.0  # metres; the street ends and the skyline begins here


@dataclass
class Street:
    """The plan of one scene, seen from above. Sides are -1 (left) and 1 (right)."""

    middle: float
    lanes: int
    kerb: dict[int, float]
    walk: dict[int, float]  # the far side of the sidewalk, where houses or gardens begin
    verge: dict[int, float]  # width of the strip of grass at the kerb
    junction: tuple[float, float] | None
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # x, z and half length of each object

    def crosses(self, z0: float, z1: float) -> bool:
        """Return whether a stretch overlaps the junction."""
        return self.junction is not None and z0 < self.junction[1] and z1 > self.junction[0]

    def take(self, x: float, z: float, half: float) -> bool:
        """Reserve a place for an object. Return False if it is taken."""
        if any(abs(x - x1) < 1.9 and abs(z - z1) < half + half1 + 0.6 for x1, z1, half1 in self.taken):
            return False
        self.taken.append((x, z, half))
        return True


def plan(canvas: Canvas) -> Street:
    """Return a random plan."""
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
    """Draw a gradient, some clouds, and a skyline of houses and trees."""
    rng, (top, low) = canvas.rng, canvas.light.sky
    for row in range(0, int(canvas.horizon) + 2, 2):
        share = min(1, row / canvas.horizon)
        canvas.pen.rectangle((0, row, canvas.width, row + 1), fill=blend(top, low, share))
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
    """Draw grass, sidewalks, kerbs, road and markings, in slices so that haze and bends follow the depth."""
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
