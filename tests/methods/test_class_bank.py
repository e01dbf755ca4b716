"""The class-wise memory bank method: steps against a slow re-implementation, gradient flow, and state."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sda.data.batch import Batch, Labelled
from sda.methods.base import Task
from sda.methods.class_bank import ClassBankMethod
from sda.methods.mean_teacher import MeanTeacher
from sda.methods.parts.augment import Augment, Strength
from sda.methods.settings import ClassBankSettings, MeanTeacherSettings, Streams

NOTHING = Strength(flip=0, jitter=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0, scale=0)
CLASSES, SIDE = 4, 16
IGNORE = 255
BEFORE_BANK, BANK, CONTRAST = 0, 2, 4  # steps
EARLY = {"sup", "pseudo", "entropy"}
LATE = EARLY | {"contrast_l", "contrast_u"}


def unaugmented(method):
    """Return the method without augmentation."""
    method.weak = method.strong = Augment(NOTHING)
    return method


def settings(**changes):
    """The settings of the paper, except for the sizes and the start steps."""
    return ClassBankSettings(
        **{
            "balance_classes": True, "classmix_labelled": 0.0, "classmix_unlabelled": 0.0, "views": 2,
            "teacher_momentum": 0.995, "teacher_schedule": "cosine", "released": False, "confidence_power": 6.0,
            "ramp_steps": 5, "weight_pseudo": 1.0, "strong_statistics": False,
            "weight_entropy": 0.01, "weight_contrast": 0.1, "bank_size": 12, "bank_streams": "both", "bank_confidence": 0.95,
            "bank_start": BANK, "unlabelled_start": CONTRAST, "contrast_pixels": 10_000, "contrast_on": "both",
            "attention_features": True, "attention_bank": True, "bank_selection": "attention", **changes,
        }
    )  # fmt: skip


@pytest.fixture
def make(fake_network):
    def make(stride=2, sharpness=20.0, labelled_images=6, **changes):
        torch.manual_seed(0)
        task = Task(CLASSES, steps=20, labelled_images=labelled_images)
        return ClassBankMethod(fake_network(stride, sharpness), settings(**changes), task).train()

    return make


@pytest.fixture
def make_plain(make):
    """`make` without augmentation."""
    return lambda *sizes, **changes: unaugmented(make(*sizes, **changes))


@pytest.fixture
def scene(paint):
    """Labelled images in the colours of their classes with a little noise; some labels are ignored or wrong."""

    def scene(seed, count=2, classes=(0, 1, 2, 3), cell=4, ignored=0.1, wrong=0.1):
        draw = torch.Generator().manual_seed(seed)
        cells = torch.tensor(classes)[torch.randint(len(classes), (count, SIDE // cell, SIDE // cell), generator=draw)]
        truth = cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        images = (paint(truth).float() + 24 * torch.randn(count, 3, SIDE, SIDE, generator=draw)).clamp(0, 255).byte()
        labels = truth.clone()
        labels[torch.rand(labels.shape, generator=draw) < wrong] = classes[0]
        labels[torch.rand(labels.shape, generator=draw) < ignored] = IGNORE
        return Labelled(images, labels.byte())

    return scene


@pytest.fixture
def batches(scene):
    """One batch for each setting."""
    source, target, unlabelled = scene(1), scene(2, 1), scene(3).images
    return {
        "ssl": Batch(None, target, unlabelled),
        "uda": Batch(source, None, unlabelled),
        "ssda": Batch(source, target, unlabelled),
    }


def record_inputs(network):
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def record_outputs(network):
    seen = []
    network.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    return seen


def train(method, batch, steps, rate=0.01):
    """Take a few steps of plain SGD, seeded by the step."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], rate)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sum(method.step(batch, step).values()).backward()
        optimizer.step()
        method.follow(step)


# --- slow re-implementation: no augmentation, no ClassMix, all pixels in the contrastive loss ---


def slow_mlp(mlp, group, x, batch_statistics):
    """Apply Linear-BN-LeakyReLU-Linear of one group to rows (N, D)."""
    h = x @ mlp.weight1[group] + mlp.bias1[group]
    mean, var = mlp.norm.running_mean[group], mlp.norm.running_var[group]
    if batch_statistics:
        mean, var = h.mean(0), ((h - h.mean(0)) ** 2).mean(0)
    h = (h - mean) / (var + 1e-5).sqrt() * mlp.norm.weight[group] + mlp.norm.bias[group]
    return F.leaky_relu(h, mlp.slope) @ mlp.weight2[group] + mlp.bias2[group]


def slow_cross_entropy(logits, labels, alpha, weights):
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    terms = [
        -alpha[y] * weights[b, i, j] * log_p[b, y, i, j]
        for b in range(len(labels))
        for i in range(SIDE)
        for j in range(SIDE)
        if (y := labels[b, i, j].item()) != IGNORE
    ]
    return sum(terms) / len(terms)


