"""Objects on the street: vehicles, pedestrians, and two-wheelers with and without riders.

`put_*` chooses places, draws shadows and queues objects; `draw_*` draws one object.
"""

import math
from functools import partial
from itertools import pairwise

import numpy as np

from sda.streets.canvas import BLACK, CIRCLE, WHITE, Canvas, Point, toned
from sda.streets.labels import BICYCLE, CAR, MOTORCYCLE, PERSON, RIDER, TRAIN
from sda.streets.street import FAR, Street
from sda.streets.worlds import Colour, Shape

Spot = tuple[float, float]  # along the vehicle, up
GLASS, SKIN = (44, 56, 68), (205, 160, 130)

# --- vehicles


def put_traffic(canvas: Canvas, street: Street) -> None:
    """Put vehicles in the lanes, on the junction and at the kerbs. Large and rare ones are placed first."""
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
    """Put a vehicle in a lane, or on the junction across the street."""
    rng, lane = canvas.rng, canvas.world.lane
    if street.junction and rng.random() < 0.3:
        way = rng.choice([-1, 1])
        z = street.junction[0] + (0.3 if way > 0 else 0.7) * (street.junction[1] - street.junction[0])
        put_vehicle(canvas, street, shape, paint, rng.uniform(-14, 14), z, way * math.pi / 2)
        return
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


def put_vehicle(canvas: Canvas, street: Street, shape: Shape, paint: str, x: float, z: float, heading: float) -> None:
    """Queue a vehicle with its centre at (x, z); heading 0 drives away from the camera, pi towards it."""
    half = shape.length / 2
    if z - half * abs(math.cos(heading)) < 3 or not street.take(x, z, half):
        return
    sin, cos = math.sin(heading), math.cos(heading)
    spots = ((-half, -1), (half, -1), (half, 1), (-half, 1))
    corners = [(x + along * sin + a * cos, z + along * cos - a * sin) for along, a in spots]
    canvas.shadow(corners, max(y for _, y in shape.outline))
    nearest = min(corners, key=lambda corner: math.hypot(*corner))  # objects beside a long vehicle are drawn before it
    canvas.later(*nearest, partial(draw_vehicle, canvas, shape, canvas.pick(paint), x, z, sin, cos))


def draw_vehicle(canvas: Canvas, shape: Shape, colour: Colour, x: float, z: float, sin: float, cos: float) -> None:
    """Draw the edges of the outline as strips across the vehicle, the far ones first, then the visible side."""
    outline, train_id, r = shape.outline, shape.train_id, shape.radius

    def place(along: float, y: float, across: float) -> Point:
        a = across * shape.half_width * (1 - shape.taper * min(max((y - 0.9) / 0.5, 0), 1.2))
        return x + along * sin + a * cos, y, z + along * cos - a * sin

    def strip(p: Spot, q: Spot, left: float, right: float, paint: Colour, label: int | None = None) -> None:
        canvas.fill([place(*p, left), place(*p, right), place(*q, right), place(*q, left)], paint, label)

    def wheels(across: float, size: float, paint: Colour, label: int | None = None) -> None:
        for middle in shape.wheels:
            canvas.fill([place(middle + size * r * c, r + size * r * s, across) for c, s in CIRCLE], paint, label)

    def end(low: Spot, high: Spot, lamps: Colour) -> None:
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


# --- people and two-wheelers


def put_people(canvas: Canvas, street: Street) -> None:
    """Put pedestrians on the sidewalks and in front of the junction, alone or in groups."""
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
    """Put riders on the road, and parked bicycles and motorcycles at the kerb."""
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
    """Draw a bicycle or motorcycle, with its rider if `ridden`. `turn`, -1 to 1, is how much of its side is visible."""
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
