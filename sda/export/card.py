"""The model card of an exported network: a README in the format of the Hugging Face Hub."""

import json
from pathlib import Path

from sda.data import descriptor
from sda.data.descriptor import Descriptor
from sda.errors import SdaError
from sda.models.names import NETWORKS, TORCHVISION
from sda.recipe import Recipe
from sda.runs import compare
from sda.runs.compare import Score
from sda.runs.trained import Run
from sda.scoring.summary import classes_scored
from sda.sizes import SMALLEST, size_text
from sda.system import tables

SDA_EXAMPLE = """import sda

run = sda.load("model.safetensors")  # or hf://OWNER/NAME
prediction = run.predict("photo.jpg")
print(prediction.labels.shape, prediction.confidence.mean(), prediction.table.names)
"""

_SHORTER_SIDE = "min(size) / min(image.size) if size else 1"
_INSIDE = "min(size[0] / image.height, size[1] / image.width)"  # of recipes with fit = "inside"
ONNX_EXAMPLE = """import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
image = Image.open("photo.jpg").convert("RGB")
size = json.loads(facts["size"])  # height and width in training; null: native size
factor = min(size) / min(image.size) if size else 1
small = image.resize([round(factor * side) for side in image.size], Image.Resampling.BILINEAR)
pixels = np.asarray(small).transpose(2, 0, 1)[None]  # (1, 3, height, width), uint8
labels, confidence = session.run(["labels", "confidence"], {"image": pixels})
picture = Image.fromarray(labels[0]).resize(image.size, Image.Resampling.NEAREST)
picture.putpalette([value for color in json.loads(facts["classes"]).values() for value in color])
picture.save("labels.png")  # class ids, shown in the colours of the classes
"""


def card(run: Run, facts: dict, checks: dict[str, str]) -> str:
    """Return the text of README.md.

    Args:
        facts: see `sda.export.build.metadata`.
        checks: file → how well it agrees with the network of the run, for files that can be run.

    Raises:
        SdaError: a score in the run folder is corrupt.
    """
    scores = scores_of(run)
    target = describe(run.recipe.target)[0]
    parts = [
        _front(run, scores, target),
        f"# {_kind(run)} for {target}",
        f"This network assigns one of {len(run.table.names)} classes to each pixel of an image"
        + (f" ({run.recipe.description})." if run.recipe.description else "."),
        f"## Training\n\n{_training(run, facts)}",
        f"## Data and licences\n\n{_data(run)}",
        f"## Scores\n\n{_scores(run, scores)}",
        f"## Classes\n\n{_classes(run, scores)}",
        f"## Input and output\n\n{_input(run, facts)}",
        f"## Intended use and limits\n\n{_limits(run, scores, target)}",
        f"## Use\n\n{_use(run, checks)}",
    ]
    return "\n\n".join(parts) + "\n"


def scores_of(run: Run) -> list[Score]:
    """Return the scores of this network at this step in the run folder: result.json first, then those of `sda eval`."""
    if not (run.folder / "recipe.toml").exists():
        return []
    files = [run.folder / "result.json", *sorted((run.folder / "evaluations").glob("*.json"))]
    scores, _ = compare.read_usable([file for file in files if file.exists()])
    return [
        score
        for score in scores
        if score.values.get("step", score.values.get("steps")) == run.step
        and score.values.get("network", "student") == run.network_name
    ]


def describe(dataset: str) -> tuple[str, Descriptor | None]:
    """Return the title of a dataset, and its descriptor if the file still exists."""
    try:
        described = descriptor.load(dataset)
    except SdaError:
        return Path(dataset).stem, None
    return described.title, described


def initial_weights(recipe: Recipe) -> str:
    """Describe where the weights come from that a training started with."""
    if recipe.weights == "none":
        return "random"
    if recipe.weights == "imagenet":
        return "torchvision, trained on ImageNet" if recipe.backbone in TORCHVISION else f"timm's default for {recipe.backbone}"
    return "torchvision, trained on COCO" if recipe.weights == "coco" else Path(recipe.weights).name


def _kind(run: Run) -> str:
    return f"{NETWORKS[run.recipe.network]} ({run.recipe.backbone})"


