"""Inception v3 with the head of S11 (report 004; Szegedy et al. 2016, arXiv 1512.00567)."""

from torch import Tensor, nn


class InceptionClassifier(nn.Module):
    """torchvision's Inception v3 without auxiliary head: average pool, hidden, ReLU, dropout, classes.

    images: float32 [B, 3, S, S], normalised to [-1, 1] (mean and std 0.5), S >= 75, by design 299. Returns
    logits [B, classes].
    """

    def __init__(self, classes: int = 10, hidden: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = _layers()
        self.head = nn.Sequential(nn.Linear(2048, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> average-pooled [B, 2048]."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, classes]."""
        return self.head(self.features(images))


def inception_v3(classes: int = 10, hidden: int = 512, dropout: float = 0.5) -> InceptionClassifier:
    """Inception v3 with random weights; 22,839,786 parameters for 10 classes and 512 hidden units."""
    return InceptionClassifier(classes, hidden, dropout)


def _layers() -> nn.Module:
    import torchvision

    # transform_input only maps ImageNet's normalisation to [-1, 1]; here images come in [-1, 1].
    layers = torchvision.models.inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=True)
    layers.dropout = nn.Identity()
    layers.fc = nn.Identity()
    return layers
