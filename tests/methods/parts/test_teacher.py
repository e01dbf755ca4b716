"""The EMA teacher: schedule by hand, exact average at the start, and the parameters and statistics that follow the student."""

import math

import pytest
import torch
from torch import nn

from sda.methods.parts.teacher import Teacher, corrected, prototype_weights, pseudo_label


def make_student():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def disturb(student):
    """Change weights and batch-norm statistics."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    student.train()(torch.randn(4, 3, 6, 6))


def floats(module):
    return {name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()}


def test_tau_by_hand():
    teacher = Teacher(make_student(), 0.995, "cosine", 150_000)
    assert teacher.tau(0) == 0
    assert teacher.tau(1) == 0.5
    assert teacher.tau(9) == pytest.approx(0.9)
    assert teacher.tau(75_000) == pytest.approx(1 - 0.005 / 2)
    assert teacher.tau(50_000) == pytest.approx(1 - 0.005 * 0.75)  # cos(π/3) = 1/2
    assert teacher.tau(100_000) == pytest.approx(1 - 0.005 * 0.25)
    assert teacher.tau(149_999) == pytest.approx(1 - 1 / 150_000)


def test_tau_is_the_minimum_of_schedule_and_average():
    teacher = Teacher(make_student(), 0.9, "cosine", 100)
    for k in range(100):
        schedule = 1 - (1 - 0.9) * (math.cos(math.pi * k / 100) + 1) / 2
        assert teacher.tau(k) == pytest.approx(min(schedule, 1 - 1 / (k + 1)))


def test_teacher_is_the_mean_of_all_students_at_first():
    torch.manual_seed(0)
    student = make_student()
    teacher = Teacher(student, 0.995, "cosine", 1000)
    seen = []
    for k in range(6):
        disturb(student)
        teacher.follow(student, k)
        seen.append(floats(student))
        for name, value in floats(teacher.model).items():
            torch.testing.assert_close(value, torch.stack([one[name] for one in seen]).mean(dim=0))


def test_parameters_and_statistics_follow():
    """Late in training with momentum .9, teacher = τ teacher + (1 - τ) student; the counter is copied."""
    torch.manual_seed(0)
    student = make_student()
    teacher = Teacher(student, 0.9, "cosine", 1000)
    before = floats(teacher.model)
    disturb(student)
    teacher.follow(student, 500)  # τ = .95
    now = floats(student)
    assert {"1.running_mean", "1.running_var", "0.weight", "1.bias"} <= set(before)
    for name, value in floats(teacher.model).items():
        assert not torch.equal(before[name], now[name])
        torch.testing.assert_close(value, 0.95 * before[name] + 0.05 * now[name])
    assert teacher.model[1].num_batches_tracked == student[1].num_batches_tracked == 1


def test_teacher_is_a_copy_independent_of_the_student():
    student = make_student()
    teacher = Teacher(student, 0.9)
    mine, theirs = floats(teacher.model), floats(student)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    disturb(student)
    moved = floats(student)
    assert all(torch.equal(value, mine[name]) for name, value in floats(teacher.model).items())
    teacher.follow(student, 3)
    assert all(torch.equal(value, moved[name]) for name, value in floats(student).items())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_teacher_stays_in_eval_mode():
    student = make_student().train()
    teacher = Teacher(student, 0.9)
    assert student.training
    parent = nn.ModuleDict({"teacher": teacher, "student": student})
    for mode in (True, False, True):
        parent.train(mode)
        teacher.train(mode)
        assert not any(module.training for module in teacher.modules())
        assert student.training == mode
    before = floats(teacher.model)
    x = 5 + torch.randn(4, 3, 6, 6)
    one_by_one = torch.cat([teacher(x[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(teacher(x), one_by_one, msg="depends on the batch")
    assert all(torch.equal(value, before[name]) for name, value in floats(teacher.model).items())


def test_teacher_has_no_gradients():
    teacher = Teacher(make_student(), 0.9)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.randn(1, 3, 6, 6)).requires_grad


def test_teacher_round_trips_through_its_state_dict():
    student = make_student()
    teacher = Teacher(student, 0.9)
    disturb(student)
    teacher.follow(student, 0)
    copy = Teacher(make_student(), 0.9)
    copy.load_state_dict(teacher.state_dict())
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(copy(x), teacher(x))


def test_pseudo_label_by_hand():
    """Logits log(1), log(2), log(5) have probabilities 1/8, 2/8, 5/8."""
    logits = torch.tensor([[1.0, 2.0, 5.0], [6.0, 1.0, 1.0]]).log().view(2, 3, 1, 1).expand(2, 3, 4, 5)
    labels, confidence = pseudo_label(logits)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.tensor([2, 0]).view(2, 1, 1).expand(2, 4, 5))
    torch.testing.assert_close(confidence, torch.tensor([0.625, 0.75]).view(2, 1, 1).expand(2, 4, 5))


def test_tau_of_the_constant_schedule():
    teacher = Teacher(make_student(), 0.9, "constant", 100)
    assert [teacher.tau(k) for k in (0, 1, 99)] == [0, 0.5, 0.9]
    assert teacher.tau(8) == pytest.approx(8 / 9)


def test_released_teacher_uses_batch_statistics_and_does_not_follow_running_ones():
    torch.manual_seed(0)
    student = make_student()
    teacher = Teacher(student, 0.9, "constant", 1000, released=True).eval()
    assert teacher.model.training
    before = floats(teacher.model)
    disturb(student)
    teacher.follow(student, 500)
    now, after = floats(student), floats(teacher.model)
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(after[name], before[name])
    torch.testing.assert_close(after["0.weight"], 0.9 * before["0.weight"] + 0.1 * now["0.weight"])
    x = 5 + torch.randn(4, 3, 6, 6)
    hidden = teacher.model[0](x)
    normal = (hidden - hidden.mean((0, 2, 3), keepdim=True)) / (hidden.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    norm = teacher.model[1]
    normal = normal * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(teacher(x), teacher.model[2](normal), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("filled", [(1, 1, 1, 1), (1, 0, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("tau", [0.01, 1.0])
def test_corrected_probabilities_equal_the_loop(filled, tau):
    """p'_k ∝ p_k softmax_k(-‖f - η_k‖/τ); classes without a prototype have the mean of the factors of the others."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=draw)
    features = 9 * torch.randn(2, 6, 3, 5, dtype=torch.float64, generator=draw)
    eta = torch.randn(4, 6, dtype=torch.float64, generator=draw)
    filled = torch.tensor(filled, dtype=torch.bool)
    weights = prototype_weights(features, eta, filled, tau)
    p = corrected(logits, weights).softmax(dim=1)
    for b in range(2):
        for i in range(3):
            for j in range(5):
                f = features[b, :, i, j] / features[b, :, i, j].norm()
                near = {k: math.exp(-(f - eta[k]).norm().item() / tau) for k in range(4) if filled[k]}
                omega = {k: value / sum(near.values()) for k, value in near.items()}
                neutral = sum(omega.values()) / len(omega) if omega else 1.0
                raw = logits[b, :, i, j].softmax(0)
                changed = torch.stack([raw[k] * omega.get(k, neutral) for k in range(4)])
                torch.testing.assert_close(p[b, :, i, j], changed / changed.sum())