def _front(run: Run, scores: list[Score], target: str) -> str:
    """Return the metadata that the Hub reads: YAML, with JSON values."""
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
    front: dict[str, object] = {
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
    for source in recipe.sources:
        share = f", {float(source.share):.1%} of the draws" if source.share < 1 else ""
        rows.append(("source", f"{describe(source.dataset)[0]}: {count.get(source.images, 0):,} labelled images{share}"))
    target = f"{describe(recipe.target)[0]}: {count.get('labelled', 0):,} labelled images"
    if recipe.unlabelled:
        where = "" if recipe.unlabelled == "target" else f" (from the folder {Path(recipe.unlabelled).name})"
        target += f", {count.get('unlabelled', 0):,} unlabelled{where}"
    rows += [
        ("target", target),
        ("initial weights", initial_weights(recipe)),
        ("steps", f"{run.step:,} of {recipe.steps:,}"),
        ("network", f"the {run.network_name} in {run.which}.pt"),
        ("precision", recipe.precision),
        ("sda", facts["sda"]),
    ]
    return tables.markdown(["", ""], rows)


def _data(run: Run) -> str:
    recipe, lines = run.recipe, []
    for role, dataset in (*(("source", source.dataset) for source in recipe.sources), ("target", recipe.target)):
        title, described = describe(dataset)
        home = described.home if described else ""
        licence = (described.licence if described else "") or "unknown (the descriptor names none)"
        lines.append(f"- **{title}** ({role}{f', {home}' if home else ''}). Licence: {licence}")
    if recipe.unlabelled not in ("", "target"):
        lines.append(f"- Images in the folder **{Path(recipe.unlabelled).name}** (unlabelled). Licence: unknown")
    if recipe.weights != "none":
        lines.append(
            f"- Initial weights: {initial_weights(recipe)}. Their licence and the licence of their training data also apply"
        )
    lines.append(
        "\nThe licences of the data may restrict how these weights can be used. sda does not choose a licence for the weights: "
        "if you publish them, choose one that these licences allow and set it in the metadata at the top of this file."
    )
    return "\n".join(lines)


def _scores(run: Run, scores: list[Score]) -> str:
    if not scores:
        return "The run folder has no score of this network at this step; `sda eval` adds one."
    rows = []
    for score in scores:
        values, (dataset, split) = score.values, score.subject
        interval = "{:.1f} to {:.1f}".format(*values["interval"])
        ece = _one(values.get("ece"))
        protocol = values["protocol"]["name"]
        miou = " over ".join(filter(None, [str(_one(values["miou"])), classes_scored(values)]))
        rows.append((describe(dataset)[0], split, values["images"], protocol, miou, interval, ece))
    head = ["dataset", "split", "images", "protocol", "mIoU", "95 % interval", "ECE"]
    notes = (
        "In percent. mIoU: mean over the classes present, with an interval over images. Protocol: window, input size, score size."
    )
    if run.which == "best":
        by = run.best_by or run.recipe.best_by
        notes += f" This checkpoint was chosen by {by}"
        notes += ", with the validation labels, so its score is optimistic." if by == "miou" else "."
    return f"{tables.markdown(head, rows)}\n\n{notes}"


def _classes(run: Run, scores: list[Score]) -> str:
    iou = scores[0].values["iou"] if scores else {}
    rows = [
        (place, name, "#{:02x}{:02x}{:02x}".format(*color), *([_one(iou.get(name))] if iou else []))
        for place, (name, color) in enumerate(run.table.colors.items())
    ]
    head = ["id", "class", "colour", *(["IoU (first score above)"] if iou else [])]
    return tables.markdown(head, rows)


def _input(run: Run, facts: dict) -> str:
    p, recipe = facts["preprocessing"], run.recipe
    size = "x".join(map(str, recipe.input_size)) if recipe.input_size else "native"
    change = facts["float32"]
    lines = [
        f"- Input: RGB images, at least {SMALLEST} pixels high and wide. Scored at {size} (height x width)"
        + (f": {resizing(run)}" if recipe.input_size else "")
        + f"; trained on crops of {'x'.join(map(str, recipe.crop_size))}.",
        f"- Preprocessing: {p['order']}, 0 to {p['maximum']:g}, minus {p['mean']}, divided by {p['std']}, per channel. "
        "sda applies it, and the exported models contain it: they take uint8 images.",
        "- Output: the class of each pixel and its probability, at the size of the input.",
    ]
    if change:
        lines.append(
            f"- The exported models compute in float32, while training used {change['trained in']}: on synthetic images, "
            f"{100 * change['equal']:.1f} % of the labels are the same."
        )
    return "\n".join(lines)


def resizing(run: Run) -> str:
    """Describe how images of any size are resized for an exported model, without a change of their aspect ratio."""
    size = run.recipe.input_size
    if not size:
        return "images at their native size"
    if run.recipe.input_fit == "inside":
        return f"resize images to the largest size of the same aspect ratio that fits inside {size_text(size)}"
    return f"resize images so that their shorter side is {min(size)}"


def _limits(run: Run, scores: list[Score], target: str) -> str:
    use = f"For research on images like those of {target}, in the {len(run.table.names)} classes above, at about the size above."
    care = "Do not use it where errors can harm people."
    if not scores:
        return f"{use} It was not evaluated, so its accuracy is unknown. {care}"
    iou = {name: value for name, value in scores[0].values["iou"].items() if value is not None}
    worst = min(iou, key=lambda name: iou[name])
    titles = dict.fromkeys(describe(score.subject[0])[0] for score in scores)
    return (
        f"{use} Accuracy differs between classes; the worst is {worst}, with an IoU of {iou[worst]:.1f} %. It was only evaluated "
        f"on images of {', '.join(titles)}, not on those of other cameras, places or weather. {care}"
    )


def _use(run: Run, checks: dict[str, str]) -> str:
    parts = [f"With sda:\n\n```python\n{SDA_EXAMPLE}```"]
    if "model.onnx" in checks:
        example = ONNX_EXAMPLE.replace(_SHORTER_SIDE, _INSIDE) if run.recipe.input_fit == "inside" else ONNX_EXAMPLE
        parts.append(f"Without sda or PyTorch (`pip install onnxruntime pillow numpy`):\n\n```python\n{example}```")
    parts.append(
        "`safetensors.torch.load_file` reads the tensors; the metadata entry `sda` has recipe, classes and preprocessing as JSON."
    )
    if checks:
        parts.append(tables.markdown(["file", "compared with the network, on synthetic images"], checks.items()))
    return "\n\n".join(parts)


def _one(value: float | None) -> float | str:
    """Round to one decimal; a dash for None."""
    return "–" if value is None else round(value, 1)
