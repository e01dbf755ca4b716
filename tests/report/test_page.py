"""`sda report`: the page shows the numbers of the run, is self-contained, and omits missing parts."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import tiny
from PIL import Image

from sda.pictures import GREY
from sda.report import examples, facts, plots, words
from sda.report.build import FIGURES
from sda.runs import checkpoint
from sda.scoring import criteria

HUMAN = "a <b>human</b> & co"
JOINT = "joint <i>run & co"


class Page(HTMLParser):
    """A parsed page: elements with their attributes, and the text outside of styles."""

    def __init__(self, text: str):
        super().__init__()
        self.raw, self.elements, self.text, self._open = text, [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" not in self._open and data.strip():
            self.text += f" {' '.join(data.split())}"

    def has(self, id: str) -> bool:
        return any(attributes.get("id") == id for _, attributes in self.elements)

    @property
    def images(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.elements if tag == "img"]


def main(*arguments) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert tiny.run_main(patch, *arguments) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A world with a hostile class name and two runs: bank/, which has every part of a page, and a joint run."""
    folder = tmp_path_factory.mktemp("trained")
    world = tiny.write_world(folder)
    world.field.write_text(tiny.FIELD.replace("human =", f'"{HUMAN}" ='))
    world.toy.write_text(tiny.TOY.replace('"human"', f'"{HUMAN}"'))
    flags = ["--device", "cpu", "--steps", 12, "--eval-every", 4, "--optimizer", "adamw", "--learning-rate", 0.01]
    main("train", world.recipe, *tiny.BANK, *flags, "--labels", 4, "--hold-out", 1, "--out", folder / "runs/bank")
    main("train", world.recipe, *flags, "--out", folder / "runs" / JOINT)
    return world


