"""The embedded data set "streets": drawn road scenes with the 19 Cityscapes classes, so that a demo needs no download.

Two worlds share one meaning of the labels and little else. *game*, the labelled source, is clean, saturated and sunny;
*camera*, the target, is muted, hazy, textured and noisy, and varies a lot from picture to picture. `render` draws one
scene, `write` puts a whole set on disk in the layouts of GTA5 (game) and Cityscapes (camera), for their own readers.

From the bottom up: labels, worlds (what tells the domains apart), canvas (camera and paint), street (plan and ground),
roadside and traffic (what stands and moves there), film (picture to photograph), scene (`render`), files (`write`).
"""

from sda.streets.files import COUNT, TRAIN_CITIES, VAL_CITIES, VAL_OFFSET, write
from sda.streets.labels import COLOURS, LABEL_IDS, VOID
from sda.streets.scene import VERSION, render

__all__ = ["COLOURS", "COUNT", "LABEL_IDS", "TRAIN_CITIES", "VAL_CITIES", "VAL_OFFSET", "VERSION", "VOID", "render", "write"]