def test_the_correction_does_not_depend_on_values():
    """On the meta device, which has no values, everything that would wait for a device raises an error."""
    with torch.device("meta"):
        weights = prototype_weights(torch.rand(1, 5, 2, 2), torch.rand(3, 5), torch.ones(3, dtype=torch.bool), 1.0)
        assert corrected(torch.rand(1, 3, 2, 2), weights).shape == (1, 3, 2, 2)


def test_correction_by_hand():
    """Equal probabilities, f = η_0 and η_1 opposite: factors 1 : e^-2. Without prototypes nothing changes."""
    logits, features = torch.zeros(1, 2, 1, 1), torch.tensor([8.0, 0.0]).view(1, 2, 1, 1)
    eta = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    p = corrected(logits, prototype_weights(features, eta, torch.tensor([True, True]), 1.0)).softmax(1)
    assert p.flatten().tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    none = prototype_weights(features, eta, torch.tensor([False, False]), 1.0)
    assert torch.equal(corrected(logits, none), logits)


def test_correction_of_a_class_that_is_far_away_stays_finite():
    features = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    weights = prototype_weights(features, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([True, True]), 1e-3)
    p = corrected(torch.tensor([-80.0, 80.0]).view(1, 2, 1, 1), weights).softmax(1)
    assert p.isfinite().all() and p.sum() == 1