def slow_alpha(shares):
    present = sorted(share for share in shares.tolist() if share > 0)
    median = (present[(len(present) - 1) // 2] + present[len(present) // 2]) / 2
    return [(median / share) ** 0.5 if share > 0 else 1.0 for share in shares.tolist()]


def slow_shrink(labels, stride):
    """Return the label at the centre of each cell."""
    return labels[:, stride // 2 :: stride, stride // 2 :: stride]


def slow_contrast(method, features, labels, queues):
    """Attention sees p detached.

    positive: (1/C) Σ_c mean over pairs of w_p w_z (1 - cos(p, z)). infonce: mean over pixels of w_p times the mean over positives
    of w_z (-log(e^s / (e^s + Σ w_n e^s_n))). distribution: mean over pixels of w_p (CE(a, y) + ½ f²·Σ_y/τ²).
    """
    rows, y = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]), labels.reshape(-1)
    rows, y = rows[y != IGNORE], y[y != IGNORE]
    p = slow_mlp(method.q, 0, slow_mlp(method.g, 0, rows, True), True)
    kind, tau = method.settings.contrast, method.settings.contrast_temperature
    bank, moments = {}, {}
    for c, queue in enumerate(queues):
        if queue:
            z_c = torch.stack([z for z, _ in queue])
            s_z = torch.ones(len(z_c))
            if method.settings.attention_bank and not method.settings.released and kind != "distribution":
                s_z = slow_mlp(method.S_bank, c, z_c, True).sigmoid()[:, 0]
            units = z_c / z_c.norm(dim=1, keepdim=True)
            bank[c] = (units, len(z_c) * s_z / s_z.sum())
            moments[c] = (units.mean(0), ((units - units.mean(0)) ** 2).mean(0))
    total, count = torch.zeros(()), 0
    for c in bank:
        p_c = p[y == c]
        if len(p_c) == 0:
            continue
        s_p = torch.ones(len(p_c))
        if method.settings.attention_features:
            s_p = slow_mlp(method.S, c, p_c.detach(), True).sigmoid()[:, 0]
        w_p = len(p_c) * s_p / s_p.sum()
        p_c = p_c / p_c.norm(dim=1, keepdim=True)
        z_c, w_z = bank[c]
        if kind == "positive":
            total = total + (w_p[:, None] * w_z[None, :] * (1 - p_c @ z_c.T)).mean()
            continue
        for f, w in zip(p_c, w_p, strict=True):
            if kind == "infonce":
                negatives = sum((w_n * (z_n @ f / tau).exp()).sum() for k, (z_n, w_n) in bank.items() if k != c)
                s = (z_c @ f / tau).exp()
                loss = (w_z * -(s / (s + negatives)).log()).mean()
            else:
                a = {k: f @ mean / tau + (f * f) @ variance / (2 * tau**2) for k, (mean, variance) in moments.items()}
                cross_entropy = -(a[c].exp() / sum(each.exp() for each in a.values())).log()
                loss = cross_entropy + (f * f) @ moments[c][1] / (2 * tau**2)
            total, count = total + w * loss, count + 1
    return total / (CLASSES if kind == "positive" else max(count, 1))


def slow_correction(method, features, queues):
    """ω_k = softmax_k(-‖f - η_k‖/τ) at each cell; the mean of the others for classes without entries; 1 without any."""
    omega = torch.ones(len(features), CLASSES, *features.shape[2:])
    prototypes = {}
    for c, queue in enumerate(queues):
        if queue:
            prototypes[c] = torch.stack([z / z.norm() for z, _ in queue]).mean(0)
    if not prototypes:
        return omega
    z = slow_mlp(method.g_teacher.model, 0, features.permute(0, 2, 3, 1).flatten(0, 2), method.settings.released)
    z = z.reshape(*features.permute(0, 2, 3, 1).shape[:3], -1)
    for b in range(len(z)):
        for i in range(z.shape[1]):
            for j in range(z.shape[2]):
                f = z[b, i, j] / z[b, i, j].norm()
                distance = torch.stack([(f - eta).norm() for eta in prototypes.values()])
                omega[b, :, i, j] = 1 / len(prototypes)
                omega[b, list(prototypes), i, j] = (-distance / method.settings.correct_temperature).softmax(0)
    return omega


def large(logits):
    return F.interpolate(logits, (SIDE, SIDE), mode="bilinear")


def slow_step(method, batch, step, queues, mean_shares, stride):
    """Return the losses of one step. Update `queues` (of (z, domain) per class, newest first) and `mean_shares`."""
    s = method.settings
    parts = [(part, domain) for part, domain in ((batch.source, 0), (batch.labelled, 1)) if part is not None]
    x_l = torch.cat([part.images for part, _ in parts]) / 255
    y_l = torch.cat([part.labels for part, _ in parts]).long()
    domain = torch.cat([torch.full((len(part.images),), domain) for part, domain in parts])
    x_u = batch.unlabelled / 255
    teacher = method.teacher.model
    with torch.no_grad():
        logits, f = teacher(x_u)
        probability = large(logits).softmax(1)
        if s.correct != "none" and step >= s.unlabelled_start:
            probability = probability * large(slow_correction(method, f, queues))
            probability = probability / probability.sum(1, keepdim=True)
        confidence, y_u = probability.max(1)
        if step >= s.bank_start:
            logits, f = teacher(x_l)
            y, p = slow_shrink(y_l, stride), logits.softmax(1)
            rows, found = [], []  # features and (class, domain) of the candidates
            for b in range(len(y)):
                if s.bank_streams != "both" and domain[b] != ["source", "target"].index(s.bank_streams):
                    continue
                for i in range(y.shape[1]):
                    for j in range(y.shape[2]):
                        c = y[b, i, j].item()
                        if c != IGNORE and p[b, :, i, j].argmax() == c and p[b, c, i, j] > s.bank_confidence:
                            rows.append(f[b, :, i, j])
                            found.append((c, domain[b].item()))
            z = slow_mlp(method.g_teacher.model, 0, torch.stack(rows), s.released)  # released: the teacher is in train mode
            most = len(y) * max(1, round(s.bank_size / 6))
            for c, queue in enumerate(queues):
                mine = [k for k, (class_, _) in enumerate(found) if class_ == c]
                scores = slow_mlp(method.S, c, z[mine], True)[:, 0].tolist() if mine else []
                new = [(score, z[k], found[k][1]) for score, k in zip(scores, mine, strict=True)]
                new.sort(key=lambda entry: entry[0] if s.released else -entry[0])
                queue[:] = ([(z, d) for _, z, d in new[:most]] + queue)[: s.bank_size]

    x_a, y_a, w_a = torch.cat([x_u, x_u]), torch.cat([y_u, y_u]), torch.cat([confidence, confidence]) ** s.confidence_power
    (logits_l, f_l), (logits_a, f_a) = method.student(x_l), method.student(x_a)
    logits_l, logits_a = large(logits_l), large(logits_a)
    counts = torch.stack([(y_l == c).sum() + (y_a == c).sum() for c in range(CLASSES)])
    mean_shares += (counts / counts.sum() - mean_shares) / (step + 1)  # far from the window of the moving average
    alpha = slow_alpha(mean_shares)
    p = logits_a.softmax(1)
    t = min(step / s.ramp_steps, 1)
    losses = {
        "sup": slow_cross_entropy(logits_l, y_l, alpha, torch.ones(y_l.shape)),
        "pseudo": math.exp(-5 * (1 - t) ** 2) * slow_cross_entropy(logits_a, y_a, alpha, w_a),
        "entropy": 0.01 * -(p * p.log2()).sum(1).mean() / math.log2(CLASSES),
    }
    if step >= s.unlabelled_start and s.contrast_on != "unlabelled":
        losses["contrast_l"] = 0.1 * slow_contrast(method, f_l, slow_shrink(y_l, stride), queues)
    if step >= s.unlabelled_start and s.contrast_on != "labelled":
        losses["contrast_u"] = 0.1 * slow_contrast(method, f_a, slow_shrink(y_a, stride), queues)
    return losses


@pytest.mark.parametrize(
    ("streams", "switches"),
    [
        ("ssl", {"bank_streams": "target"}),
        ("uda", {"bank_streams": "source"}),
        ("ssda", {}),
        pytest.param("ssda", {"bank_streams": "target"}, marks=pytest.mark.slow),
        ("ssda", {"attention_bank": False, "contrast_on": "labelled"}),
        ("ssda", {"attention_features": False, "attention_bank": False, "contrast_on": "unlabelled"}),
        ("ssl", {"teacher_schedule": "constant", "teacher_momentum": 0.5, "confidence_power": 0.0}),
        ("ssda", {"released": True, "confidence_power": 1.0}),
        ("ssda", {"contrast": "distribution", "contrast_temperature": 0.5}),
        ("ssl", {"contrast": "infonce", "contrast_temperature": 0.1, "bank_streams": "target"}),
        ("ssda", {"contrast": "infonce", "contrast_temperature": 0.2, "correct": "prototype", "correct_temperature": 0.5}),
        ("uda", {"correct": "prototype", "released": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "paper",
)
def test_steps_follow_the_equations(streams, switches, make_plain, batches):
    """Compare every loss of every step, the gradient of their sum in every parameter, and the ordered content of the bank."""
    stride, batch = 2, batches[streams]
    method = make_plain(stride, sharpness=5.0, **switches)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.01)
    queues, mean_shares = [[] for _ in range(CLASSES)], torch.zeros(CLASSES)
    for step in range(8):
        reference = copy.deepcopy(method)
        expected = slow_step(reference, batch, step, queues, mean_shares, stride)
        losses = method.step(batch, step)
        assert set(losses) == set(expected) and set(losses) >= EARLY
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name], rtol=1e-3, atol=1e-6, msg=f"{name} of step {step}")
        for c, queue in enumerate(queues):
            filled = method.bank.valid[c]
            assert filled.sum() == len(queue)
            if queue:
                torch.testing.assert_close(
                    method.bank.features[c][filled], torch.stack([z for z, _ in queue]), rtol=1e-3, atol=1e-4
                )
                assert method.bank.domain[c][filled].tolist() == [d for _, d in queue]

        optimizer.zero_grad()
        sum(losses.values()).backward()
        sum(expected.values()).backward()
        mine, theirs = dict(method.named_parameters()), dict(reference.named_parameters())
        for name, parameter in mine.items():
            assert (parameter.grad is None) == (theirs[name].grad is None), name
            if parameter.grad is not None:
                # relative to the norm: in float32 a hidden unit may be on the other side of its ReLU
                apart = (parameter.grad - theirs[name].grad).norm()
                assert apart < 0.02 * theirs[name].grad.norm() + 5e-7, f"gradient of {name} at step {step}"
        optimizer.step()
        method.follow(step)
    assert max(len(queue) for queue in queues) == method.settings.bank_size, "a queue ran full"


# --- timeline ---


@pytest.mark.parametrize("streams", ["ssl", "uda", "ssda"])
def test_each_loss_begins_at_its_start_step(streams, make, batches):
    """With augmentation, the bank fills from `bank_start`, and contrast begins at `unlabelled_start`."""
    method = make(classmix_labelled=0.25, classmix_unlabelled=0.75)
    filled = []
    for step in range(CONTRAST + 2):
        losses = method.step(batches[streams], step)
        assert set(losses) == (LATE if step >= CONTRAST else EARLY)
        assert all(loss.isfinite() and loss.shape == () for loss in losses.values())
        filled.append(method.diagnostics()["bank_fill"])
        method.follow(step)
    assert filled[:BANK] == [0] * BANK
    assert filled[BANK] > 0
    assert filled[BANK:] == sorted(filled[BANK:])


def test_without_contrast_the_bank_stays_empty(make, batches):
    method = make(weight_contrast=0.0)
    assert set(method.step(batches["ssda"], CONTRAST)) == EARLY
    assert not method.bank.valid.any()


def test_weights_of_the_losses(make_plain, batches):
    """L = L_sup + w_p ramp L_pseudo + w_e L_ent + λ_c L_contr: each weight scales only its own loss."""
    base = {"weight_pseudo": 1.0, "weight_entropy": 1.0, "weight_contrast": 1.0, "ramp_steps": 10, "bank_start": 0}
    scaled = {**base, "weight_pseudo": 2.0, "weight_entropy": 3.0, "weight_contrast": 5.0}
    ones, others = (make_plain(**weights).step(batches["ssda"], CONTRAST) for weights in (base, scaled))
    ratio = {"sup": 1, "pseudo": 2, "entropy": 3, "contrast_l": 5, "contrast_u": 5}
    assert {name: (others[name] / ones[name]).item() for name in others} == pytest.approx(ratio)
    # ramp: exp(-5·(1 - 4/10)²) of its final value
    done = make_plain(**{**base, "ramp_steps": 4}).step(batches["ssda"], CONTRAST)
    assert (ones["pseudo"] / done["pseudo"]).item() == pytest.approx(math.exp(-5 * 0.36))


@pytest.mark.parametrize("views_of_each", [1, 2, 3])
def test_unlabelled_classmix_starts_at_unlabelled_start(views_of_each, make_plain, batches):
    """Before that step, the student sees `views` exact copies of the unlabelled images; from then on, mixed ones."""
    method, batch = make_plain(classmix_unlabelled=1.0, views=views_of_each), batches["ssda"]
    copies = torch.cat([batch.unlabelled / 255] * views_of_each)
    seen = record_inputs(method.student)
    for step in (CONTRAST - 1, *[CONTRAST] * 8):
        method.step(batch, step)
    before, *after = seen[1::2]  # the strong views come after the labelled images
    assert before.shape == copies.shape
    torch.testing.assert_close(before, copies, atol=1e-4, rtol=0)
    assert any(((images - copies).abs() > 1e-2).flatten(1).any(1).all() for images in after)


def test_unlabelled_classmix_mixes_different_images(make_plain, batches):
    """With two images, two views of each and probability 1, every view contains a part of the other image."""
    method, batch = make_plain(classmix_unlabelled=1.0), batches["ssda"]
    copies = torch.cat([batch.unlabelled / 255] * 2)
    seen = record_inputs(method.student)
    for _ in range(12):
        method.step(batch, CONTRAST)
    assert all(((images - copies).abs() > 1e-2).flatten(1).any(1).all() for images in seen[1::2])


def test_views_of_an_image_are_augmented_independently(make, batches):
    method, batch = make(views=3), batches["ssda"]
    seen = record_inputs(method.student)
    method.step(batch, 0)
    one, two, three = seen[1].chunk(3)
    for a, b in ((one, two), (one, three), (two, three)):
        assert ((a - b).abs() > 1e-2).flatten(1).any(1).all()


def test_labelled_classmix_is_active_from_the_first_step(make_plain, batches):
    method, batch = make_plain(classmix_labelled=1.0), batches["ssda"]
    seen = record_inputs(method.student)
    method.step(batch, 0)
    originals = torch.cat([batch.source.images, batch.labelled.images]) / 255
    assert ((seen[0] - originals).abs() > 1e-2).flatten(1).any(1).all()
    torch.testing.assert_close(seen[1], torch.cat([batch.unlabelled] * 2) / 255, atol=1e-4, rtol=0)


def test_networks_see_images_from_0_to_1(make, batches):
    """Networks normalise their input themselves."""
    method, batch = unaugmented(make()), batches["ssda"]
    student, teacher = record_inputs(method.student), record_inputs(method.teacher.model)
    method.step(batch, BANK)
    x_l, x_u = torch.cat([batch.source.images, batch.labelled.images]), batch.unlabelled
    for images, expected in [(student[0], x_l), (student[1], torch.cat([x_u, x_u])), (teacher[0], x_u), (teacher[1], x_l)]:
        torch.testing.assert_close(images, expected / 255, atol=1e-4, rtol=1e-4)


def test_batch_is_not_modified(make, batches):
    batch = batches["ssda"]
    before = [x.clone() for x in (batch.source.images, batch.source.labels, batch.unlabelled)]
    make(classmix_labelled=1.0, classmix_unlabelled=1.0).step(batch, CONTRAST)
    assert all(
        torch.equal(x, y) for x, y in zip(before, (batch.source.images, batch.source.labels, batch.unlabelled), strict=True)
    )


# --- source pixels in the loss and the bank ---


def test_source_pixels_reach_the_loss(make_plain, batches):
    """Changing the label or the colour of one source pixel changes the supervised loss."""
    batch = batches["ssda"]
    labels, images = batch.source.labels.clone(), batch.source.images.clone()
    labels[1, 5, 5] = (labels[1, 5, 5] + 1) % CLASSES
    images[1, :, 5, 5] = 255 - images[1, :, 5, 5]
    first = make_plain().step(batch, 0)["sup"]
    for source in (Labelled(batch.source.images, labels), Labelled(images, batch.source.labels)):
        changed = make_plain().step(Batch(source, batch.labelled, batch.unlabelled), 0)["sup"]
        assert abs(changed - first).item() > 1e-5


@pytest.mark.parametrize(("bank_streams", "domains"), [("source", {0}), ("target", {1}), ("both", {0, 1})])
def test_bank_streams_limits_the_domains_in_the_bank(bank_streams, domains, make_plain, batches):
    method = make_plain(bank_streams=bank_streams, bank_size=60)
    method.step(batches["ssda"], BANK)
    filled = method.bank.valid
    assert filled.any(dim=1).all()
    assert set(method.bank.domain[filled].tolist()) == domains
    share = (method.bank.domain[filled] == 0).float().mean().item()
    assert method.diagnostics()["bank_source"] == pytest.approx(share)


@pytest.mark.parametrize(("bank_streams", "allowed"), [("source", {0, 1}), ("target", {2, 3})])
def test_bank_streams_applies_to_pixels_pasted_by_classmix(bank_streams, allowed, make_plain, scene):
    """The source has classes 0 and 1, the target 2 and 3. With one stream, the bank must not contain the classes of the other."""
    batch = Batch(scene(1, classes=(0, 1)), scene(2, classes=(2, 3)), scene(3).images)
    method = make_plain(bank_streams=bank_streams, classmix_labelled=1.0)
    for step in range(BANK, CONTRAST):
        torch.manual_seed(step)
        method.step(batch, step)
    filled = {c for c in range(CLASSES) if method.bank.valid[c].any()}
    assert filled == allowed


@pytest.mark.parametrize("streams", ["ssl", "ssda"])
def test_bank_admits_pixels_where_the_teacher_is_right_and_certain(streams, make_plain, batches, scene):
    """With wrong labels, or if the teacher is uncertain, the bank stays empty."""
    good = batches[streams]
    wrong = scene(2, wrong=0.0)
    wrong.labels[wrong.labels != IGNORE] += 1
    wrong.labels[wrong.labels == CLASSES] = 0
    bad = Batch(wrong if good.source else None, wrong, good.unlabelled)
    for method, batch, admitted in [
        (make_plain(), good, True),
        (make_plain(), bad, False),
        (make_plain(sharpness=0.3), good, False),
    ]:
        method.step(batch, BANK)
        assert method.bank.valid.any().item() == admitted


@pytest.mark.parametrize(
    ("bank_size", "labelled_images", "each"), [(24, 6, 4), (25, 6, 4), (27, 6, 4), (24, 1000, 1), (24, 48, 1)]
)
def test_number_of_admissions_per_step(bank_size, labelled_images, each, make_plain, scene):
    """B·max(1, round(ψ/|X_l|)) pixels per class and step, if there are enough; here B = 2."""
    batch = Batch(None, scene(1, classes=(1,), ignored=0, wrong=0), scene(3).images)
    method = make_plain(bank_size=bank_size, labelled_images=labelled_images)
    for step in (BANK, BANK + 1):
        method.step(batch, step)
        assert method.bank.valid.sum(dim=1).tolist() == [0, 2 * each * (step - BANK + 1), 0, 0]


# --- selection of pixels for the bank ---


@pytest.fixture
def entrants(make_plain, scene):
    """The scores S_c of all candidates of class 1 (more than 50) and of the 8 that the bank admits."""

    def entrants(**changes):
        batch = Batch(None, scene(1, classes=(1,), ignored=0, wrong=0), scene(3).images)
        method, seen = make_plain(bank_size=24, labelled_images=6, contrast_pixels=2, **changes), []
        scores = method._scores
        method._scores = lambda z, classes: seen.append(z[classes == 1]) or scores(z, classes)
        method.step(batch, BANK)
        [z] = seen
        everyone = slow_mlp(method.S, 1, z, True)[:, 0]
        rows = [(z == entry).all(dim=1).nonzero()[0, 0] for entry in method.bank.features[1, method.bank.valid[1]]]
        return everyone.sort().values, everyone[torch.stack(rows)].sort().values

    return entrants


def test_the_bank_admits_the_highest_scores(entrants):
    everyone, entered = entrants()
    assert len(everyone) > 50
    torch.testing.assert_close(entered, everyone[-8:])


def test_released_the_bank_admits_the_lowest_scores(entrants):
    everyone, entered = entrants(released=True)
    torch.testing.assert_close(entered, everyone[:8])


def test_random_selection_ignores_the_scores(entrants):
    everyone, entered = entrants(bank_selection="random")
    assert len(entered) == 8
    places = torch.searchsorted(everyone, entered - 1e-6)
    assert places.min() < len(everyone) / 2 < places.max()


def test_recent_selection_fills_the_queue_in_one_step(entrants):
    _, entered = entrants(bank_selection="recent")
    assert len(entered) == 24


# --- switches ---


def test_contrast_trains_the_attention_of_the_bank_if_it_is_on(make, batches):
    for changes, learns in [({}, True), ({"attention_bank": False}, False), ({"released": True}, False)]:
        method = make(bank_start=0, **changes)
        losses = method.step(batches["ssda"], CONTRAST)
        (losses["contrast_l"] + losses["contrast_u"]).backward()
        grads = [parameter.grad for parameter in method.S_bank.parameters()]
        assert all((grad is not None and grad.any().item()) == learns for grad in grads[:2]), changes


def test_each_contrast_trains_the_attention_that_it_uses(make, batches):
    for contrast, learns in [("positive", True), ("distribution", False), ("infonce", True)]:
        method = make(bank_start=0, contrast=contrast)
        assert ("attention_bank" in method.settings.ignored()) == (not learns)
        losses = method.step(batches["ssda"], CONTRAST)
        (losses["contrast_l"] + losses["contrast_u"]).backward()
        assert all(parameter.grad.any() for parameter in method.S.parameters() if parameter is not method.S.bias2)
        assert (method.S_bank.weight1.grad is not None) == learns


def test_temperatures_of_the_contrasts():
    for contrast, tau in [("distribution", 100.0), ("infonce", 0.2)]:
        assert settings(contrast=contrast).temperature == tau
        assert settings(contrast=contrast, contrast_temperature=0.7).temperature == 0.7
    assert "contrast_temperature" in settings().ignored() and "contrast_temperature" not in settings(contrast="infonce").ignored()


def test_the_correction_needs_the_bank():
    streams = Streams(source=True, labelled=True, unlabelled=True)
    settings(correct="prototype").check("class_bank", streams)
    with pytest.raises(ValueError, match="correct = prototype needs the projection, which weight_contrast = 0 does not train"):
        settings(correct="prototype", weight_contrast=0.0).check("class_bank", streams)
    assert "correct_temperature" in settings().ignored()
    assert "correct_temperature" not in settings(correct="prototype").ignored()


def test_the_correction_changes_uncertain_pseudo_labels_only_once_the_bank_has_entries(make_plain, batches):
    """With a teacher that knows nothing, pseudo-labels follow the nearest prototype."""
    method = make_plain(correct="prototype", stride=1)
    x_u = batches["ssda"].unlabelled / 255
    plain = MeanTeacher.pseudo_labels(method, x_u, CONTRAST)
    for corrected, raw in zip(method.pseudo_labels(x_u, CONTRAST), plain, strict=True):
        torch.testing.assert_close(corrected, raw)
    method.step(batches["ssda"], BANK)
    with torch.no_grad():
        for parameter in (*method.teacher.model.classify.parameters(), method.teacher.model.sharpness):
            parameter.zero_()  # all classes are equally likely
    uniform = method.pseudo_labels(x_u, CONTRAST - 1)[1]
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / CLASSES), msg="corrected before the projection is trained")
    labels, confidence = method.pseudo_labels(x_u, CONTRAST)
    z = slow_mlp(method.g_teacher.model, 0, method.teacher(x_u)[1].permute(0, 2, 3, 1).flatten(0, 2), False)
    units = z / z.norm(dim=1, keepdim=True)
    eta = torch.stack([F.normalize(method.bank.features[c][method.bank.valid[c]], dim=1).mean(0) for c in range(CLASSES)])
    distance = (units[:, None] - eta).norm(dim=2)
    assert torch.equal(labels.flatten(), distance.argmin(1)) and len(labels.unique()) == CLASSES
    torch.testing.assert_close(confidence.flatten(), (-distance).softmax(1).amax(1))


