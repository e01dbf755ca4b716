"""The card of an exported network: a README in the form of the Hugging Face Hub, from what the run and its data sets say."""

import json
from pathlib import Path

from sda.data import descriptor as descriptors
from sda.data.descriptor import Descriptor
from sda.errors import SdaError
from sda.models.names import NETWORKS
from sda.runs import compare
from sda.runs.compare import Score
from sda.runs.trained import Run
from sda.scoring.inference import SMALLEST
from sda.system import tables

START = {"none": "random", "imagenet": "torchvision's, trained on ImageNet", "coco": "torchvision's, trained on COCO"}

SDA_EXAMPLE = """import sda

run = sda.load("model.safetensors")
prediction = run.predict("photo.jpg")
print(prediction.labels.shape, prediction.confidence.mean(), prediction.table.names)
"""

ONNX_EXAMPLE = """import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
image = Image.open("photo.jpg").convert("RGB")
size = json.loads(facts["size"])  # height and width that it was trained for; null: pictures at their own size
factor = min(size) / min(image.size) if size else 1
small = image.resize([round(factor * side) for side in image.size], Image.Resampling.BILINEAR)
pixels = np.asarray(small).transpose(2, 0, 1)[None]  # (1, 3, height, width), uint8
labels, confidence = session.run(["labels", "confidence"], {"image": pixels})
picture = Image.fromarray(labels[0]).resize(image.size, Image.Resampling.NEAREST)
picture.putpalette([value for color in json.loads(facts["classes"]).values() for value in color])
picture.save("labels.png")  # the class in each pixel, shown in the colour of the class
"""


def card(run: Run, facts: dict, checks: dict[str, str]) -> str:
    """The text of README.md.

    Args:
        facts: see `sda.export.build.facts_of`. checks: file → how it agrees with the run's network, for those that compute.

    Raises:
        SdaError: a score in the run's folder is damaged.
    """
    scores = scores_of(run)
    target = describe(run.recipe.target)[0]
    parts = [
        _front(run, scores, target),
        f"# {_kind(run)} for {target}",
        f"It gives each pixel of a picture one of {len(run.table.names)} classes"
        + (f" ({run.recipe.description})." if run.recipe.description else "."),
        f"## Training\n\n{_training(run, facts)}",
        f"## Data and their terms\n\n{_data(run)}",
        f"## Scores\n\n{_scores(run, scores)}",
        f"## Classes\n\n{_classes(run, scores)}",
        f"## Input and output\n\n{_input(run, facts)}",
        f"## Intended use and limits\n\n{_limits(run, scores, target)}",
        f"## Use\n\n{_use(checks)}",
    ]
    return "\n\n".join(parts) + "\n"


def scores_of(run: Run) -> list[Score]:
    """Scores in the run's folder that are of this network, at this step: its own first, then those of sda eval."""
    if not (run.folder / "recipe.toml").exists():
        return []
    files = [run.folder / "result.json", *sorted((run.folder / "evaluations").glob("*.json"))]
    scores = [compare.read(file) for file in files if file.exists()]
    return [
        score
        for score in scores
        if score.values.get("step", score.values.get("steps")) == run.step
        and score.values.get("network", "student") == run.network_name
    ]


def describe(dataset: str) -> tuple[str, Descriptor | None]:
    """The title of a data set, and what describes it, if that is still there."""
    try:
        described = descriptors.load(dataset)
    except SdaError:
        return Path(dataset).stem, None
    return described.title, described


def _kind(run: Run) -> str:
    return f"{NETWORKS[run.recipe.network]} ({run.recipe.backbone})"


def _front(run: Run, scores: list[Score], target: str) -> str:
    """The YAML that the Hub reads; JSON is YAML."""
    results = [
        {
            "task": {"type": "image-segmentation", "name": "semantic segmentation"},
            "dataset": {"type": Path(dataset).stem, "name": describe(dataset)[0], "split": split},
            "metrics": [
                {
                    "type": "mean_iou",
                    "name": f"mIoU in percent, {score.values['protocol']['name']}",
                    "value": _one(score.values["miou"]),
                }
            ],
        }
        for score in scores
        for dataset, split in [score.subject]
    ]
    front = {
        "license": "unknown",
        "library_name": "sda",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "domain-adaptation", "semi-supervised-learning"],
    }
    if results:
        front["model-index"] = [{"name": f"{_kind(run)} for {target}", "results": results}]
    return "\n".join(["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---"])


def _training(run: Run, facts: dict) -> str:
    recipe, count = run.recipe, {stream: len(images) for stream, images in run.splits.items()}
    rows = [("setting", recipe.setting), ("method", recipe.method)]
    if recipe.source:
        rows.append(("source", f"{describe(recipe.source)[0]}: {count.get('source', 0):,} labelled images"))
    words = f"{describe(recipe.target)[0]}: {count.get('labelled', 0):,} labelled images"
    if recipe.unlabelled:
        where = "" if recipe.unlabelled == "target" else f" (of the folder {Path(recipe.unlabelled).name})"
        words += f", {count.get('unlabelled', 0):,} without labels{where}"
    rows += [
        ("target", words),
        ("weights at the start", START.get(recipe.weights, Path(recipe.weights).name)),
        ("steps", f"{run.step:,} of {recipe.steps:,}"),
        ("network", f"the {run.network_name} of {run.which}.pt"),
        ("precision", recipe.precision),
        ("sda", facts["sda"]),
    ]
    return tables.markdown(["", ""], rows)


