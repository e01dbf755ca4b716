"""Domain adaptation by cross-domain mixed sampling: Tranheden et al., WACV 2021 (arXiv 2007.08702).

Source classes, with their true labels, are pasted onto target images with pseudo-labels. Labelled target images, if any, join
the source images in L_sup.
"""

import torch
from torch import Tensor

from sda.data.batch import Batch
from sda.methods.mean_teacher import TeacherMethod
from sda.methods.parts.augment import half_of_classes
from sda.methods.parts.losses import cross_entropy
from sda.methods.parts.teacher import pseudo_label, top_share
from sda.methods.parts.views import Views, in_target_colors, labelled_views, strong_views
from sda.methods.settings import DacsSettings
from sda.models.preprocessing import as_float


class DACS(TeacherMethod):
    """L = L_sup + L_mix.

    In L_mix, source pixels have weight 1; target pixels are weighted by the share of confident pixels in their image.

    Differences from the paper and its code:
    - mixed images are augmented like the strong views of the other methods, to keep the methods comparable (the paper uses
      colour jitter and blur);
    - the share of confident pixels is computed per image, as in the paper; its code computes it per batch.
    """

    settings: DacsSettings

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        s, grid = self.settings, self.student.grid
        batch = in_target_colors(batch, s.color_transfer)
        x_l, y_l, _ = labelled_views(batch, self.weak, self.classes, s.classmix_labelled)
        assert batch.unlabelled is not None and batch.source is not None
        x_u = as_float(batch.unlabelled)
        with torch.no_grad():
            y_u, confidence = pseudo_label(grid.enlarge(self.teacher(x_u)[0], x_u.shape[2:]))
            self.teacher_top = top_share(y_u, self.classes)
            sure = (confidence > s.confidence_threshold).float().mean(dim=(1, 2), keepdim=True)

            # a random source image for every target image, half of its classes pasted
            other = (torch.arange(len(x_u)) + torch.randint(len(batch.source.images), ())) % len(batch.source.images)
            other = other.to(x_u.device, non_blocking=True)
            x_s, y_s = as_float(batch.source.images[other]), batch.source.labels[other].long()
            paste = half_of_classes(y_s, self.classes, round_up=True)
            x_m = torch.where(paste.unsqueeze(1), x_s, x_u)
            y_m = torch.where(paste, y_s, y_u)
            w_m = torch.where(paste, 1.0, sure)
            x_m, y_m, w_m = strong_views(Views(x_m, y_m, w_m), self.strong, 1, self.classes, 0.0)

        logits_l, _ = self.student(x_l)
        logits_m, _ = self.student(x_m, note_statistics=s.strong_statistics or s.released)
        alpha = self.balance(y_l, y_m)
        return {
            "sup": cross_entropy(grid.enlarge(logits_l, y_l.shape[1:]), y_l, alpha),
            "mix": s.weight_pseudo * cross_entropy(grid.enlarge(logits_m, y_m.shape[1:]), y_m, alpha, w_m),
        }