def test_contrast_on_selects_the_streams(make, batches):
    for on, names in [("labelled", {"contrast_l"}), ("unlabelled", {"contrast_u"}), ("both", {"contrast_l", "contrast_u"})]:
        assert set(make(contrast_on=on).step(batches["ssda"], CONTRAST)) == EARLY | names


@pytest.mark.parametrize("streams", ["ssl", "uda", "ssda"])
def test_without_contrast_it_equals_mean_teacher(streams, make, batches, fake_network):
    """With augmentation, losses and network are the same after some steps."""
    shared = {"classmix_labelled": 0.25, "classmix_unlabelled": 0.75}
    whole = make(weight_contrast=0.0, **shared)
    torch.manual_seed(0)
    s = {name: getattr(whole.settings, name) for name in MeanTeacherSettings.model_fields}
    plain = MeanTeacher(fake_network(2, 20.0), MeanTeacherSettings(**s), Task(CLASSES, 20, 6)).train()
    for method in (whole, plain):
        train(method, batches[streams], CONTRAST + 2)
    states = whole.student.state_dict(), plain.student.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    torch.manual_seed(0)
    losses = plain.step(batches[streams], CONTRAST)
    torch.manual_seed(0)
    assert losses == whole.step(batches[streams], CONTRAST) and set(losses) == EARLY


