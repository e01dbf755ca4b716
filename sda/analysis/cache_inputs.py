"""Choose the network and the images that a feature cache is made from."""

import itertools
from pathlib import Path

import torch

from sda.analysis.make_cache import Domain, distinct, open_domain
from sda.errors import SdaError
from sda.runs import trained
from sda.runs.trained import Run
from sda.system.progress import Bars


def load_network(run: Path, checkpoint: str, network: str | None, device: torch.device) -> Run:
    """Load the network whose features are cached.

    Args:
        network: "student" or "teacher"; None for the teacher if there is one.

    Raises:
        SdaError: see `sda.runs.trained.load`.
    """
    loaded = trained.load(run, checkpoint, network or "student", device)
    if network is None and checkpoint == "last" and loaded.recipe.unlabelled and (loaded.folder / "last.pt").exists():
        return trained.load(run, checkpoint, "teacher", device)
    return loaded


def open_domains(run: Run, datasets: tuple[str, ...], roots: tuple[str, ...], split: str, bars: Bars) -> list[Domain]:
    """Open a split of each dataset, by default of the sources and the target of the run.

    Args:
        datasets: names, TOML paths or folders of images. roots: folders of the datasets, in the same order.

    Raises:
        SdaError: more roots than datasets, or a dataset that cannot be opened.
    """
    if len(roots) > len(datasets):
        raise SdaError(f"{len(roots)} --root for {len(datasets)} --dataset: give one root per dataset, in the same order")
    recipe = run.recipe
    own = [*((source.dataset, source.root) for source in recipe.sources), (recipe.target, recipe.target_root)]
    given = itertools.zip_longest(datasets, roots, fillvalue="") if datasets else own
    domains = []
    for dataset, root in given:
        domain, notes = open_domain(run, dataset, root, split, bars.count)
        for note in notes:
            bars.say(note)
        domains.append(domain)
    return distinct(domains)
