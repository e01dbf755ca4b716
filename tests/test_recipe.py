"""Recipes: strict TOML, variants, flags and absolute paths."""

import os
import re
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest

import sda
from sda import recipe, shelf
from sda.data import descriptor
from sda.errors import SdaError
from sda.runs.folder import toml_text
from sda.training.optimizer import rate_factor

PACKAGE = Path(sda.__file__).parent
RECIPES = shelf.names("recipes")
BASE = {"target": "idd_lite", "labels": 30, "size": [128, 176], "backbone": "mobilenet_v2", "steps": 10}
UNLABELLED = {"method": "class_bank", "unlabelled": "target"}


def make(**changes):
    return shelf.check(recipe.Recipe, {**BASE, **changes}, "my.toml")


def refused(**changes):
    with pytest.raises(SdaError) as caught:
        make(**changes)
    message = str(caught.value)
    assert message.startswith("my.toml: ") and "\n" not in message
    return message


# Recipes of the package


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_starts_with_its_command_and_round_trips_through_toml(name):
    path = shelf.find("recipes", name)
    assert path.read_text(encoding="utf-8").startswith(f"# sda train {name}")
    loaded = recipe.load(name)
    assert loaded.description
    assert recipe.Recipe.model_validate(tomllib.loads(toml_text(loaded.model_dump()))) == loaded


@pytest.mark.parametrize("name", RECIPES)
def test_target_classes_cover_the_source_classes(name):
    loaded = recipe.load(name)
    target = descriptor.load(loaded.target)
    if loaded.source:
        _, dropped = descriptor.map_classes(descriptor.load(loaded.source), descriptor.Classes(target.classes, target.table()))
        assert dropped == []


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"a = ", "not valid TOML"), (b"a = 1\na = 2", "not valid TOML"), (b'a = "\xff"', "cannot be read")],
)
def test_unreadable_toml_is_refused(tmp_path, content, says):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(SdaError, match=f"broken.toml: {says}"):
        recipe.load(str(path))


# Strict values


def test_unknown_key_gets_a_suggestion():
    assert "unknown key 'stepz' (did you mean 'steps'?)" in refused(stepz=3)
    assert "unknown key 'qqq' (the nearest of" in refused(qqq=3)


def test_missing_key_is_named():
    with pytest.raises(SdaError, match="my.toml: key 'steps' is missing"):
        shelf.check(recipe.Recipe, {key: value for key, value in BASE.items() if key != "steps"}, "my.toml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("steps", value) for value in (1.5, 10.0, True, "10", [10])],
        *[("labels", value) for value in (1.5, True, "3", "some")],
        *[("learning_rate", value) for value in ("0.1", True)],
        *[("in_memory", value) for value in (1, "true")],
        *[("size", value) for value in (128, "128*176", [128, 176.0], [128, True])],
        *[("source", value) for value in (3, False, ["a", 3])],
        *[("source_weights", value) for value in (3, "3,1")],
    ],
)
def test_mistyped_values_are_refused(key, value):
    message = refused(**{key: value})
    assert key in message and repr(value if not isinstance(value, list) or key != "size" else value[1]) in message


