"""The settings of the methods: fields of every recipe, with their checks. Imports no PyTorch, to keep the command line fast.

Each class has the settings that one method reads, on top of the inherited ones. A recipe has the fields of all methods
(`AllSettings`) and passes its method an instance of the method's own class.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, PlainValidator

from sda import shelf

# No value can make a run need more than any machine has: a slip of the keyboard is told, not tried.
MOST_STEPS = 10**9
Steps = Annotated[int, Field(ge=0, le=MOST_STEPS)]  # a number of steps


def _point(value: object) -> object:
    if isinstance(value, float) and (0 < value < 1 or value in (0, 1)):
        return value if value else 0
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_STEPS:
        return value
    raise ValueError("expected a whole number of steps, or a share of all steps from 0.0 to 1.0, such as 0.2")


Point = Annotated[int | float, PlainValidator(_point)]  # a step, or a number of steps; a float is a share of all steps


def in_steps(point: int | float, steps: int) -> int:
    """Return a step as a number. A float is a share, 0 to 1, of `steps`, the number of all steps."""
    return round(point * steps) if isinstance(point, float) else point


Count = Annotated[int, Field(gt=0, le=10**5)]  # of images, pixels or entries that are in memory at once
Unit = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, le=10**6, allow_inf_nan=False)]


class Reached(NamedTuple):
    """Marks a setting that is a step of the run, with the consequence if the run ends before this step."""

    otherwise: str


class Streams(NamedTuple):
    """The streams of a recipe.

    Attributes:
        alternate: source and labelled target images alternate between steps.
        source_ends: the last steps have no source images.
    """

    source: bool
    labelled: bool
    unlabelled: bool
    alternate: bool = False
    source_ends: bool = False


class SupervisedSettings(shelf.Strict):
    """Settings of `supervised`; all other methods have them too."""

    needs_unlabelled: ClassVar[bool] = False
    has_teacher: ClassVar[bool] = False

    balance_classes: bool = Field(False, description="weight classes by sqrt(median f / f)")
    class_statistics: bool = Field(
        False, description="count the classes in all labelled images first (cached) and start class balancing from the counts"
    )
    classmix_labelled: Unit = Field(0.0, description="probability of ClassMix per labelled image")

    def check(self, method: str, streams: Streams) -> None:
        """Raise ValueError if the settings conflict with each other or with the streams."""
        if self.needs_unlabelled and not streams.unlabelled:
            raise ValueError(f'method {method} needs unlabelled images: set unlabelled = "target" or a folder')
        if streams.unlabelled and not self.needs_unlabelled:
            raise ValueError(f"method {method} cannot use unlabelled images: leave unlabelled empty")

    def ignored(self) -> set[str]:
        """Return the settings of this class that have no effect given the others."""
        return set() if self.balance_classes else {"class_statistics"}

    @property
    def views_per_image(self) -> int:
        """Number of augmented copies of each unlabelled image per step."""
        return 0

    @property
    def mixes_unlabelled(self) -> bool:
        """Whether ClassMix mixes unlabelled images with each other, which takes at least two per step."""
        return False


class TeacherSettings(SupervisedSettings):
    """Settings of all methods with a teacher."""

    needs_unlabelled: ClassVar[bool] = True
    has_teacher: ClassVar[bool] = True

    teacher_momentum: Unit = Field(0.995, description="momentum of the EMA teacher at step 0")
    teacher_schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="schedule of the teacher's momentum: cosine rises to 1 at the last step"
    )
    strong_statistics: bool = Field(
        True, description="strong views update the running statistics of batch norms; false: only labelled images do"
    )
    weight_pseudo: NonNegative = Field(1.0, description="weight of the loss on pseudo-labels")
    color_transfer: Unit = Field(
        0.0,
        description="probability that a source image takes the mean and deviation of a random unlabelled image's colours",
    )
    released: bool = Field(
        False,
        description="reproduce the authors' released code: bank entries have equal weights, the lowest-scored candidates enter "
        "the bank, v2 sums two of its four branches, the teacher stays in train mode and does not copy batch-norm statistics, "
        "strong views update the student's statistics",
    )

    def check(self, method: str, streams: Streams) -> None:
        super().check(method, streams)
        if self.color_transfer and not streams.source:
            raise ValueError("color_transfer changes the colours of source images: set a source, or color_transfer = 0")

    def ignored(self) -> set[str]:
        return super().ignored() | ({"strong_statistics"} if self.released else set())

    @property
    def views_per_image(self) -> int:
        return 1


class DacsSettings(TeacherSettings):
    """Settings of `dacs`."""

    confidence_threshold: Unit = Field(0.968, description="dacs: a pixel counts as confident if its probability exceeds this")

    def check(self, method: str, streams: Streams) -> None:
        super().check(method, streams)
        if not streams.source or streams.alternate or streams.source_ends:
            raise ValueError(
                "method dacs pastes source classes onto target images in every step: set a source, alternate = false, and "
                "target_steps = 0"
            )


class MeanTeacherSettings(TeacherSettings):
    """Settings of `mean_teacher`."""

    classmix_unlabelled: Unit = Field(0.75, description="probability of ClassMix per unlabelled view")
    mix_from: Literal["unlabelled", "labelled", "source", "all"] = Field(
        "unlabelled",
        description="images from which ClassMix pastes onto unlabelled images: other unlabelled images, labelled target images, "
        "source images, or any of these (all)",
    )
    views: Annotated[int, Field(gt=0, le=64)] = Field(2, description="strong views per unlabelled image")
    confidence_power: NonNegative = Field(6.0, description="weight of a pixel in the loss on pseudo-labels: confidence ^ this")
    ramp_steps: Annotated[Point, Reached("the loss on pseudo-labels never has its full weight")] = Field(
        2000, description="steps until the loss on pseudo-labels reaches its full weight"
    )
    weight_entropy: NonNegative = Field(0.01, description="weight of the entropy loss")
    weight_masked: NonNegative = Field(
        0.0, description="weight of the loss on pseudo-labels in a further view with hidden patches (MIC); 0: no such view"
    )
    mask_patch: Count = Field(64, description="side of a hidden patch in pixels")
    mask_ratio: Unit = Field(0.7, description="probability that a patch is hidden")
    channel_dropout: bool = Field(
        False,
        description="strong views of half of the images lose half of the encoder's channels; with two views, the second keeps "
        "what the first loses",
    )
    unlabelled_start: Annotated[Point, Reached("ClassMix of unlabelled images and the contrastive loss never start")] = Field(
        2000, description="first step with the contrastive loss and with ClassMix of unlabelled images"
    )

    def check(self, method: str, streams: Streams) -> None:
        super().check(method, streams)
        if not self.classmix_unlabelled or self.mix_from not in ("source", "labelled"):
            return
        words, option = {"source": ("source images", "source"), "labelled": ("labelled target images", "labels")}[self.mix_from]
        if not getattr(streams, self.mix_from):
            raise ValueError(f"mix_from = {self.mix_from}: the recipe has no {words}: set {option}, or mix_from = unlabelled")
        if streams.alternate:
            raise ValueError(
                f"mix_from = {self.mix_from}: with alternate = true only every other step has {words}: set alternate = false, or "
                "mix_from = all"
            )
        if streams.source_ends and self.mix_from == "source":
            raise ValueError(
                "mix_from = source: the last target_steps steps have no source images: set target_steps = 0, or mix_from = all"
            )

    def ignored(self) -> set[str]:
        found = super().ignored()
        found |= set() if self.classmix_unlabelled else {"unlabelled_start", "mix_from"}
        found |= set() if self.weight_masked else {"mask_patch", "mask_ratio"}
        return found | (set() if self.weight_pseudo or self.weight_masked else {"ramp_steps"})

    @property
    def views_per_image(self) -> int:
        return self.views + (self.weight_masked > 0)

    @property
    def mixes_unlabelled(self) -> bool:
        return self.classmix_unlabelled > 0 and self.mix_from == "unlabelled"


class ClassBankSettings(MeanTeacherSettings):
    """Settings of `class_bank`, the paper's method."""

    weight_contrast: NonNegative = Field(
        0.1, description="weight of the contrastive loss; paper: 0.1 for SSL, 0.2 for semi-supervised DA"
    )
    contrast: Literal["positive", "distribution", "infonce"] = Field(
        "positive",
        description="contrastive loss: positive (the paper's) pulls pixels to their class's entries, and its gradient vanishes "
        "where they are already near; distribution (SePiCo) and infonce also push them away from the other classes",
    )
    contrast_temperature: NonNegative = Field(
        0.0, description="τ of the contrastive loss; 0: 100 for distribution (as SePiCo's code), 0.2 for infonce"
    )
    contrast_on: Literal["both", "labelled", "unlabelled"] = Field(
        "both", description="images whose pixels are contrasted with the bank"
    )
    contrast_pixels: Count = Field(512, description="pixels per class, stream and step in the contrastive loss")
    attention_features: bool = Field(True, description="weight pixels by the attention S_c; false: equal weights")
    attention_bank: bool = Field(True, description="weight bank entries by a separate attention; false: equal weights")
    bank_size: Count = Field(256, description="ψ, feature vectors per class in the bank")
    bank_streams: Literal["source", "target", "both"] = Field("both", description="labelled streams that fill the bank")
    bank_selection: Literal["attention", "random", "recent"] = Field(
        "attention",
        description="candidates that enter the bank: those with the highest S_c, the same number at random, or all (plain FIFO)",
    )
    bank_confidence: Unit = Field(0.95, description="φ, teacher confidence above which a pixel may enter the bank")
    bank_start: Annotated[Point, Reached("the memory bank is never filled")] = Field(
        1000, description="first step that fills the bank"
    )
    bank: str = Field("", description="file to fill the bank from at the start (sda bank RUN --export FILE); empty: start empty")
    correct: Literal["none", "prototype"] = Field(
        "none",
        description="correct pseudo-labels; prototype (ProDA): raise the probability of the classes whose mean entry in the bank "
        "is near the pixel's feature",
    )
    correct_temperature: Annotated[float, Field(gt=0, le=10**6)] = Field(
        1.0, description="τ of the correction by prototypes; a lower τ corrects more strongly"
    )

    @property
    def temperature(self) -> float:
        """τ of the contrastive loss; 1 for `positive`, which has none."""
        return self.contrast_temperature or {"positive": 1.0, "distribution": 100.0, "infonce": 0.2}[self.contrast]

    def check(self, method: str, streams: Streams) -> None:
        super().check(method, streams)
        if not {"source": streams.source, "target": streams.labelled, "both": True}[self.bank_streams]:
            raise ValueError(f"bank_streams = {self.bank_streams}: the recipe has no such labelled stream; use both")
        if self.bank_selection == "attention" and not self.attention_features:
            raise ValueError(
                "bank_selection = attention ranks by S_c, which is not trained with attention_features = false: change one"
            )
        if self.correct != "none" and not self.weight_contrast:
            raise ValueError(
                f"correct = {self.correct} needs the projection, which weight_contrast = 0 does not train: set "
                "weight_contrast > 0, or correct = none"
            )

    def ignored(self) -> set[str]:
        found = super().ignored() | ({"attention_bank"} if self.released or self.contrast == "distribution" else set())
        found |= {"contrast_temperature"} if self.contrast == "positive" else set()
        found |= set() if self.correct != "none" else {"correct_temperature"}
        if self.weight_contrast:
            found.discard("unlabelled_start")
        else:
            found |= ClassBankSettings.model_fields.keys() - MeanTeacherSettings.model_fields.keys() - {"weight_contrast"}
        return found


SETTINGS: dict[str, type[SupervisedSettings]] = {
    "supervised": SupervisedSettings,
    "mean_teacher": MeanTeacherSettings,
    "class_bank": ClassBankSettings,
    "dacs": DacsSettings,
}


class AllSettings(ClassBankSettings, DacsSettings):
    """The settings of all methods."""
