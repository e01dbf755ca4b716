"""Objects along the street: houses, parks, walls and fences; trees; lamps, signs, traffic lights and bins.

`put_*` chooses places, draws shadows and queues objects; `draw_*` draws one object, or queues its parts.
"""

import math
from functools import partial

import numpy as np

from sda.streets.canvas import WHITE, Canvas, toned
from sda.streets.labels import BUILDING, FENCE, LIGHT, POLE, SIGN, VEGETATION, VOID, WALL
from sda.streets.street import FAR, Street
from sda.streets.worlds import GAME

# --- both sides of the street


def line_street(canvas: Canvas, street: Street) -> None:
    """Divide both sides into stretches and put houses, a park, a wall or a fence along each."""
    rng, linings = canvas.rng, canvas.world.linings
    draw = {"houses": put_houses, "park": put_park, "wall": put_wall, "fence": put_fence}
    for side in (-1, 1):
        z = rng.uniform(1, 3)
        while z < FAR - 10:
            kind = list(linings)[rng.choice(len(linings), p=list(linings.values()))]
            end = min(z + rng.uniform(15, 50), FAR)
            if street.junction and z < street.junction[0] - 6 < end:
                end = street.junction[0] - 3
            if street.junction and street.crosses(z, end):
                z = street.junction[1] + 3
                continue
            draw[kind](canvas, street.walk[side], side, z, end)
            z = end


def put_houses(canvas: Canvas, x: float, side: int, z0: float, z1: float) -> None:
    """Put a row of houses, some with gaps between them."""
    rng, world = canvas.rng, canvas.world
    while z0 < z1 - 3:
        end = min(z0 + rng.uniform(8, 20), z1)
        storeys = int(rng.integers(world.storeys[0], world.storeys[1] + 1))
        draw_house(canvas, x + side * rng.uniform(0, 0.6), side, z0, end, storeys, rng.random() < world.pitched)
        z0 = end + (rng.uniform(2, 6) if rng.random() < 0.15 else 0.0)


def draw_house(canvas: Canvas, x: float, side: int, z0: float, z1: float, storeys: int, pitched: bool) -> None:
    """Queue a house bay by bay, so that objects in front of it are drawn after it."""
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
    """Put trees and bushes on grass."""
    rng = canvas.rng
    for z in np.arange(z0 + 1, z1, 5.0).tolist():
        for offset in (rng.uniform(1, 6), rng.uniform(7, 22)):
            put_tree(canvas, x + side * offset, z + rng.uniform(-2, 2), rng.uniform(0.7, 1.3))


def put_wall(canvas: Canvas, x: float, side: int, z0: float, z1: float) -> None:
    """Put a wall with trees or houses behind it."""
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
    """Put a transparent fence, whose gaps are labelled fence, as in Cityscapes."""
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
    """Put houses or a park behind a wall or a fence."""
    if canvas.rng.random() < 0.5:
        put_houses(canvas, x + side * canvas.rng.uniform(3, 8), side, z0, z1)
    else:
        put_park(canvas, x + side, side, z0, z1)


# --- trees


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
    """Draw many discs of leaves, light above and dark below."""
    rng, colour = canvas.rng, canvas.pick("leaf")
    canvas.disc(x, y, z, rx, ry, toned(colour, 0.8), VEGETATION)
    for dx, dy in sorted(rng.uniform(-0.8, 0.8, (count if z < 45 else 3, 2)).tolist(), key=lambda spot: spot[1]):
        size = rng.uniform(0.3, 0.5)
        canvas.disc(x + dx * rx, y + dy * ry, z, size * rx, size * ry, toned(colour, 0.95 + 0.22 * dy), VEGETATION)


# --- furniture


def put_furniture(canvas: Canvas, street: Street) -> None:
    """Put lamps, signs, traffic lights, bins and trees along the kerbs."""
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
    """Draw a traffic light on a post and, in the game world, another one over the road."""
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
    """Draw a bin, an object outside the 19 classes."""
    x += side * 0.6
    canvas.panel(x - 0.3, x + 0.3, 0, 1.0, z, (60, 70, 66), VOID)
    canvas.panel(x - 0.34, x + 0.34, 1.0, 1.12, z, (40, 46, 44), VOID)