@pytest.mark.parametrize("value", [1, 0, 0.5])
def test_whole_numbers_are_valid_floats(value):
    loaded = make(learning_rate=value)
    assert loaded.learning_rate == value and type(loaded.learning_rate) is float


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("steps", 0, "greater than 0"),
        *[("ramp_steps", value, "a share of all steps from 0.0 to 1.0") for value in (-1, -0.1, 1.5, float("nan"), True, "0.2")],
        ("labels", -1, 'expected a whole number from 0 to 10^9, or "all"'),
        ("seed", -1, "greater than or equal to 0"),
        ("momentum", 1.5, "less than or equal to 1"),
        ("learning_rate", -0.1, "greater than or equal to 0"),
        ("learning_rate", float("nan"), "finite"),
        ("confidence_power", float("inf"), "finite"),
        ("size", [128], "expected HEIGHTxWIDTH"),
        ("size", [128, 176, 3], "expected HEIGHTxWIDTH"),
        ("size", [16, 176], "from 32"),
        ("size", 96, "such as 96x96, or native"),
        ("crop", 96, "such as 96x96"),
        ("crop", "96", "such as 96x96"),
        ("crop", 7, "such as 512x1024"),
        ("crop", "native", "expected HEIGHTxWIDTH"),
        ("output_stride", 4, "0, 8, 16 or 32"),
        ("network", "unet", "expected one of deeplabv2, deeplabv3plus"),
    ],
)
def test_values_out_of_range_are_refused(key, value, says):
    message = refused(**{key: value})
    assert key in message and says in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "mean_teacher"}, "method mean_teacher needs unlabelled images"),
        ({"method": "dacs", "unlabelled": "target"}, "method dacs pastes source classes"),
        (
            {"method": "dacs", "unlabelled": "target", "source": "camvid", "alternate": True},
            "set a source, alternate = false",
        ),
        (
            {"method": "dacs", "unlabelled": "target", "source": "camvid", "target_steps": 5},
            "pastes source classes .* in every step: .*target_steps = 0",
        ),
        ({**UNLABELLED, "source": "camvid", "mix_from": "source", "target_steps": 5}, "the last target_steps steps have no"),
        ({"source": "camvid", "labels": 0, "target_steps": 5}, "the last steps would have no labels"),
        ({"source": "camvid", "steps": 5, "target_steps": 5}, "leaves no step with source images"),
        ({**UNLABELLED, "attention_features": False}, "which is not trained with attention_features = false"),
        ({**UNLABELLED, "bank_streams": "source"}, "bank_streams = source: the recipe has no such labelled stream"),
        (
            {**UNLABELLED, "source": "camvid", "labels": 0, "bank_streams": "target"},
            "bank_streams = target: the recipe has no such labelled stream",
        ),
        (
            {"weights": "imagenet", "weights_format": "caffe"},
            "weights_format is only for weights files, not for weights = imagenet",
        ),
        ({"alternate": True}, "alternate = true needs both source images and labelled target images"),
        ({"labels": 0}, "no labelled images: set source, or labels > 0"),
        ({"unlabelled": "target"}, "supervised cannot use unlabelled"),
        ({"method": "class_bank"}, "needs unlabelled images"),
        ({"labels": "all", "source": "camvid", **UNLABELLED}, "leaves no unlabelled"),
        ({"crop": [160, 160]}, "crop = 160x160 does not fit into size = 128x176"),
        ({"source": "camvid", "source_size": [64, 64]}, "does not fit into source_size = 64x64"),
    ],
)
def test_impossible_combinations_are_refused(changes, says):
    assert re.search(says, refused(**changes))


@pytest.mark.parametrize(
    ("value", "steps", "point"),
    [(0, 90, 0), (1, 90, 1), (120, 90, 120), (0.0, 90, 0), (0.2, 90, 18), (0.3333, 2400, 800), (1.0, 90, 90), (0.004, 100, 0)],
)
def test_a_fraction_is_a_share_of_all_steps(value, steps, point):
    settings = dict.fromkeys(("ramp_steps", "bank_start", "unlabelled_start", "warmup_steps"), value)
    found = make(**UNLABELLED, steps=steps, **settings)
    assert {name: found.in_steps(name) for name in settings} == dict.fromkeys(settings, point)
    assert found.method_settings.ramp_steps == found.method_settings.bank_start == point
    assert rate_factor(0, found) == (1 / point if point else 1)
    assert bool(found.unreached()) == (point >= steps)


def test_a_map_round_trips_through_toml():
    found = make(source="camvid", source_map={'a "b"': "road", "a.b = c": "", "\x7f": "x"})
    assert shelf.check(recipe.Recipe, tomllib.loads(toml_text(found.model_dump())), "again") == found


def test_several_errors_are_reported_at_once():
    message = refused(stepz=1, steps=1.5)
    assert "stepz" in message and "steps = 1.5" in message


def test_errors_about_labels_have_plain_wording():
    assert "constrained-int" not in refused(labels=1.5)


def test_float_for_output_stride_is_refused():
    refused(output_stride=8.0)


