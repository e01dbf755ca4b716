"""The embedded dataset "streets": drawn road scenes with the 19 Cityscapes classes, so that a demo needs no download.

Its two worlds have the same classes but look different. *game*, the labelled source, is clean, saturated and sunny; *camera*,
the target, is muted, hazy, textured and noisy, and varies a lot from image to image. `render` draws one scene; `write` writes
the whole dataset in the layouts of GTA5 (game) and Cityscapes (camera).

From the bottom up: labels, worlds (the differences between the domains), canvas (camera and paint), street (plan and ground),
roadside and traffic (objects), film (lens and noise), scene (`render`), files (`write`).
"""

from sda.streets.files import COUNT, TRAIN_CITIES, VAL_CITIES, VAL_OFFSET, write
from sda.streets.labels import COLOURS, LABEL_IDS, VOID
from sda.streets.scene import VERSION, render

__all__ = ["COLOURS", "COUNT", "LABEL_IDS", "TRAIN_CITIES", "VAL_CITIES", "VAL_OFFSET", "VERSION", "VOID", "render", "write"]