def test_contrast_pixels_limits_the_pixels_per_class(make, batches):
    """`contrast_pixels` is the maximum number of pixels per class in the contrast."""
    method = make(contrast_pixels=3, bank_size=5)
    seen = []
    method.S.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    method.step(batches["ssda"], BANK)
    assert method.bank.valid.any()
    losses = method.step(batches["ssda"], CONTRAST)
    assert losses["contrast_l"] > 0
    assert seen == [(CLASSES, 3, 256)] * 2


# --- gradients ---


def test_gradients_reach_attention_but_not_the_teacher(make, batches):
    """Both sets of attention MLPs get gradients for every class that has pixels; heads and student do too."""
    method = make(bank_start=0)
    assert method.S is not method.S_bank
    sum(method.step(batches["ssda"], CONTRAST).values()).backward()
    for mlp in (method.S, method.S_bank):
        assert mlp.weight1.grad.flatten(1).abs().amax(1).min() > 0
        assert mlp.weight2.grad.flatten(1).abs().amax(1).min() > 0
    for module in (method.student, method.g, method.q):
        assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in method.teacher.parameters())
    assert not any(buffer.requires_grad for buffer in method.buffers())


def test_attention_passes_no_gradient_to_the_features(make_plain, batches):
    """Attention is replaced by a steep function of one feature. Its values change the loss; its gradient stops there."""

    class Reader(nn.Module):
        slope = 0.0

        def forward(self, x, valid):
            assert not x.requires_grad
            return 0.5 * x[..., :1]

        def of_rows(self, x, group):
            return self(x, group)

    method = make_plain(bank_start=0)
    method.step(batches["ssda"], CONTRAST - 1)
    plain = method.step(batches["ssda"], CONTRAST)["contrast_l"].item()
    method.S = Reader()
    assert method.step(batches["ssda"], CONTRAST)["contrast_l"].item() != plain


