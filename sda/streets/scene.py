"""Draw one scene: its image and its labels."""

import numpy as np

from sda.errors import SdaError
from sda.streets.canvas import Canvas, toned
from sda.streets.film import develop
from sda.streets.labels import VOID
from sda.streets.roadside import line_street, put_furniture
from sda.streets.street import draw_ground, draw_sky, plan
from sda.streets.traffic import put_cycles, put_people, put_traffic
from sda.streets.worlds import WORLDS

VERSION = 2  # increased whenever the images change


def render(domain: str, seed: int, index: int, height: int = 128, width: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene. The same (domain, seed, index) and size always give the same image.

    Args:
        domain: "game" (source) or "camera" (target).
        seed: of the dataset, not negative. index: number of the scene, not negative.

    Returns:
        The image, uint8 RGB (height, width, 3), and its labels, uint8 (height, width): train ids 0..18 or 255 (void).

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
    for put in (line_street, put_traffic, put_furniture, put_people, put_cycles):  # draw shadows now, objects later
        put(canvas, street)
    canvas.draw_waiting()
    if canvas.rng.random() < world.bonnet:
        draw_bonnet(canvas)
    return develop(canvas, street)


def draw_bonnet(canvas: Canvas) -> None:
    """Draw the bonnet of the camera's own car at the lower edge: void."""
    colour, top = canvas.pick("car"), canvas.height * canvas.rng.uniform(0.9, 0.95)
    box = (-0.1 * canvas.width, top, 1.1 * canvas.width, 1.5 * canvas.height)
    canvas.pen.ellipse(box, fill=colour)
    canvas.pen.arc(box, 180, 360, fill=toned(colour, 1.4), width=3)
    canvas.label_pen.ellipse(box, fill=VOID)
