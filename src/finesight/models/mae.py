"""Masked autoencoders (He et al. 2022): transformers' ViT-MAE from a folder or the Hub, or from scratch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from finesight.config import Section
from finesight.errors import ModelError
from finesight.models import pretrained as folders
from finesight.models.backbones import local_or_fetched
from finesight.models.classifier import Spec
from finesight.models.pretrained import IMAGENET, Preprocessing
from finesight.models.weights import check_folder, listed

_WHAT = "a masked autoencoder (ViT-MAE)"
_FIXED = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
NAMED: Mapping[str, dict[str, Any]] = {
    "vit-mae-base": {},
    "vit-mae-small": {
        "image_size": 96, "patch_size": 8,
        "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768,
        "decoder_hidden_size": 128, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 512,
    },
}  # fmt: skip
"""What differs from `ViTMAEConfig`, which is ViT-MAE base; both begin with random weights."""


class MAEConfig(Section):
    """Which masked autoencoder, and from where its weights come."""

    name: str = Field(
        "vit-mae-small",
        min_length=1,
        description=f"{', '.join(NAMED)} (random weights), a local ViT-MAE folder, or a Hub id OWNER/NAME",
    )
    revision: str | None = Field(None, description="Commit, tag or branch of a Hub model")
    pretrained: bool = Field(True, description="false takes only the architecture of a folder or Hub model")
    image_size: int | None = Field(
        None, ge=11, description="Side of the square input in pixels, where weights are random; the model's own if none"
    )
    patch_size: int | None = Field(None, ge=2, description="Side of a patch in pixels, for the named architectures")
    attention: Literal["auto", "eager", "sdpa"] = Field("auto", description="auto is eager on a CPU, sdpa on a GPU")

    BUILT_IN: ClassVar[tuple[str, ...]] = tuple(NAMED)


class MaskedAutoencoder(nn.Module):
    """ViT-MAE with its preprocessing. images: float32 [B, 3, S, S], normalised by `mean` and `std`.

    Of the L patches int(L * (1 - mask_ratio)) are visible, those with the smallest noise.
    """

    def __init__(self, net: Any, spec: Spec, mask_ratio: float, notes: list[str]) -> None:
        super().__init__()
        self.net = net
        self.spec, self.notes = spec, notes
        self.image_size, self.mean, self.std, self.fit = spec.image_size, spec.mean, spec.std, spec.fit
        self.patches = (self.image_size // net.config.patch_size) ** 2
        if not 0 < int(self.patches * (1 - mask_ratio)) < self.patches:
            raise ModelError(
                f"mask_ratio {mask_ratio}: all or none of {self.patches} patches of {self.image_size} pixels would be "
                "hidden; give one nearer 0.75, a larger model.image_size, or a smaller model.patch_size."
            )
        net.config.mask_ratio = mask_ratio
        for name in _FIXED:  # transformers 5 forgets that they are not trained when it loads weights
            net.get_parameter(name).requires_grad_(False)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted patches [B, L, P * P * 3], and the mask [B, L], 1 where a patch was hidden; noise [B, L]."""
        seen = self.net.vit(images, noise=noise)
        return self.net.decoder(seen.last_hidden_state, seen.ids_restore).logits, seen.mask

    def targets(self, images: Tensor, normalised: bool) -> Tensor:
        """What the prediction is compared with: patches [B, L, P * P * 3], each standardised if `normalised`."""
        patches = self.net.patchify(images)
        if not normalised:
            return patches
        mean, deviation = _moments(patches)
        return (patches - mean) / deviation

    def images(self, predicted: Tensor, images: Tensor, normalised: bool) -> Tensor:
        """Predicted patches as images in [0, 1], float32 [B, 3, S, S].

        A model trained with `normalised` patches predicts neither mean nor deviation: both are taken from
        the true `images`, so such a result is shown more than a real reconstruction would know.
        """
        if normalised:
            mean, deviation = _moments(self.net.patchify(images))
            predicted = predicted * deviation + mean
        return self.pixels(self.net.unpatchify(predicted))

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images back in [0, 1], clamped."""
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def pixel_mask(self, mask: Tensor) -> Tensor:
        """[B, L] -> bool [B, S, S], True where a pixel was hidden."""
        side, patch = self.image_size // self.net.config.patch_size, self.net.config.patch_size
        return mask.bool().view(-1, side, side).repeat_interleave(patch, 1).repeat_interleave(patch, 2)

    def random_parameters(self) -> list[str]:
        """Names of the parameters that began with random weights; the fixed positions did not."""
        return [name for name, p in self.named_parameters() if self.spec.random and p.requires_grad]

    def save_spec(self, directory: Path) -> None:
        """Write what `build(config, saved=directory)` rebuilds the architecture from."""
        directory.mkdir(parents=True, exist_ok=True)
        self.spec.write(directory)
        self.net.config.save_pretrained(directory)


def build(config: MAEConfig, mask_ratio: float, saved: Path | None = None) -> MaskedAutoencoder:
    """The masked autoencoder `config` asks for; with `saved` (of `save_spec`) its weights are random.

    Raises `ModelError` for an unknown name, unsafe or unfitting weights, and a Hub that cannot be reached.
    """
    if saved is not None:
        spec = Spec.read(saved)
        return MaskedAutoencoder(_scratch(folders.settings_of(saved, _WHAT), config), spec, mask_ratio, [])
    notes: list[str] = []
    if config.name in NAMED:
        net, preprocessing = _named(config)
        random = True
    else:
        folder = local_or_fetched(config, list(NAMED))
        net, preprocessing, random = *_from_folder(folder, config, notes), not config.pretrained
    size = preprocessing.image_size
    spec = Spec(
        "huggingface", config.name, (), size, preprocessing.mean, preprocessing.std, preprocessing.fit,
        ("net",) if random else (),
    )  # fmt: skip
    return MaskedAutoencoder(net, spec, mask_ratio, notes)


def _named(config: MAEConfig) -> tuple[nn.Module, Preprocessing]:
    from transformers import ViTMAEConfig

    settings: Any = ViTMAEConfig(**NAMED[config.name])
    settings.patch_size = config.patch_size or settings.patch_size
    settings.image_size = config.image_size or settings.image_size
    return _scratch(settings, config), Preprocessing(settings.image_size, *IMAGENET, "squash")


def _scratch(settings: Any, config: MAEConfig) -> Any:
    """A model with random weights.

    transformers 5 leaves the fixed sine-cosine positions of both halves at zero, so that a model trained from
    scratch would not know where a patch lies: they are set here.
    """
    from transformers import ViTMAEForPreTraining

    if settings.image_size % settings.patch_size:
        raise ModelError(
            f"model.image_size {settings.image_size}: is no multiple of the patch size {settings.patch_size}; "
            "give a multiple, or another model.patch_size."
        )
    settings._attn_implementation = folders.attention(config.attention)
    with folders.quiet():
        net: Any = ViTMAEForPreTraining(settings)
    embeddings = net.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False  # or the next line does nothing
    embeddings.initialize_weights()
    net.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)
    return net


def _from_folder(folder: Path, config: MAEConfig, notes: list[str]) -> tuple[Any, Preprocessing]:
    from transformers import ViTMAEForPreTraining

    check_folder(folder, needs_weights=config.pretrained)
    settings = folders.settings_of(folder, _WHAT)
    if getattr(settings, "model_type", None) != "vit_mae":
        raise ModelError(f"{folder}: a {settings.model_type} model, not {_WHAT}; give a folder of one.")
    if settings.num_channels != 3:
        raise ModelError(f"{folder}: wants images of {settings.num_channels} channels; only three are supported.")
    if config.patch_size is not None:
        raise ModelError("model.patch_size: is for the named architectures; leave it unset for a folder or Hub model.")
    size = config.image_size or settings.image_size
    preprocessing = folders.preprocessing(folder, settings, notes)
    preprocessing = Preprocessing(size, preprocessing.mean, preprocessing.std, preprocessing.fit)
    if not config.pretrained:
        settings.image_size = size
        return _scratch(settings, config), preprocessing
    if size != settings.image_size:
        raise ModelError(
            f"model.image_size {size}: the weights of {config.name} are for {settings.image_size} pixels; leave it "
            "unset, or train from scratch with model.pretrained false."
        )
    net, missing, unused = folders.from_weights(ViTMAEForPreTraining, folder, config.attention, _WHAT)
    problems = [
        f"{folder}: {len(names)} weights {what}: {listed(names)}."
        for what, names in (("are missing and would stay random", sorted(missing)),
                            ("have no place in the model", unused)) if names
    ]  # fmt: skip
    if problems:
        folders.refuse_weights(folder, problems)
    return net, preprocessing


def _moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch [B, L, 1], as in He et al. 2022, section 4.1."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
