"""What an attached run leaves behind: the resolved preset, one line a step, panels."""

from __future__ import annotations

from pathlib import Path

from mldm_plugin.announce import announce
from mldm_plugin.attach.flags import Settings
from mldm_plugin.attach.scope import Scope
from mldm_plugin.decode.decoder import Decoder
from mldm_plugin.engine.numbers import StepMeter
from mldm_plugin.engine.report import LossReport
from mldm_plugin.engine.stack import LossStack
from mldm_plugin.engine.step import DiffusionStep
from mldm_plugin.errors import CheckError
from mldm_plugin.preset import Preset
from mldm_plugin.records.curves import Curves
from mldm_plugin.records.files import write_text
from mldm_plugin.records.metrics import MetricsFile
from mldm_plugin.records.panels import draw_panel, save_panel
from mldm_plugin.records.run_files import RunFiles
from mldm_plugin.run_page.write import leave_page


class Records:
    """The folder of an attached run, written by its main process.

    Numbers are means over the micro-batches and processes of an optimizer step; they also go to the script's own
    trackers, under `mldm/`.
    """

    def __init__(
        self,
        folder: Path | None,
        panel_steps: int,
        curve_steps: int,
        step: int,
        decoder: Decoder | None = None,
        files: RunFiles | None = None,
        script_folder: Path | None = None,
    ) -> None:
        self._files, self._script_folder = files, script_folder
        self._folder, self._decoder = folder, decoder
        self._panel_steps, self._curve_steps = panel_steps, curve_steps
        self._curves: Curves | None = None
        self._meter: StepMeter | None = None
        self._step = self._began = step
        self._drawn = False

    @classmethod
    def open(cls, settings: Settings, preset: Preset, scope: Scope, decoder: Decoder | None) -> Records:
        """Make the folder and write the preset into it. A run that is resumed adds to the lines that are there.

        Panels are drawn with `decoder`, and none without it.
        """
        known = scope.get("global_step")
        step = int(known or 0)
        accelerator = scope.get("accelerator")
        if accelerator is not None and not accelerator.is_main_process:
            return cls(None, 0, settings.curve_steps, step)
        folder = Path(settings.output_dir or Path(scope.option("output_dir") or ".") / "mldm")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "preset.yaml", preset.dump())
        panel_steps = settings.panel_steps
        if panel_steps and scope.option("push_to_hub") and settings.output_dir is None:
            panel_steps = 0
            announce(
                "no panels are drawn, because --push_to_hub would publish your pictures with them; give "
                "--mldm-output-dir a folder elsewhere to have them."
            )
        if known is not None:
            MetricsFile(folder).truncate(step)
        balanced = [name for name, loss in preset.losses.items() if loss.weight and loss.balance is not None]
        if step and balanced:
            announce(
                f"what balances {', '.join(balanced)} is not in the script's checkpoints: it is measured anew, and "
                "until it is, the loss weighs nothing."
            )
        files = RunFiles(folder, None if known is None else step, getattr(accelerator, "num_processes", 1))
        output = scope.option("output_dir")
        script_folder = Path(output) if output else None
        return cls(folder, panel_steps, settings.curve_steps, step, decoder, files, script_folder)

    def add(self, scope: Scope, stack: LossStack, step: DiffusionStep, report: LossReport) -> None:
        """One micro-batch; with the last of an optimizer step its line is written."""
        accelerator = scope.get("accelerator")
        if accelerator is None:
            raise CheckError(
                "the training loop has no variable accelerator, so when its optimizer steps is not known. Use the "
                "library form (docs/attach.md)."
            )
        if self._meter is None:
            self._meter = StepMeter(report.numbers().terms)
            self._curves = Curves(report.terms, stack.plain) if self._curve_steps else None
        self._meter.add(report.numbers())
        if self._curves is not None:
            self._curves.add(step, report)
        due = self._panel_steps and (self._step + 1) % self._panel_steps == 0 and accelerator.sync_gradients
        if self._panel_steps and (due or not self._drawn):
            self._draw(stack, step, report)
        if not accelerator.sync_gradients:
            return
        numbers, _ = self._meter.mean(accelerator)
        self._step += 1
        numbers |= stack.audit.read(self._step - self._began, accelerator)
        if self._curves is not None and self._step % self._curve_steps == 0:
            numbers |= self._curves.mean(accelerator)
        lr_scheduler = scope.get("lr_scheduler")
        if lr_scheduler is not None:
            numbers["lr"] = lr_scheduler.get_last_lr()[0]
        if self._files is not None:
            self._files.add({"step": self._step, **numbers}, stack.proof)
        accelerator.log({f"mldm/{k}": v for k, v in numbers.items() if v is not None}, step=self._step)

    def _draw(self, stack: LossStack, step: DiffusionStep, report: LossReport) -> None:
        self._drawn = True
        if self._folder is not None and self._decoder is not None:
            save_panel(
                draw_panel(stack, step, report, self._decoder), self._folder / "panels" / f"step-{self._step + 1}.png"
            )

    def finish(self) -> None:
        """The script has ended: how fast it was, and the page of the run, beside what the script has trained."""
        if self._files is not None and self._folder is not None:
            self._files.close()
            leave_page(self._script_folder or self._folder, self._folder)