def test_ignored_pixels_get_no_gradient(make_plain, batches):
    """At full resolution, ignored pixels take no part in the supervised loss and the contrast."""
    method, batch = make_plain(stride=1, bank_start=0), batches["ssda"]
    outputs = record_outputs(method.student)
    losses = method.step(batch, CONTRAST)
    labelled, strong = outputs
    ignored = torch.cat([batch.source.labels, batch.labelled.labels]) == IGNORE
    assert ignored.any()
    for loss, output in (("sup", 0), ("contrast_l", 1)):
        inputs = (labelled[output], strong[output])
        grad, none = torch.autograd.grad(losses[loss], inputs, retain_graph=True, allow_unused=True)
        assert (grad.abs().sum(1)[ignored] == 0).all()
        assert (grad.abs().sum(1)[~ignored] > 0).all()
        assert none is None
    for loss, output in (("pseudo", 0), ("entropy", 0), ("contrast_u", 1)):
        inputs = (labelled[output], strong[output])
        none, grad = torch.autograd.grad(losses[loss], inputs, retain_graph=True, allow_unused=True)
        assert none is None
        assert (grad != 0).any()


def test_padding_of_strong_views_gets_no_gradient(make, batches):
    """In half-size views, three quarters are padding, which takes no part in pseudo-label loss, entropy and contrast."""
    results = []

    class Recording(Augment):
        def __call__(self, *arguments):
            results.append(super().__call__(*arguments))
            return results[-1]

    method = make(stride=1, bank_start=0)
    method.strong = Recording(Strength(0, 0, 0, 0, 0, 0, 0, 1, scale_range=(0.5, 0.5)))
    outputs = record_outputs(method.student)
    losses = method.step(batches["ssda"], CONTRAST)
    padding, weights = torch.cat([labels for _, labels, _ in results]) == IGNORE, torch.cat([result[2] for result in results])
    assert 0.6 < padding.float().mean() < 0.85
    assert (weights[padding] == 0).all()
    for name, output in (("pseudo", 0), ("entropy", 0), ("contrast_u", 1)):
        (grad,) = torch.autograd.grad(losses[name], outputs[1][output], retain_graph=True)
        grad = grad.abs().sum(1)
        assert (grad[padding] == 0).all(), name
        assert (grad[~padding] > 0).float().mean() > 0.9, name
    # the entropy is a mean over the pixels that are not padding
    log_p = outputs[1][0].log_softmax(1)
    each = -(log_p.exp() * log_p).sum(1) / math.log(CLASSES)
    torch.testing.assert_close(losses["entropy"], 0.01 * each[~padding].mean())


