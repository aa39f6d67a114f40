"""The flags of train_conditional_ldm.py. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from mldm_plugin.training.flags import TrainerFlags


class ConditionalFlags(TrainerFlags):
    """The flags of train_conditional_ldm.py. Defaults are those of "Conditioning Diffusion Models via Attributes and
    Semantic Masks for Face Generation", and what it took over from CompVis' celebahq-ldm-vq-4."""

    script: ClassVar[str] = "train_conditional_ldm.py"
    stands_in: ClassVar[bool] = False
    description: ClassVar[str] = "Train a latent diffusion model on attributes, semantic masks, or both, from scratch."
    added: ClassVar[tuple[str, ...]] = (
        *("block_out_channels", "layers_per_block"),
        *("attention_resolutions", "attention_head_dim", "cross_attention_dim", "scaling_factor", "beta_start"),
        *("beta_end", "prediction_type", "use_ema", "ema_decay", "random_flip", "validation_steps", "validation_rows"),
    )

    pretrained_model_name_or_path: str
    """Whose autoencoder is taken: a pipeline with a `vae` or `vqvae`, or an autoencoder, in diffusers' format; a folder
    or a Hub name. Required."""
    output_dir: str = "conditional-ldm"
    resolution: Annotated[int, Field(ge=8)] = 256
    train_batch_size: PositiveInt = 48
    num_train_epochs: PositiveInt = 600
    learning_rate: float = 9.6e-5
    block_out_channels: list[int] = Field(default=[224, 448, 672, 896])
    """Widths of the U-Net's levels."""
    layers_per_block: PositiveInt = 2
    """Residual blocks of each level."""
    attention_resolutions: list[int] = Field(default=[32, 16, 8])
    """Sides of the latent maps at which conditions are attended to."""
    attention_head_dim: PositiveInt = 32
    """Width of an attention head; it must divide the widths that attend. The paper says 64, which does not divide 224
    and 672; 32 is celebahq-ldm-vq-4's."""
    cross_attention_dim: PositiveInt = 512
    """Width of a condition's token."""
    scaling_factor: Annotated[float, Field(gt=0)] | None = None
    """Factor on the autoencoder's latents; by default the autoencoder's own, and 1 for a VQModel, as CompVis trains."""
    beta_start: float = 0.0015
    """First β of the noise schedule, which is linear in the square root."""
    beta_end: float = 0.0195
    """Last β."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the U-Net predicts: the paper's ε, or v, from which much noise is learnt in far fewer steps."""
    use_ema: bool = False
    """Keep a moving average of the weights, and hand that on at the end."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """How slowly the average moves."""
    random_flip: bool = False
    """Mirror every other picture, drawn at random, with its mask, whose left and right parts change their names."""
    validation_steps: PositiveInt = 1000
    """Draw the conditions of held-out pictures every so many optimizer steps."""
    validation_rows: NonNegativeInt = 4
    """Of so many pictures of the split validation."""
    num_validation_images: int = 1
    """Pictures of each."""

    def faults(self) -> Iterator[str]:
        """Which flags cannot work together."""
        yield from super().faults()
        yield from self._resolution_faults()
        if odd := [width for width in self.block_out_channels if width % self.attention_head_dim]:
            yield f"--attention_head_dim {self.attention_head_dim} does not divide the width {odd[0]}."