def test_seed_too_large_for_torch_is_refused():
    refused(seed=2**70)
    refused(split_seed=2**63)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, [10**6, 10**6]) for key in ("size", "source_size", "crop", "eval_size")],
        *[(key, 10**9) for key in ("batch_source", "batch_labelled", "batch_unlabelled", "accumulate")],
        *[(key, 10**9) for key in ("bank_size", "contrast_pixels", "views")],
        *[(key, 10**400) for key in ("steps", "labels", "hold_out", "eval_every", "checkpoint_every", "bank_start")],
        *[(key, 1e300) for key in ("learning_rate", "weight_decay", "poly_power", "weight_pseudo", "confidence_power")],
        *[(key, value) for key in ("momentum", "learning_rate") for value in (float("nan"), float("inf"), 10**400)],
        ("workers", 5000),
        ("rare_class_sampling", 1e-300),
        *[(key, "x" * 10**6) for key in ("description", "root", "source", "network")],
        *[(key, text) for key in ("description", "root", "target") for text in ("a\0b", "\udcff")],
        *[("source_map", {"a": text}) for text in ("x" * 10**6, "a\0b", "\udcff")],
        ("source_map", {str(number): "a" for number in range(5000)}),
        *[("source", ["gta5", text]) for text in ("x" * 10**6, "a\0b", "\udcff")],
        *[("source_weights", [1, value]) for value in (0, -1, float("nan"), float("inf"), 1e300)],
    ],
)
def test_absurd_values_are_refused_in_a_short_message(key, value):
    message = refused(**{key: value})
    assert key in message and len(message) < 400


def test_many_unknown_keys_give_a_short_message():
    assert len(refused(**{f"key{number}" + "x" * 10_000: 1 for number in range(1000)})) < 20_000


def test_every_text_round_trips_through_toml():
    text = "".join(map(chr, [*range(1, 0x250), 0x2028, 0x202E, 0xFEFF, 0x1F600])) + "\"'\\ \\u0041"
    values = make(description=text).model_dump()
    assert tomllib.loads(toml_text(values))["description"] == text


def test_a_folder_that_is_not_utf8_is_refused(tmp_path, monkeypatch):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    with pytest.raises(SdaError, match="target_root = .*: not UTF-8; rename"):
        make(target_root="data").with_absolute_paths()


