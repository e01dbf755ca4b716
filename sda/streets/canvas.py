"""The camera, and a canvas that draws polygons into an image and its labels.

World coordinates are metres: x to the right, y up from the ground, z forward; the camera is at x = z = 0.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from sda.streets.labels import SKY
from sda.streets.worlds import Colour, Rng, World

NEAR = 1.0  # metres; nearer points are drawn at this distance
CIRCLE = tuple((math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 12, endpoint=False).tolist())
BLACK, WHITE = (18, 18, 20), (235, 235, 230)
Point = tuple[float, float, float]


class Canvas:
    """An image and its labels at twice the requested size, drawn through one camera with the same polygons."""

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
        """Return one of this world's colours for a paint, slightly varied."""
        choices = self.world.paint[paint]
        return toned(choices[self.rng.integers(len(choices))], self.rng.uniform(0.9, 1.1))

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Return the pixel position (right, down) of a point."""
        z = max(z, NEAR)
        scale = self.focal / z
        return self.centre + scale * x + self.focal * self.curve * z, self.horizon + scale * (self.eye - y)

    def fill(self, points: Sequence[Point], colour: Colour, train_id: int | None = None, alpha: int = 255) -> None:
        """Fill a polygon of (x, y, z) points, faded by haze. Without a train id, leave the labels unchanged."""
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
        """Return the brightness of a surface with this unit normal."""
        sun = self.light.sun
        direct = max(0.0, x * sun[0] + y * sun[1] + z * sun[2])
        return 1 - 0.55 * self.light.strength + self.light.strength * direct - 0.12 * (1 - y) * (1 - direct)

    def shadow(self, corners, height: float) -> None:
        """Draw the shadow of an object `height` tall with footprint `corners`, (x, z) each; soft shadows are faint layers."""
        sun, layers = self.light.sun, self.light.softness
        reach = height * self.light.strength / max(sun[1], 0.3)
        x0, z0 = np.mean(corners, axis=0).tolist()
        for layer in range(layers):
            for share in (0, 0.5, 1):  # of the way from the foot to the shadow of the top
                grow, x1, z1 = 1 + 0.12 * layer, x0 - share * reach * sun[0], z0 - share * reach * sun[2]
                self.fill([(x1 + grow * (x - x0), 0, z1 + grow * (z - z0)) for x, z in corners], BLACK, None, 70 // layers)

    def later(self, x: float, z: float, draw: Callable[[], None]) -> None:
        """Queue a drawing function, to be called after those of everything farther away."""
        self.waiting.append((math.hypot(x, z), draw))

    def draw_waiting(self) -> None:
        """Call the queued drawing functions, the farthest first."""
        for _, draw in sorted(self.waiting, key=lambda entry: -entry[0]):
            draw()

    def disc(self, x, y, z, rx, ry, colour: Colour, train_id: int | None = None) -> None:
        """Draw an ellipse that faces the camera."""
        self.fill([(x + rx * c, y + ry * s, z) for c, s in CIRCLE], colour, train_id)

    def panel(self, x0, x1, y0, y1, z, colour: Colour, train_id: int | None = None) -> None:
        """Draw an upright rectangle that faces the camera."""
        self.fill([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], colour, train_id)

    def along(self, x, y0, y1, z0, z1, colour: Colour, train_id: int | None = None, alpha: int = 255) -> None:
        """Draw an upright rectangle along the street."""
        self.fill([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)], colour, train_id, alpha)

    def floor(self, x0, x1, z0, z1, colour: Colour, train_id: int | None = None, alpha: int = 255) -> None:
        """Draw a rectangle on the ground."""
        self.fill([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], colour, train_id, alpha)


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """Mix two colours: `a` at share 0, `b` at share 1."""
    red, green, blue = (int(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def toned(colour: Colour, factor: float) -> Colour:
    """Return a colour made lighter (factor > 1) or darker."""
    red, green, blue = (min(255, int(c * factor)) for c in colour)
    return red, green, blue
