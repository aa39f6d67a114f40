"""SimpleTuner's own loss and auxiliary_loss, on a prepared batch of tests/simpletuner_record.py's; in FOLDER."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import simpletuner_record as recorded
from make_step import flow, tiny_vae
from simpletuner.helpers.models.common import ImageModelFoundation, PredictionTypes
from tiny_people import write_dreambooth


class Real(ImageModelFoundation):
    """Its foundation of models of pictures, without a network: the output is a tensor."""

    PREDICTION_TYPE = PredictionTypes.FLOW_MATCHING

    def __init__(self, folder):
        self.noise_schedule, self.vae = flow(), None
        self.accelerator = SimpleNamespace(is_main_process=True, sync_gradients=False, num_processes=1)
        self.config = SimpleNamespace(
            output_dir=str(folder / "out"), input_perturbation=0, loss_type="l2", snr_gamma=None
        )

    def get_vae(self):
        return tiny_vae()

    def unload_vae(self):
        pass


Real.__abstractmethods__ = frozenset()  # of its methods only those of the loss are called


def step(model, batch, pred):
    output = {"model_prediction": pred}
    loss, _ = model.loss_with_logs(prepared_batch=batch, model_output=output, apply_conditioning_mask=True)
    return model.auxiliary_loss(prepared_batch=batch, model_output=output, loss=loss)[0]


def main(folder):
    photos = write_dreambooth(folder / "photos", folder / "photos" / "masks")
    torch.manual_seed(5)
    batch, _ = recorded.prepared(photos, "flow", tiny_vae())
    pred = (batch["noise"] - batch["latents"] + 0.1 * torch.randn_like(batch["latents"])).requires_grad_()
    plain, zero, ours = (Real(folder) for _ in range(3))
    recorded.attach(folder, zero, recorded.Tracker(photos), text=recorded.PRESET.replace("weight: 0.2", "weight: 0"))
    recorded.attach(folder, ours, recorded.Tracker(photos), photos)
    expected = step(plain, batch, pred)
    assert torch.equal(step(zero, batch, pred), expected)
    mixed = step(ours, batch, pred)
    assert mixed > 1.1 * expected
    assert torch.autograd.grad(mixed, pred)[0].isfinite().all()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