@pytest.fixture(scope="module")
def whole(trained):
    """The page that compares the first run with the other, with all figures, and its folder."""
    out = trained.folder / "whole"
    main("report", trained.folder / "runs/bank", trained.folder / "runs" / JOINT, "--out", out, "--device", "cpu")
    return Page((out / "report.html").read_text(encoding="utf-8")), out


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the runs that tests may change."""
    return shutil.copytree(trained.folder / "runs", tmp_path / "runs")


@pytest.fixture
def blank(monkeypatch):
    """Do not draw the figures, which takes a second."""
    monkeypatch.setattr(plots, "plot", lambda name, title, size, paint: plots.Plot(name, title, "<svg></svg>", 300, b""))


@pytest.fixture
def report(sda, blank, tmp_path):
    """`report(arguments)` → the page, with blank figures, and its folder."""

    def report(*arguments):
        out = tmp_path / "out"
        status, shown = sda("report", *arguments, "--out", out, "--overwrite", "--device", "cpu")
        assert status == 0, shown.err
        assert shown.out == f"Report: {out / 'report.html'}\n"
        return Page((out / "report.html").read_text(encoding="utf-8")), out

    return report


def values_of(run):
    return json.loads((run / "result.json").read_text())


def change(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def shown(value):
    return f"{value:.1f}".replace("-", "−")


# Content


def test_page_shows_the_numbers_of_the_run(trained, whole):
    (page, out), runs = whole, trained.folder / "runs"
    own, other = values_of(runs / "bank"), values_of(runs / JOINT)
    low, high = own["interval"]
    assert f"95 % interval {shown(low)} to {shown(high)}, over 3 images" in page.text
    for name, value in own["iou"].items():
        place = page.text.index(f" {name} {shown(value)} {shown(other['iou'][name])} ")  # the class table
        lead = f"{value - other['iou'][name]:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")
        assert page.text[place:].startswith(
            f" {name} {shown(value)} {shown(other['iou'][name])} {lead} {shown(own['boundary_iou'][name])} "
        )
    for name, choice in own["selection"].items():
        titles = {"oracle": criteria.MIOU.title, "last": "last step"}
        criterion = titles.get(name) or criteria.CRITERIA[name].title
        where = page.text[page.text.index(" Checkpoint selection ") :]
        row = where[where.index(f" {criterion}") + len(criterion) + 1 :].split()
        row = [word for word in row[:5] if word not in ("best.pt", "last.pt")]
        assert row[:2] == [str(choice["step"]), shown(choice["miou"])]
        assert row[2] in (shown(-choice["behind"]), "0.0")
    assert f"Expected calibration error {shown(own['ece'])} %." in page.text
    for each in own["reliability"]:
        assert f" {shown(each['confidence'])} {shown(each['accuracy'])} " in page.text
    environment = json.loads((runs / "bank/environment.json").read_text())
    assert environment["packages"]["torch"] in page.text and environment["python"] in page.text
    assert all(split["sha256"] in page.text for split in environment["splits"].values())
    valid = checkpoint.load(runs / "bank/last.pt")["method"]["bank.valid"]
    assert f"At step 12, {100 * valid.float().mean().item():.0f} % of the 3 × 8 entries are filled" in page.text
    entries = page.text[page.text.index("Age and similarity of the entries") :]
    assert all(f" {name} {count} " in entries for name, count in zip(own["iou"], valid.sum(dim=1).tolist(), strict=True))
    assert " bank_size 8 256 " in page.text and " whole-48x64-native " in page.text
    assert f"sda train {runs / 'bank/recipe.toml'}" in page.text
    assert {path.stem for path in (out / "figures").iterdir()} == {*FIGURES}
    for path in (out / "figures").iterdir():
        with Image.open(path) as figure:
            assert min(figure.size) > 200


def test_page_is_self_contained(whole):
    page, _ = whole
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    links = [
        value for _, attributes in page.elements for key, value in attributes.items() if key.split(":")[-1] in ("src", "href")
    ]
    assert len(ids) == len({*ids}) and all(link.startswith("data:") or link[1:] in ids for link in links)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    assert "@import" not in page.raw and page.raw.count("url(") == page.raw.count("url(#")
    assert len(page.images) == 3 * 5
    sizes = {Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size for source in page.images}
    assert sizes == {(64, 48)}
    assert "http" not in page.raw.replace("http-equiv", "").replace("http://www.w3.org/", "")


def test_page_is_deterministic(trained, whole, sda):
    before = tiny.files(whole[1])
    runs = [trained.folder / "runs" / name for name in ("bank", JOINT)]
    assert sda("report", *runs, "--out", whole[1], "--overwrite", "--device", "cpu")[0] == 0
    assert tiny.files(whole[1]) == before


def test_names_are_escaped(whole):
    page, _ = whole
    assert not {"b", "i"} & {tag for tag, _ in page.elements}
    assert page.text.count(HUMAN) > 3 and page.text.count(JOINT) > 3


def test_page_of_a_single_run(runs, report):
    _, out = report(runs / "bank")
    assert (out / "figures/bank.png").exists()
    page, out = report(runs / JOINT)
    assert not page.has("comparison") and not page.has("bank") and page.has("images") and page.has("checkpoint")
    assert not (out / "figures/bank.png").exists() and not (out / "figures/bank-classes.png").exists()
    assert "teacher–student agreement (needs unlabelled images" in page.text


def test_page_of_a_saved_score(trained, runs, report, sda):
    assert sda("eval", runs / "bank", "--network", "teacher", "--flip", "--device", "cpu")[0] == 0
    (file,) = (runs / "bank/evaluations").iterdir()
    page, _ = report(file)
    score = json.loads(file.read_text())
    assert f"95 % interval {shown(score['interval'][0])}" in page.text and page.has("images")
    assert f"sda eval {runs / 'bank'} --flip --network teacher" in page.text
    assert "averaged over scale 1 and mirror images" in page.text


def test_pictures_show_the_scored_predictions(runs, report, monkeypatch):
    """The errors in the pictures are those that the score counts."""
    drawn = []
    real = examples.errors
    monkeypatch.setattr(examples, "errors", lambda *given: drawn.append(given) or real(*given))
    report(runs / "bank")
    own = values_of(runs / "bank")
    right = sum((label == predicted).sum() for _, label, predicted in drawn)
    assert len(drawn) == 3 and 100 * right / (3 * 48 * 64) == pytest.approx(own["accuracy"])


# Missing parts


def test_page_without_the_dataset(trained, runs, report):
    elsewhere = trained.root.rename(trained.folder / "elsewhere")
    try:
        page, _ = report(runs / "bank")
        assert not page.images and page.has("bank") and page.has("calibration")
        assert f"No images are shown: Field: the folder {trained.root / 'field'} does not exist" in page.text
        assert "(if the dataset has moved, give its new folder with --root)" in page.text
        page, _ = report(runs / "bank", "--root", elsewhere / "field")
        assert len(page.images) == 15 and "No images are shown" not in page.text
    finally:
        elsewhere.rename(trained.root)


def test_page_without_pictures_if_the_dataset_changed(runs, report):
    own = values_of(runs / "bank")
    renamed = {key.replace("09", "99"): value for key, value in own["image_miou"].items()}
    change(runs / "bank/result.json", image_miou=renamed)
    page, _ = report(runs / "bank")
    assert not page.images and "the dataset has changed since it was scored: pictures/val/west/99" in page.text


def test_page_without_checkpoint_log_and_environment(runs, report):
    for name in ("last.pt", "metrics.jsonl", "environment.json"):
        (runs / "bank" / name).unlink()
    page, _ = report(runs / "bank")
    assert "No images and no memory bank are shown" in page.text and "last.pt: no such checkpoint" in page.text
    assert not page.images and not page.has("bank") and not page.has("training") and page.has("confusion")


def test_page_with_an_empty_bank(runs, report):
    state = checkpoint.load(runs / "bank/last.pt")
    state["method"]["bank.valid"].zero_()
    checkpoint.save(runs / "bank/last.pt", {key: value for key, value in state.items() if key != "format"})
    page, out = report(runs / "bank")
    assert page.has("bank") and "The bank is empty." in page.text and not (out / "figures/bank-similarity.png").exists()


# Errors


def test_reports_are_only_overwritten_on_request(runs, report, sda, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = sda("report", runs / JOINT)
    assert status == 0 and said.out == "Report: reports/joint_i_run_co/report.html\n"
    before = tiny.files(tmp_path)
    status, said = sda("report", runs / JOINT)
    assert status == 2 and "a report exists there; replace it with --overwrite" in said.err and tiny.files(tmp_path) == before
    status, said = sda("report", runs / "bank", "--out", runs / JOINT, "--overwrite")
    assert status == 2 and "contains no report, so it is not overwritten" in said.err and tiny.files(tmp_path) == before


def test_incomparable_scores_are_refused(runs, sda, tmp_path):
    protocol = values_of(runs / "bank")["protocol"]
    change(runs / JOINT / "result.json", protocol={**protocol, "flip": True, "name": "other"})
    status, said = sda("report", runs / "bank", runs / JOINT, "--out", tmp_path / "out")
    assert status == 2 and "scored under different protocols" in said.err and not (tmp_path / "out").exists()
    change(runs / "bank/result.json", interval=None, ece=None)
    status, said = sda("report", runs / "bank", "--out", tmp_path / "out")
    assert status == 2 and f"{runs / 'bank/result.json'}: not a score of sda: key 'interval' is missing" in said.err
    (runs / JOINT / "result.json").unlink()
    status, said = sda("report", runs / JOINT, "--out", tmp_path / "out")
    assert status == 2 and "this run is not finished" in said.err


def test_damaged_side_files_do_not_block_a_report(runs, sda, blank, tmp_path):
    """A cut log loses its last record; a file that is no log or no record of the environment is told and left out."""
    log, environment = runs / "bank/metrics.jsonl", runs / "bank/environment.json"
    log.write_text(log.read_text()[:-10])
    environment.write_text('{"splits": 3}')
    status, said = sda("report", runs / "bank", "--out", tmp_path / "out")
    assert status == 0 and f"{environment}: damaged: splits = 3" in said.err and (tmp_path / "out/report.html").exists()
    log.unlink()
    log.mkdir()
    (runs / "notes").mkdir()
    status, said = sda("report", runs / "bank", runs / "notes", runs / JOINT, "--out", tmp_path / "out2")
    assert status == 0 and f"{log}: cannot be read" in said.err and f"{runs / 'notes'}: not a run" in said.err
    assert JOINT in Page((tmp_path / "out2/report.html").read_text()).text


# Numbers and words


def test_losses_and_diagnostics_may_have_any_name(trained):
    log = [
        {"step": 0, "sup": 1.0, "bank_loss": 2.0, "loss": 3.0, "queue": 0.5, "gradient": 1.0, "rate": 0.1},
        {"step": 5, "skipped": "sup"},
        {"step": 10, "sup": 1.0, "teacher_loss": 2.0, "loss": 3.0, "queue": 0.5, "gradient": 1.0, "rate": 0.1},
        {"step": 11, "val": {"miou": 1.0}},
    ]
    assert facts.loss_names(log) == ["sup", "bank_loss", "teacher_loss"]
    assert facts.series(log, "teacher_loss") == ([10], [2.0])
    log = facts.read_all([trained.folder / "runs/bank"])[0]["bank"].log
    assert facts.loss_names(log) == ["sup", "pseudo", "entropy", "contrast_l", "contrast_u"]
    assert all(record["loss"] == sum(record.get(name, 0) for name in facts.loss_names(log)) for record in log if "loss" in record)


def test_confusions_by_hand():
    confusion = [[6, 2, 0], [0, 0, 0], [1, 0, 1]]
    shares = facts.normalised(confusion)
    assert shares[0].tolist() == [0.75, 0.25, 0] and np.isnan(shares[1]).all()
    assert facts.confusions(confusion, ["x", "y", "z"]) == [
        {"name": "x", "called": "y", "own": 25.0, "all": 20.0},
        {"name": "z", "called": "x", "own": 50.0, "all": 10.0},
    ]


def test_best_and_worst_images():
    miou = {f"image {value}": float(value) for value in range(20)} | {"void": None}
    best, worst = examples.ranked(miou)
    assert best == ["image 19", "image 18", "image 17", "image 16"] and worst == [f"image {value}" for value in range(4)]
    assert examples.ranked({"a": 1.0, "b": 3.0, "c": 2.0}) == (["b", "c"], ["a"])
    assert examples.ranked({"a": 1.0}) == (["a"], [])


def test_errors_are_red():
    image = np.full((1, 3, 3), 100, np.uint8)
    found = examples.errors(image, np.array([[0, 1, 255]]), np.array([[0, 0, 0]]))
    assert found.tolist() == [[[40, 40, 40], list(examples.ERROR), list(GREY)]]


def test_plots_are_small_and_have_no_fixed_colours():
    steps = list(range(2000))
    values = [*np.random.default_rng(0).uniform(1, 2, 1999), float("nan")]
    curve = plots.curves("x", "X", {"a $x$ <b> & 漢": (steps, values)}, "y", smooth=True, log=True)
    lines = [part.split('"')[0].count("L ") for part in curve.svg.split(' d="')]
    assert 0.9 * plots.MAX_POINTS < max(lines) < plots.MAX_POINTS, "thinned"
    assert "xmlns" in curve.svg[:100] and "<style" not in curve.svg and "<g id" not in curve.svg and "#2468b7" not in curve.svg
    names = [f"class {index}" for index in range(plots.MAX_NUMBERED + 1)]
    large = plots.matrix("m", "M", np.eye(len(names)), names, "r", "c", "percent")
    assert ">100<" not in large.svg and ">100<" in plots.matrix("m", "M", np.eye(2), ["a <b>", "b"], "r", "c", "percent").svg


def test_numbers_in_words():
    assert [words.signed(value) for value in (1.26, -0.04, -3, None)] == ["+1.3", "0.0", "−3.0", "–"]
    assert [words.duration(seconds) for seconds in (9, 200, 18720)] == ["9 s", "3 min 20 s", "5 h 12 min"]
    assert words.joined(["a"]) == "a" and words.joined(["a", "b", "c"]) == "a, b and c"