@pytest.mark.parametrize("contrast", ["positive", "distribution", "infonce"])
@pytest.mark.parametrize("case", ["absent class", "all ignored", "empty bank", "one class"])
def test_losses_and_gradients_are_finite(case, contrast, make, batches, scene):
    batch, changes = batches["ssda"], {"bank_start": 0}
    if case == "absent class":
        batch = Batch(scene(1, classes=(0, 1, 3)), scene(2, classes=(1, 3)), scene(3, classes=(0, 3)).images)
    elif case == "all ignored":
        nothing = torch.full_like(batch.source.labels, IGNORE)
        batch = Batch(Labelled(batch.source.images, nothing), None, batch.unlabelled)
    elif case == "empty bank":
        changes["bank_start"] = 100
    elif case == "one class":
        batch = Batch(scene(1, classes=(2,)), None, scene(3, classes=(2,)).images)
    method = make(**changes, contrast=contrast, correct="prototype")
    for step in (0, CONTRAST, 10):
        method.zero_grad()
        losses = method.step(batch, step)
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
        assert all(buffer.isfinite().all() for buffer in method.buffers() if buffer.is_floating_point())
        if case in ("all ignored", "empty bank") and step >= CONTRAST:
            assert losses["contrast_l"] == 0
        assert all(math.isfinite(number) for number in method.diagnostics().values())
        method.follow(step)
    assert method.S.training
    assert method.S_bank.training