def test_a_size_is_a_list_however_it_is_written(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(toml_text({**BASE, "size": "128x176", "crop": "64x96"}) + "[when.crop.96x96]\nsteps = 7\n")
    assert recipe.load(str(path)).size == [128, 176] and recipe.load(str(path)).crop_size == (64, 96)
    assert recipe.load(str(path), {"crop": recipe.parse_value("crop", "96,96")}).steps == 7


# Settings that a short run never reaches


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_reach_all_their_settings(name):
    assert recipe.load(name).unreached() == []


def test_settings_after_the_last_step_are_told():
    far = {"steps": 10, "bank_start": 10, "unlabelled_start": 9, "ramp_steps": 11}
    bank, ramp = make(**UNLABELLED, **far).unreached()
    assert "bank_start = 10 is not before the end of the run (steps = 10), so the memory bank is never filled" in bank
    assert "ramp_steps = 11" in ramp and "raise steps, or lower ramp_steps" in ramp
    mean_teacher = make(**{**UNLABELLED, **far, "method": "mean_teacher", "unlabelled_start": 10}).unreached()
    assert [line.split()[1] for line in mean_teacher] == ["ramp_steps", "unlabelled_start"]
    assert (
        make(**{**UNLABELLED, **far, "weight_contrast": 0.0, "weight_pseudo": 0.0, "classmix_unlabelled": 0.0}).unreached() == []
    )
    assert make(steps=10).unreached() == []


def test_a_loaded_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        make().steps = 3


# Flag over recipe over default


def test_flag_over_recipe_over_default(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(toml_text({**BASE, "seed": 7}))
    plain, changed = recipe.load(str(path)), recipe.load(str(path), {"seed": 9, "labels": "all"})
    assert (plain.seed, plain.labels, plain.workers) == (7, 30, 2)
    assert (changed.seed, changed.labels, changed.workers) == (9, "all", 2)


def test_errors_name_the_file_or_the_flags(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(toml_text({**BASE, "steps": 1.5}))
    with pytest.raises(SdaError, match=r"^\S*mine.toml: steps = 1.5"):
        recipe.load(str(path), {"seed": 3})
    with pytest.raises(SdaError, match="^recipe streets-ssda: steps = 1.5"):
        recipe.load("streets-ssda", {"steps": 1.5})


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("labels", "30", 30),
        ("labels", "all", "all"),
        ("labels", "1.5", 1.5),  # remains a float, which validation rejects
        ("steps", "true", True),
        ("learning_rate", "1e-3", 0.001),
        ("in_memory", "true", True),
        ("size", "[128, 256]", [128, 256]),
        ("crop", "none", None),
        *(
            ("crop", text, [64, 96])
            for text in ("64x96", "64,96", "64, 96", "64 96", "64×96", "64X96", "[64, 96]", "(64, 96)", " 64x96 ")
        ),
        ("source_size", "64x96", [64, 96]),
        ("eval_size", "64x96", [64, 96]),
        ("size", "native", "native"),
        ("crop", "96", 96),
        ("steps", "64x96", "64x96"),
        ("steps", "1" + "0" * 5000, float("inf")),
        ("steps", "3\nseed = 4", "3\nseed = 4"),
        ("steps", "[" * 20_000, "[" * 20_000),
        ("crop", "", None),
        ("weights", "none", "none"),
        ("source", "", ""),
        ("source", '"camvid"', "camvid"),
        ("source", "gta5,synthia", ["gta5", "synthia"]),
        ("source", "gta5, mine/farm.toml", ["gta5", "mine/farm.toml"]),
        ("source", '["gta5", "synthia"]', ["gta5", "synthia"]),
        ("source_root", "", ""),
        ("source_root", "DIR/a,b.h5", ["DIR/a", "b.h5"]),
        ("source_root", "[old] data", "[old] data"),
        ("source_weights", "3,1.5", [3, 1.5]),
        ("source_weights", "[3, 1]", [3, 1]),
        ("source_weights", "3", [3]),
        ("source_weights", "", []),
        ("source_weights", "3,many", [3, "many"]),
        ("split", "30", "30"),
        ("steps", "ten", "ten"),
    ],
)
def test_parse_value_by_type_of_field(field, text, value):
    parsed = recipe.parse_value(field, text)
    assert parsed == value and type(parsed) is type(value)


def test_parse_value_refuses_unknown_fields():
    with pytest.raises(SdaError, match=r"unknown key 'step' \(did you mean 'steps'"):
        recipe.parse_value("step", "3")


# Variants: [when.FIELD.VALUE]


WHEN = """target = "idd_lite"
labels = 10
size = [128, 176]
backbone = "mobilenet_v2"
steps = 5
learning_rate = 0.1
[when.network.deeplabv2]
learning_rate = 0.2
batch_labelled = 7
[when.labels.20]
steps = 9
"""


@pytest.mark.parametrize(
    ("changes", "rate", "batch", "steps"),
    [
        (None, 0.1, 4, 5),
        ({"network": "deeplabv2"}, 0.2, 7, 5),
        ({"network": "deeplabv2", "learning_rate": 0.3, "labels": 20}, 0.3, 7, 9),
        ({"network": "deeplabv3plus", "labels": 30}, 0.1, 4, 5),
    ],
)
def test_variant_overrides_the_file_and_flags_override_it(tmp_path, changes, rate, batch, steps):
    path = tmp_path / "my.toml"
    path.write_text(WHEN)
    loaded = recipe.load(str(path), changes)
    assert (loaded.learning_rate, loaded.batch_labelled, loaded.steps) == (rate, batch, steps)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[when.netwerk.x]\nsteps = 1", r"when: expected tables \[when.FIELD.VALUE\] \(did you mean 'network'"),
        ("[when]\nnetwork = 3", "when: expected tables"),
        ("[when.network]\ndeeplabv2 = 3", r"when.network: expected tables \[when.network.VALUE\]"),
        ("[when.network.unet]\nsteps = 1", r"when.network.unet: network = 'unet': expected one of deeplabv2"),
        ("[when.network.deeplabv2]\nstepz = 1", r"when.network.deeplabv2: unknown key 'stepz'"),
        ("[when.network.deeplabv2]\nsteps = 0", r"when.network.deeplabv2: steps = 0"),
    ],
)
def test_error_in_a_variant_names_the_file(tmp_path, table, says):
    path = tmp_path / "my.toml"
    path.write_text(WHEN.partition("[when")[0] + table)
    with pytest.raises(SdaError, match=f"my.toml: {says}"):
        recipe.load(str(path))


def test_native_size_needs_a_crop():
    assert "leaves images of different sizes: set crop" in refused(size="native")
    loaded = make(size="native", crop=[64, 96])
    assert loaded.image_size is loaded.input_size is None and loaded.crop_size == (64, 96)
    assert make(size="native", crop=[64, 96], eval_size=[128, 128]).input_size == (128, 128)


