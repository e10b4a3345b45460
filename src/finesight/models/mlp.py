"""The multilayer perceptron of S8 (report 002)."""

from torch import Tensor, nn


class MLP(nn.Module):
    """3072-512-256-128-10 with ReLU, dropout before the last layer and log-softmax (report 002).

    images: float32 [B, 3, S, S] (or any [B, ...]) with `inputs` values each; returns log-probabilities
    [B, classes]. Cross-entropy may be taken of them as of logits: log-softmax leaves log-probabilities
    as they are. 1,738,890 parameters by default.
    """

    def __init__(self, inputs: int = 3072, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Flatten(),  # [B, inputs]
            nn.Linear(inputs, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),  # [B, 128]
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(128, classes), nn.LogSoftmax(dim=-1))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 128]."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> log-probabilities [B, classes]."""
        return self.head(self.features(images))