# --- teacher, state, determinism ---


def test_teacher_follows_network_and_projection(make, batches):
    """After the first step the teacher equals the student; after the second it is the mean of both, including statistics."""
    method = make(bank_start=0, unlabelled_start=0)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    states = []
    for step in range(2):
        optimizer.zero_grad()
        sum(method.step(batches["ssda"], step).values()).backward()
        optimizer.step()
        method.follow(step)
        followed = nn.ModuleDict({"network": method.student, "g": method.g}).state_dict()
        states.append({name: value.clone() for name, value in followed.items() if value.is_floating_point()})
        teacher = nn.ModuleDict({"network": method.teacher.model, "g": method.g_teacher.model})
        for name, value in teacher.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, torch.stack([state[name] for state in states]).mean(0), msg=name)
    moved = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert {"network.norm.running_mean", "network.embed.weight", "g.weight1", "g.norm.running_var"} <= set(moved)


def test_teacher_stays_in_eval_mode_and_is_not_trained(make, batches):
    method = make().train()
    assert not any(module.training for module in method.teacher.modules())
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    method.step(batches["ssda"], CONTRAST)
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())


@pytest.mark.parametrize("switch", ["strong_statistics", "released"])
@pytest.mark.parametrize("streams", ["uda", "ssda"])
def test_strong_views_update_the_running_statistics(streams, switch, make_plain, batches):
    """The labelled images update the statistics first, then the strong views."""
    method, batch = make_plain(**{switch: True}), batches[streams]
    noted, labelled = torch.zeros(6), [part.images for part in (batch.source, batch.labelled) if part is not None]
    for images in (torch.cat(labelled), torch.cat([batch.unlabelled] * 2)):
        hidden = method.student.embed(F.avg_pool2d(images / 255, 2)).transpose(0, 1).flatten(1)
        noted = 0.9 * noted + 0.1 * hidden.mean(1)
    method.step(batch, 0)
    torch.testing.assert_close(method.student.norm.running_mean, noted, rtol=1e-4, atol=1e-5)