@pytest.mark.parametrize("text", ['the "best"', '"a" and "b"'])
def test_parse_value_keeps_quotes_inside_strings(text):
    assert recipe.parse_value("description", text) == text


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"source": "camvid", "labels": 0}, "source-only"),
        ({}, "target-only"),
        ({"source": "camvid"}, "joint"),
        (UNLABELLED, "SSL"),
        ({"source": "camvid", "labels": 0, **UNLABELLED}, "UDA"),
        ({"source": "camvid", **UNLABELLED}, "semi-supervised DA"),
        ({"labels": "all"}, "oracle"),
        ({"labels": 0, "split": "list.txt"}, "target-only"),
        ({"labels": 0, "split": "list.txt", "source": "camvid"}, "joint"),
    ],
)
def test_setting_follows_from_the_streams(changes, setting):
    assert make(**changes).setting == setting


def test_a_list_overrides_labels():
    assert make(labels="all", split="list.txt").setting == "target-only"


# Several sources


TWO = {"source": ["gta5", "synthia"]}


def test_each_source_has_its_root_and_its_share():
    loaded = make(**TWO, source_root=["a", "b.h5"], source_weights=[3, 1])
    assert loaded.sources == [
        recipe.Source("gta5", "a", Fraction(3, 4), "source-gta5"),
        recipe.Source("synthia", "b.h5", Fraction(1, 4), "source-synthia"),
    ]
    assert loaded.setting == "joint" and make(**TWO, labels=0).setting == "source-only"
    assert [(each.root, each.share) for each in make(**TWO).sources] == [("", Fraction(1, 2))] * 2
    assert sum(each.share for each in make(**TWO, source_weights=[0.1, 0.7]).sources) == 1
    assert make().sources == [] and make(source_root="a", source_weights=[1, 2]).sources == []


def test_a_list_of_one_source_is_that_source():
    for source in ("gta5", ["gta5"]):
        loaded = make(source=source, source_root=["a"])
        assert (loaded.source, loaded.source_root) == ("gta5", "a")
        assert loaded.sources == [recipe.Source("gta5", "a", Fraction(1), "source")]
    assert make(source=[]).source == make(source="").source == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": ["gta5", "gta5"]}, "source has gta5 twice: name each dataset once"),
        ({"source": ["a/town.toml", "b/town.toml"]}, "source has town twice"),
        ({"source": ["gta5", ""]}, "a name is empty"),
        (
            {**TWO, "source_root": "DATA"},
            "source_root and source differ in length, 1 and 2 (gta5, synthia): give a value for each source, in the same order, "
            'such as source_root = ["DIR/gta5", "DIR/synthia"], or leave it empty',
        ),
        (
            {"source": "gta5", "source_root": ["a", "b"]},
            "source_root and source differ in length, 2 and 1 (gta5): give a value for each",
        ),
        ({**TWO, "source_weights": [1, 2, 3]}, "source_weights and source differ in length, 3 and 2"),
        ({**TWO, "source_weights": [1]}, "such as source_weights = [1, 1]"),
    ],
)
def test_sources_that_do_not_fit_are_refused(changes, says):
    message = refused(**changes)
    assert says in message and "\n" not in message


def test_weights_of_one_source_have_no_effect():
    assert make(source="gta5", source_weights=[2]).ignored_fields(["source_weights"]) == ["source_weights"]
    assert make(**TWO, source_weights=[2, 1]).ignored_fields(["source_weights"]) == []


def test_roots_of_several_sources_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/synthia.h5").touch()
    loaded = make(source=["sets/toy.toml", "synthia"], root="data").with_absolute_paths()
    assert loaded.source == [str(tmp_path / "sets/toy.toml"), "synthia"]
    assert loaded.source_root == [str(tmp_path / "data/toy"), str(tmp_path / "data/synthia.h5")]
    assert loaded.with_absolute_paths() == loaded
    assert recipe.Recipe.model_validate(tomllib.loads(toml_text(loaded.model_dump()))) == loaded
    some = make(**TWO, source_root=["", "~/s"], root="data").with_absolute_paths()
    assert some.source_root == [str(tmp_path / "data/gta5"), str(Path.home() / "s")]
    assert make(**TWO).with_absolute_paths().source_root == ""
    with pytest.raises(SdaError, match="source has toy twice"):
        make(source=["toy.toml", "./toy.toml"]).with_absolute_paths()


