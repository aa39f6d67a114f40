"""A plugin with one cheap loss on the people's pixels."""

from mldm_plugin import hookimpl


class PixelLoss:
    """Mean squared difference on the people."""

    needs = frozenset({"pred_images", "person_mask"})

    def __call__(self, step):
        mask = (step.person_mask > 0).to(step.pred_images)
        squared = (step.pred_images - step.target_images).square().mean(dim=1, keepdim=True)
        return (squared * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp_min(1)


@hookimpl
def register_losses(register):
    register("pixel_loss", PixelLoss)
