"""The training loop: from a recipe and images to checkpoints.

Everything random in optimiser step k is a function of (seed, k, place in the global batch): a run that was killed and
resumed ends with the same bits as an uninterrupted one (on the CPU), and several processes see the images of one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import nn

from ..common.compiling import decide
from ..common.devices import Processes
from ..common.errors import InputError
from ..common.memory import memory_checked
from ..common.progress import progress_bar
from ..common.text import counted, one_line
from ..data import ImageData, is_open, open_data
from ..data.holdout import Part, divide
from ..data.images import log_bad
from ..data.loading import NoSuchData
from ..data.memory import MEMORY
from ..denoiser import Denoiser
from ..heads import Head
from ..heads import head as named_head
from ..networks import NETWORKS
from ..sampling.mean_images import with_mean_image
from ..schedules import Schedule
from ..schedules import schedule as named_schedule
from ..storage.checkpoints import describe_denoiser
from ..storage.checksums import DamagedFile, read_sealed
from ..storage.files import write_json
from ..storage.runs import CONFIG, checkpoint_name, checkpoints
from ..storage.training_state import BETWEEN, State, restore, save
from .augmentation import PARAMETERS, augmentation_share
from .background import Background
from .batches import Batches, part_size
from .beginning import SHEET, Forecast, write_passed_over, write_training_sheet
from .held_out import HeldOut
from .initial import Start, clock_of
from .learner import Learner
from .log import LOGGED, Log, Pending
from .memory import check_memory, what_to_lower
from .network import new_denoiser
from .page import RunPage, machine
from .previews import Previews, write_sheets
from .recipe import TEACHER, Recipe
from .same_data import SameData
from .soundness import unsound
from .stopping import SAVE, Interrupted, Requests
from .teachers import check_same_teacher, distillation_of, identity_of, images_of, new_student, open_teacher
from .tracking import Trackers, check_trackers
from .watch import LATER, Watch

__all__ = ["CORRECTIONS", "MAY_CHANGE", "Diverged", "Trainer"]

logger = logging.getLogger("quarterarc")

MAY_CHANGE = (
    "training.steps", "training.log_every", "training.checkpoint_every", "training.keep", "training.sample_every",
    "training.sample_count", "training.recompute", "training.track", "data.max_pixels",
)  # fmt: skip
"""Fields of a recipe that may change when a run is resumed, since they do not decide the weights of a step."""
CORRECTIONS = (
    "optimizer.learning_rate", "optimizer.clip", "training.precision", "training.accumulate",
    "training.compile", "data.source", "teacher.source",
)  # fmt: skip
"""Further fields that may change on resume, recorded in changes.jsonl: what a divergence calls for; what saves memory,
and changes the weights by rounding alone; and the places of the images and of the teacher, which must be the same."""


SKIPPED = "skipped.json"
"""Name and reason of every image that `data.skip_bad` left out, in the run folder."""


class Diverged(InputError):
    """The gradient of the loss is not finite."""


class Trainer:
    """The state of a run: network, average, optimiser, data and the current step.

    Args:
        recipe: the settings of the run.
        run: the run folder, which exists and is locked by this run.
        accelerator: this process among all.
        progress: show progress: a bar, or lines in a log file.
        images: images in memory, in place of the recipe's source, see `quarterarc.train`; or opened data.
        teacher: the teacher of a distillation, in place of the folder that the recipe names.
        start: the trained model of `training.init`, for a run without a checkpoint.

    Attributes:
        damaged: checkpoints newer than the one that the run continues from, which cannot be read.

    Raises:
        InputError: if the recipe, data, network or newest checkpoint cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        accelerator: Accelerator,
        progress: bool = True,
        images: Any = None,
        teacher: Denoiser | None = None,
        start: Start | None = None,
    ) -> None:
        recipe = recipe.resolved()
        self.recipe, self.run, self.accelerator = recipe, run, accelerator
        self.processes = Processes(accelerator.process_index, accelerator.num_processes)
        self.progress = progress and accelerator.is_main_process
        settings = recipe.training
        # this and the next lines raise before any data is read
        self.part = part_size(recipe, accelerator.num_processes)
        check_memory(recipe, self.part, accelerator.device)
        if settings.track != "auto":
            check_trackers(settings.track)
        NETWORKS.lookup(recipe.network.name)
        table = named_schedule(recipe.schedule.name, recipe.schedule.steps)
        head = named_head(recipe.head, table)
        recipe.objective.build()
        compiled = decide(settings.compile, accelerator.device, settings.steps, "training.compile")
        self.teacher = open_teacher(recipe, teacher, accelerator.device)
        self.teacher_identity = None if self.teacher is None else identity_of(self.teacher)
        self._check_teacher()
        self.data: ImageData = images if is_open(images) else self._open(images)
        held: ImageData | None = None
        if recipe.data.holdout:
            self.data, held = divide(self.data, recipe.data.holdout)
        self.augment = augmentation_share(recipe, self.data.count)
        self.init = None if start is None else start.record
        self.denoise = self._build(table, head, start)
        self.description = describe_denoiser(self.denoise)
        objective = None
        if self.teacher is not None:
            objective = distillation_of(self.teacher, recipe, self.processes, accelerator.device)
        self.learner = Learner(recipe, self.denoise, accelerator, compiled, objective)
        self.step = 0
        self.loss: float | None = None  # of the last step whose values have arrived
        self.damaged: list[Path] = []
        self.pending = Pending()
        self.same_data = SameData(self.data, accelerator.is_main_process)
        self._resume()
        self.same_data.start()
        # the largest time at which both estimates are defined: T, or T - 1 for a noise head on a schedule up to pi/2
        last_time = math.floor(self.denoise.schedule.time(self.denoise.largest_angle) + 1e-6)
        self.batches = Batches(self.data, recipe, accelerator, last_time, self.denoise.streams, self.augment, compiled)
        self.held_out: HeldOut | None = None
        if held is not None and accelerator.is_main_process:
            self.held_out = HeldOut(
                held, recipe, accelerator.device, last_time, self.batches.part, self.denoise.streams
            )
        self.requests = Requests(accelerator)
        self.saved_at = self.step
        self.averaged: tuple[int, Denoiser] | None = None  # of the last step at which it was used
        self.watch = Watch(accelerator.device)
        self.background = Background()
        self.previews = Previews(
            run / "samples", settings.sample_count, settings.sample_every, min(64, self.batches.share)
        )
        self.page: RunPage | None = None
        if accelerator.is_main_process:
            self.page = RunPage(run, recipe, self._about(), accelerator.num_processes, classes=self.denoise.classes)
        self.trackers: Trackers | None = None
        with self.processes.raising_together():
            if accelerator.is_main_process:
                self.trackers = Trackers(recipe, run, self.step)

    # --- the run ---------------------------------------------------------------------------------------------------

    def run_to_end(self) -> Path:
        """Train until the last step of the recipe.

        Returns:
            The folder of the newest checkpoint.

        Raises:
            InputError: if memory does not suffice, or the run folder was removed or renamed.
            OSError: if a file cannot be written.
            Diverged: if the gradient is not finite.
            Interrupted: after a signal, once a checkpoint is saved.
        """
        with memory_checked(self._size):
            try:
                return self._run_to_end()
            except OSError:
                self._check_present()  # otherwise the reason why nothing can be written
                raise

    def close(self) -> None:
        """End the trackers, which may have started although training did not begin."""
        if self.trackers:
            self.trackers.close()

    def _run_to_end(self) -> Path:
        settings = self.recipe.training
        if self.accelerator.is_main_process:
            self._announce()
        page = self.page
        log = Log(self.run, self.step, self.trackers) if self.trackers else None
        bar = progress_bar(settings.steps, "step", self.recipe.name, self.progress, initial=self.step, early=True)
        started, logged_at, logged = time.perf_counter(), self.step, False
        forecast = Forecast(settings.steps, settings.batch) if log else None
        with (
            page.ending(lambda: self.step) if page else nullcontext(),
            bar,
            closing(log) if log else nullcontext(),
            ThreadPoolExecutor(1) as ahead,
            self.background,
            self.requests.listening(),
        ):
            if page:
                self.background.start(page.at(self.step))
            waiting = ahead.submit(self.batches.of_step, self.step)
            while self.step < settings.steps:
                parts = waiting.result()
                if self.step + 1 < settings.steps:
                    waiting = ahead.submit(self.batches.of_step, self.step + 1)  # prepared while this step computes
                step_losses, norm = self.learner.step(parts, self.step)
                self.watch.add(self.step, step_losses[0], norm, self.requests.pending())
                self.step += 1
                self.pending.add(step_losses)
                done = self.step == settings.steps
                logs, previews, saves = (
                    done or self.step % every == 0
                    for every in (settings.log_every, settings.sample_every, settings.checkpoint_every)
                )
                request = self._check_steps(all=logs or previews or saves)
                stop = request if request > SAVE else 0
                # requests of the steps before a checkpoint may arrive after it
                late = request == SAVE and self.step - self.saved_at > 2 * LATER and not saves
                self.background.check()
                if not logged and self.loss is not None:
                    bar.note(loss=f"{self.loss:.4f}")
                bar.update()
                if forecast:
                    forecast.after(self.step)
                if logs:
                    means = self._pending_means()
                    rate = (self.step - logged_at) * settings.batch / (time.perf_counter() - started)
                    losses = dict(zip(LOGGED, means, strict=True))
                    if self.held_out:
                        losses["held_out_loss"] = self.held_out.loss(self.learner, self.step)
                    if log:
                        log.write(self.step, settings.batch, losses, float(norm), self.learner.rate, rate)
                    held = {"held_out": f"{losses['held_out_loss']:.4f}"} if self.held_out else {}
                    bar.note(loss=f"{means[0]:.4f}", **held, images_per_s=f"{rate:.3g}")
                    self.pending, logged = Pending(), True
                    started, logged_at = time.perf_counter(), self.step
                early = page is not None and self.previews.early(self.step)
                if previews or early:
                    self._preview(early and not previews)
                if saves or stop or late:
                    if log:
                        log.sync()  # the lines of the steps before a checkpoint are not written again
                    self._save(between=late)
                if page and page.due(self.step):
                    self.background.offer(lambda: page.at(self.step))
                if stop and not done:
                    raise Interrupted(stop, self._saved())
            if stop := self.requests.received():  # during the last step, whose caller may have more to do
                raise Interrupted(stop, self._saved())
            return self._saved()

    def _check_steps(self, all: bool) -> int:
        """Check the steps whose values have arrived, or all: the highest request of a process, or 0.

        Raises:
            Diverged: for a gradient that is not finite.
        """
        request = 0
        for checked in self.watch.due(all):
            self.loss = checked.loss
            if self.page:
                self.page.add(checked.step + 1, checked.loss, checked.norm)
            if not checked.finite:
                self._diverged(
                    f"the gradient is not finite at step {checked.step} (loss {checked.loss:.6g}), on the images with "
                    f"indices {self._places(checked.step)}"
                )
            request = max(request, checked.request)
        return request

    def _places(self, step: int) -> list[int]:
        """The indices of the images that this process uses in a step, counted over all images."""
        places = self.batches.places(step)
        return self.data.places(places).tolist() if isinstance(self.data, Part) else places

    def _pending_means(self) -> list[float]:
        """The pending mean losses, averaged over all processes."""
        if not self.pending.steps:
            return [0.0] * len(LOGGED)
        return self.accelerator.reduce(self.pending.means, "mean").tolist()

    # --- construction, checkpoints and pictures --------------------------------------------------------------------

    @property
    def _weights(self) -> str:
        return counted(sum(weight.numel() for weight in self.learner.network.parameters()), "parameter")

    def _about(self) -> list[tuple[str, str]]:
        """What the page shows of machine, network and data."""
        here = machine(self.accelerator.device, self.accelerator.num_processes)
        return [*here, ("network", self._weights), ("data", self.data.description)]

    def _announce(self) -> None:
        settings, warmup = self.recipe.training, self.recipe.optimizer.warmup
        logger.info("%s; %s on %s", self.data.description, self._weights, self.accelerator.device)
        for note in self.data.notes:
            logger.info("%s", note)
        for note in self.learner.notes:
            logger.info("%s", note)
        log_bad(self.data)
        self._write_skipped()
        write_passed_over(self.run, self.data)
        if self.augment:
            logger.info("augmentation, with probability %.3g per movement; data.augment=0 turns it off", self.augment)
        if not (self.run / SHEET).is_file():
            write_training_sheet(self.run, self.batches, settings.sample_count)
        logger.info("training in %s from step %d to %d", self.run, self.step, settings.steps)
        if self.page:
            logger.info("watch it: %s", self.page.path.resolve())
        if warmup != "auto" and warmup > settings.steps:
            logger.warning(
                "optimizer.warmup=%d exceeds training.steps=%d: the learning rate reaches %.3g instead of %.3g",
                warmup, settings.steps, self.recipe.optimizer.learning_rate * settings.steps / warmup,
                self.recipe.optimizer.learning_rate,
            )  # fmt: skip

    def _open(self, images: Any) -> ImageData:
        spec, seed = self.recipe.data, self.recipe.training.seed
        if self.teacher is not None and images is None and spec.source == TEACHER:
            images = images_of(self.teacher, self.recipe, self.run, self.processes, self.progress)
            spec = spec.model_copy(update={"source": MEMORY, "labels": self.teacher.classes is not None})
        try:
            return open_data(spec, self.accelerator.device, progress=self.progress, seed=seed, images=images)
        except NoSuchData as error:
            moved = "; if the images have moved, resume with data.source=PATH" if checkpoints(self.run) else ""
            raise InputError(f"{error}{moved}") from None

    def _build(self, table: Schedule, head: Head, start: Start | None) -> Denoiser:
        """A denoiser on the device: with the recipe's new network, the weights of `training.init` or the teacher's."""
        recipe = self.recipe
        if self.teacher is not None:
            return new_student(self.teacher, recipe, self.data)
        denoise = new_denoiser(recipe, self.data, table, head, PARAMETERS if self.augment else 0)
        denoise = denoise.to(self.accelerator.device)
        if start is not None:
            return start.begin(denoise, self.data, recipe.training.seed)
        return denoise if recipe.training.init is None else clock_of(checkpoints(self.run), denoise)

    def _resume(self) -> None:
        complete = checkpoints(self.run)
        if not complete:
            return
        config = self._restore(complete)
        self.same_data.check(self.run, config)
        self.step, self.init = config["step"], config.get("init")
        self.pending = Pending.of(config["pending"], self.accelerator.device)
        self.denoise = replace(self.denoise, streams=config["denoiser"].get("streams", 1))
        self.description["streams"] = self.denoise.streams

    def _check_teacher(self) -> None:
        """Compare the teacher with that of the run: another one may not fit the data, which are opened later."""
        if self.teacher_identity is None:
            return
        for folder in reversed(checkpoints(self.run)):
            with suppress(DamagedFile):  # an older one is continued from
                config = read_sealed(folder / CONFIG)
                check_same_teacher(self.teacher_identity, self.recipe, config, self.run)
                return

    def _restore(self, complete: Sequence[Path]) -> dict[str, Any]:
        """Continue from the newest of these checkpoints that can be read: its config.json."""
        errors: list[str] = []
        for folder in reversed(complete):
            try:
                config = restore(folder, self.learner.network, self.learner.average, self.learner.optimizer)
                _check_progress(folder, config)
            except DamagedFile as error:
                errors.append(str(error))
                self.damaged.append(folder)
                continue
            if errors:
                logger.warning("%s; continuing from the older checkpoint %s", errors[0], folder)
            return config
        others = f" (and so are the {len(errors) - 1} other checkpoints)" if len(errors) > 1 else ""
        raise InputError(f"{self.run} cannot be resumed: {errors[0]}{others}")

    def _save(self, between: bool = False) -> None:
        """Begin to save a checkpoint, which is written while training goes on; the first of a run is waited for.

        Args:
            between: whether it is one between two regular ones, which the next one replaces.

        Raises:
            Diverged: if training or sampling could not continue from it; then none is written.
        """
        learner = self.learner
        own = unsound(self.denoise, learner.average, learner.optimizer)
        wrong = next((name for name in self.processes.gathered(own) if name is not None), None)
        if wrong is not None:
            self._diverged(f"not finite after step {self.step}: {wrong}; no checkpoint of this step is written")
        self.requests.saved()
        self.saved_at = self.step
        pending = {"means": self._pending_means(), "steps": self.pending.steps}
        if learner.average is None:
            return
        config = {
            "step": self.step,
            **self.same_data.describe(wait=not self.requests.signal),
            "pending": pending,
            "denoiser": self.description,
            "recipe": self.recipe.model_dump(mode="json"),
            **({} if self.teacher_identity is None else {"teacher": self.teacher_identity}),
            **({} if self.init is None else {"init": self.init}),
            **({BETWEEN: True} if between else {}),
        }
        self._check_present()
        self._write_skipped()
        self.background.wait()  # one checkpoint at a time is in memory
        mean = self._averaged(learner.average).mean_image
        state, keep = State.of(learner.network, learner.average, learner.optimizer, mean), self.recipe.training.keep
        first = not checkpoints(self.run)
        self.background.start(lambda: save(self.run, config, state, keep))
        if first:
            self.background.wait()  # a log that goes beyond it shows that a checkpoint was complete (`check_not_lost`)

    def _saved(self) -> Path:
        """The newest checkpoint, once it is complete; all processes call this."""
        self.background.wait()
        self.accelerator.wait_for_everyone()
        self._check_present()
        return checkpoints(self.run)[-1]

    def _write_skipped(self) -> None:
        if self.data.skipped:  # in a stream more and more
            write_json(self.run / SKIPPED, dict(self.data.bad))

    def _preview(self, early: bool = False) -> None:
        """Write contact sheets; those of an early preview have as many images as take a few seconds."""
        if self.learner.average is None or self.page is None:
            return
        denoise = self._averaged(self.learner.average)
        count = self.previews.affordable(self.page.images_per_second) if early else None
        sheets = self.previews.make(denoise, self.step, count)
        self._check_present()
        if self.trackers:
            step = checkpoint_name(self.step)
            named = {f"samples{path.stem.removeprefix(step)}": pixels for path, pixels in sheets.items()}
            self.trackers.show(named, self.step)
        self.background.start(lambda: write_sheets(sheets))
        self.page.soon()

    def _averaged(self, average: nn.Module) -> Denoiser:
        """The denoiser with the moving average of the weights, and its mean image, measured once per step."""
        if self.averaged is None or self.averaged[0] != self.step:
            denoise = replace(self.denoise, network=average, projection="velocity")
            self.averaged = self.step, with_mean_image(denoise, self.previews.batch)
        return self.averaged[1]

    def _check_present(self) -> None:
        """Raise an InputError if the run folder is gone; a new one would have neither recipe nor log."""
        if not (self.run / "recipe.yaml").is_file():
            raise InputError(
                f"{self.run} was removed or renamed during training: rename it back and resume, or start anew"
            )

    def _diverged(self, what: str) -> NoReturn:
        self.background.wait()
        complete = checkpoints(self.run)
        last = f"the last good checkpoint is {complete[-1]}" if complete else "no checkpoint has been written yet"
        raise Diverged(
            f"{what}: {last}; resume with a lower optimizer.learning_rate or optimizer.clip, or with "
            "training.precision=fp32, or check the images"
        )

    def _size(self) -> str:
        """The batch and the image size, for messages about memory."""
        return what_to_lower(self.recipe, self.part, self.accelerator.device)


def _check_progress(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise a DamagedFile unless config.json has the step and the other values that resuming needs."""
    try:
        step = config["step"]
        if isinstance(step, bool) or checkpoint_name(step) != folder.name or not isinstance(config["data"], str):
            raise ValueError(f"its step is {step!r}")
        Pending.of(config["pending"], torch.device("cpu"))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{folder / CONFIG} does not describe the progress of a run: {one_line(error)}") from None