def test_a_path_may_contain_a_comma(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old,new").mkdir()
    assert recipe.parse_value("source_root", "old,new") == "old,new"
    assert recipe.parse_value("source_root", '["old,new", "b"]') == ["old,new", "b"]


# Paths


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = make(
        source="sets/toy.toml", source_root="~/toy", target_root="here", split="list.txt", unlabelled="more/images",
        method="class_bank", weights="net.pth",
    ).with_absolute_paths()  # fmt: skip
    assert loaded.source == str(tmp_path / "sets/toy.toml")
    assert loaded.source_root == str(Path.home() / "toy")
    assert loaded.target_root == str(tmp_path / "here")
    assert loaded.split == str(tmp_path / "list.txt")
    assert loaded.unlabelled == str(tmp_path / "more/images")
    assert loaded.weights == str(tmp_path / "net.pth")
    assert loaded.target == "idd_lite" and loaded.classes == "" and loaded.root == ""


def test_names_do_not_become_paths():
    loaded = make(source="camvid", **UNLABELLED).with_absolute_paths()
    assert (loaded.source, loaded.target, loaded.unlabelled, loaded.weights) == ("camvid", "idd_lite", "target", "imagenet")
    assert loaded.source_root == loaded.target_root == ""


def test_a_folder_without_a_slash_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = make(unlabelled="photos", method="class_bank").with_absolute_paths()
    assert loaded.unlabelled == str(tmp_path / "photos")


def test_root_sets_the_dataset_roots_and_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = tmp_path / "data/weights/mobilenet_v2_imagenet.pth"
    local.parent.mkdir(parents=True)
    before = make(source="sets/toy.toml", root="data").with_absolute_paths()
    assert before.source_root == str(tmp_path / "data/toy")
    assert before.target_root == str(tmp_path / "data/idd_lite")
    assert before.weights == "imagenet"
    local.touch()
    assert make(root="data").with_absolute_paths().weights == str(local)
    assert make(root="data").with_absolute_paths().source_root == ""
    assert make(root="data", target_root="other").with_absolute_paths().target_root == str(tmp_path / "other")
    assert make(root="data", weights="none").with_absolute_paths().weights == "none"
    assert make(root="data", backbone="resnet50").with_absolute_paths().weights == "imagenet"


def test_absolute_paths_are_unchanged():
    once = make(source="/sets/toy.toml", root="/data", unlabelled="/more", method="class_bank").with_absolute_paths()
    assert once.with_absolute_paths() == once


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("size = 48x64", 'line 1, column 10); write size = "48x64", in quotes, or size = [48, 64]'),
        ("size = [48 64]  # small", 'write size = "48x64", in quotes, or size = [48, 64]'),
        ("crop = (48, 64)", "or crop = [48, 64]"),
        ("root = /data/x  # here", 'write root = "/data/x", in quotes'),
        ("precision = bfloat16", 'write precision = "bfloat16", in quotes'),
        ("in_memory = True", "write in_memory = true"),
        ("crop = None", "leave crop out: that means its default"),
        ("learning_rate = .5", "write learning_rate = 0.5"),
        ('root = "C:\\data"', "in root, write the text between single quotes"),
        ("size: 48x64", "write size: 48x64 as size = VALUE"),
        ("weights =", "Invalid value (at line 1, column 10)"),
    ],
)
def test_a_value_that_is_not_toml_comes_with_advice(tmp_path, line, says):
    path = tmp_path / "r.toml"
    path.write_text(f"{line}\nsteps = 3\n")
    with pytest.raises(SdaError) as caught:
        recipe.load(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: not valid TOML: ") and says in message and "\n" not in message


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("device", "unknown key 'device' (not a field of recipes but an option of the command: --device cuda)"),
        ("stop_at", "--stop-at STEP"),
        ("resume", "--resume auto"),
        ("seeds", "an option of sda ablate: --seeds"),
        ("lr", "write learning_rate instead"),
        ("batch_size", "write batch_source, batch_labelled or batch_unlabelled instead"),
    ],
)
def test_options_and_names_of_other_programs_are_told(key, says):
    assert says in refused(**{key: 3})
    with pytest.raises(SdaError, match=re.escape(says)):
        recipe.parse_value(key, "3")


def test_advice_is_only_about_unknown_keys():
    assert not recipe.Recipe.advice.keys() & recipe.Recipe.model_fields.keys()