def test_ranking_does_not_change_the_statistics_of_the_attention(make_plain, batches):
    method = make_plain()
    before = method.S.norm.running_mean.clone()
    method.step(batches["ssda"], BANK)
    assert method.bank.valid.any() and torch.equal(method.S.norm.running_mean, before)


def test_running_statistics_come_from_labelled_images_only(make_plain, batches):
    """Without `strong_statistics`, strong views are normalised with their batch statistics, which are not recorded."""
    method, batch = make_plain(), batches["ssda"]
    x_l = torch.cat([batch.source.images, batch.labelled.images]) / 255
    hidden = method.student.embed(F.avg_pool2d(x_l, 2)).transpose(0, 1).flatten(1)
    method.step(batch, CONTRAST)
    torch.testing.assert_close(method.student.norm.running_mean, 0.1 * hidden.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.student.norm.running_var, 0.9 + 0.1 * hidden.var(1), rtol=1e-4, atol=1e-5)


def test_pseudo_labels_come_from_the_teacher(make_plain, batches):
    """If the teacher is certain of class 2 everywhere, the pseudo-label loss is the student's -log p_2."""
    method, batch = make_plain(stride=1, balance_classes=False, ramp_steps=0), batches["ssl"]
    with torch.no_grad():
        method.teacher.model.classify.bias[2] += 1000
    outputs = record_outputs(method.student)
    losses = method.step(batch, 0)
    log_p = outputs[1][0].log_softmax(1)
    torch.testing.assert_close(losses["pseudo"], -log_p[:, 2].mean(), rtol=1e-4, atol=1e-5)


def test_losses_are_deterministic(make, batches):
    def run(seed):
        method = make(classmix_labelled=0.5, classmix_unlabelled=0.75, contrast_pixels=8)
        train(method, batches["ssda"], CONTRAST)
        torch.manual_seed(seed)
        return {name: loss.item() for name, loss in method.step(batches["ssda"], CONTRAST).items()}

    first, again, other = run(1), run(1), run(2)
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_loading_the_state_dict_restores_the_method(make, batches):
    """A new method that loads the state continues identically, with teacher, bank, balance and heads."""
    method = make(classmix_labelled=0.5, classmix_unlabelled=0.75, contrast_pixels=8)
    train(method, batches["ssda"], CONTRAST + 1)
    state = method.state_dict()
    assert {name.split(".")[0] for name in state} == {
        "student", "g", "q", "S", "S_bank", "teacher", "g_teacher", "bank", "balance",
    }  # fmt: skip
    fresh = make(classmix_labelled=0.5, classmix_unlabelled=0.75, contrast_pixels=8)
    fresh.load_state_dict(copy.deepcopy(state))
    losses = []
    for one in (method, fresh):
        torch.manual_seed(9)
        losses.append({name: loss.item() for name, loss in one.step(batches["ssda"], CONTRAST + 1).items()})
        one.follow(CONTRAST + 1)
    assert losses[0] == losses[1]
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in method.state_dict().items())


def test_only_student_heads_and_attention_are_trainable(make):
    """The parameters of the teacher need no gradient, so the optimizer does not get them."""
    method = make()
    trained = {name.split(".")[0] for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert trained == {"student", "g", "q", "S", "S_bank"}
    theirs = {parameter.data_ptr() for parameter in method.teacher.parameters()}
    assert not theirs & {p.data_ptr() for p in method.parameters() if p.requires_grad}


@pytest.mark.parametrize("contrast", ["positive", "distribution", "infonce"])
def test_diagnostics_have_the_gradients_of_right_and_wrong_pixels(contrast, make_plain, batches):
    """At full resolution; the norms are those of the losses' gradients at the features, every tenth step."""
    method = make_plain(stride=1, bank_start=0, bank_confidence=0.0, contrast=contrast, sharpness=1.0)
    outputs = record_outputs(method.student)
    names = {f"gradient_{loss}_{cells}" for loss in ("contrast_l", "sup") for cells in ("right", "wrong")}
    for step in (8, 9):
        method.step(batches["ssda"], step)
        assert not names & method.diagnostics().keys()
    outputs.clear()
    losses = method.step(batches["ssda"], 10)
    logits, features = outputs[0]
    y = torch.cat([batches["ssda"].source.labels, batches["ssda"].labelled.labels])
    right, wrong = logits.argmax(1) == y, (logits.argmax(1) != y) & (y != IGNORE)
    assert right.any() and wrong.any()
    found = method.diagnostics()
    for loss in ("contrast_l", "sup"):
        norms = torch.autograd.grad(losses[loss], features, retain_graph=True)[0].norm(dim=1)
        for name, cells in (("right", right), ("wrong", wrong)):
            assert found[f"gradient_{loss}_{name}"] == pytest.approx(norms[cells].mean().item(), rel=1e-4)
    sum(losses.values()).backward()
    method.step(batches["ssda"], 11)
    assert not names & method.diagnostics().keys()


def test_measuring_the_gradients_does_not_change_the_training(make, batches, monkeypatch):
    states = []
    for every in (1, 1000):
        monkeypatch.setattr("sda.methods.class_bank.LOG_EVERY", every)
        method = make(classmix_labelled=0.5, bank_start=0, unlabelled_start=1)
        train(method, batches["ssda"], 4)
        states.append(method.state_dict())
        assert bool(method.gradients) == (every == 1)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_diagnostics(make_plain, batches):
    method = make_plain()
    assert method.diagnostics() == {"teacher_top": 0, "bank_fill": 0, "bank_source": 0, "bank_empty": CLASSES}
    method.bank.valid[1, :6] = True
    method.bank.domain[1, :2] = 1
    assert method.diagnostics() == pytest.approx({"teacher_top": 0, "bank_fill": 6 / 48, "bank_source": 4 / 6, "bank_empty": 3})