def _data(run: Run) -> str:
    recipe, lines = run.recipe, []
    for role, dataset in (("source", recipe.source), ("target", recipe.target)):
        if not dataset:
            continue
        title, described = describe(dataset)
        home = described.home if described else ""
        licence = (described.licence if described else "") or "not known: its descriptor names none"
        lines.append(f"- **{title}** ({role}{f', {home}' if home else ''}). Licence: {licence}")
    if recipe.unlabelled not in ("", "target"):
        lines.append(f"- Images of the folder **{Path(recipe.unlabelled).name}** (without labels). Licence: not known")
    if recipe.weights != "none":
        origin = START.get(recipe.weights, f"the file {Path(recipe.weights).name}")
        lines.append(f"- The weights that training started from: {origin}. Their terms, and those of their data, apply too")
    lines.append(
        "\nThe terms of the data say what may be done with what was learned from them. sda gives these weights no licence: "
        "whoever passes them on chooses one that these terms allow, and puts it into the first lines of this file."
    )
    return "\n".join(lines)


def _scores(run: Run, scores: list[Score]) -> str:
    if not scores:
        return "None: no score of this network, at this step, lies in its run folder (`sda eval` makes one)."
    rows = []
    for score in scores:
        values, (dataset, split) = score.values, score.subject
        interval = "{:.1f} to {:.1f}".format(*values["interval"]) if "interval" in values else ""
        ece = _one(values.get("ece"))
        name = values["protocol"]["name"]
        rows.append((describe(dataset)[0], split, values["images"], name, _one(values["miou"]), interval, ece))
    head = ["data set", "split", "images", "protocol", "mIoU", "95 % interval", "ECE"]
    notes = "In percent; mIoU over the classes present, its interval over images. A protocol names window, input and scored size."
    if run.which == "best":
        notes += f" This checkpoint was chosen by {run.recipe.best_by}"
        notes += ", from the validation labels, which makes its score optimistic." if run.recipe.best_by == "miou" else "."
    return f"{tables.markdown(head, rows)}\n\n{notes}"


def _classes(run: Run, scores: list[Score]) -> str:
    iou = scores[0].values["iou"] if scores else {}
    rows = [
        (place, name, "#{:02x}{:02x}{:02x}".format(*color), *([_one(iou.get(name))] if iou else []))
        for place, (name, color) in enumerate(run.table.colors.items())
    ]
    head = ["id", "class", "colour", *(["IoU, first row above"] if iou else [])]
    return tables.markdown(head, rows)


def _input(run: Run, facts: dict) -> str:
    p, recipe = facts["preprocessing"], run.recipe
    size = "x".join(map(str, recipe.input_size)) if recipe.input_size else "native"
    change = facts["float32"]
    lines = [
        f"- RGB pictures of {SMALLEST} pixels a side at least. Scored at {size} (height x width)"
        + (f": resize pictures so that their shorter side is {min(recipe.input_size)}" if recipe.input_size else "")
        + f"; trained on crops of {'x'.join(map(str, recipe.crop_size))}.",
        f"- Preprocessing: {p['order']}, values from 0 to {p['maximum']:g}, less {p['mean']}, divided by {p['std']}, by channel. "
        "sda does it, and it is inside of every file that computes; those take uint8.",
        "- Out come the class of each pixel and its probability, at the size of the input.",
    ]
    if change:
        lines.append(
            f"- Files that compute do so in float32, where training used {change['trained in']}: on made-up pictures "
            f"{100 * change['equal']:.1f} % of the labels stay the same."
        )
    return "\n".join(lines)


def _limits(run: Run, scores: list[Score], target: str) -> str:
    use = f"For research on pictures like those of {target}, in the {len(run.table.names)} classes above, at about the size named"
    care = "nothing that can hurt anyone may depend on it"
    if not scores:
        return f"{use}. It was not scored: nothing is known of how often it is wrong, and {care}."
    iou = {name: value for name, value in scores[0].values["iou"].items() if value is not None}
    worst = min(iou, key=iou.get)
    sets = dict.fromkeys(describe(score.subject[0])[0] for score in scores)
    return (
        f"{use}; classes are not recognised alike, {worst} worst of all with an IoU of {iou[worst]:.1f} %. It was scored on "
        f"images of {', '.join(sets)} alone: other cameras, places and weather are untried, and {care}."
    )


def _use(checks: dict[str, str]) -> str:
    parts = [f"With sda:\n\n```python\n{SDA_EXAMPLE}```"]
    if "model.onnx" in checks:
        parts.append(f"Without sda or PyTorch (`pip install onnxruntime pillow numpy`):\n\n```python\n{ONNX_EXAMPLE}```")
    parts.append(
        "`safetensors.torch.load_file` reads the tensors; what they were trained as is JSON in the file's metadata, under `sda`."
    )
    if checks:
        rows = [(f"`{file}`", check) for file, check in checks.items()]
        parts.append(tables.markdown(["file", "against the network, on made-up pictures"], rows))
    return "\n\n".join(parts)


def _one(value: float | None) -> float | str:
    """With one decimal; a dash for nothing."""
    return "–" if value is None else round(value, 1)
