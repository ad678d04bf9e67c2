"""What a hospital does when the server asks: say who it is, train, evaluate. Knows nothing of Flower."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch

from client.attempts import Attempts
from client.corrections import Correction
from client.dataset import SampleSet, require_every_split, require_trainable
from client.exchange import received_weights, sent_weights
from client.features import inputs_of
from client.local_work import LocalWork, of_common_batch
from client.masked_update import MaskedUpdate
from client.personal import Personal
from client.predictions import Predictions, write_predictions
from client.privacy_ledger import STATISTICS, STEPS, Budget, LedgerError, PrivacyLedger, patients_digest
from client.private_statistics import (
    hidden_source,
    keep_statistics,
    kept_statistics,
    private_statistics,
    untold_statistics,
)
from client.private_work import PrivateWork
from client.records import SiteRecords
from client.site_state import SiteState
from client.statistics import site_statistics
from client.training import Scores, make_optimizer, place, predict
from dipro_model import ClassWeights, DiPro
from dipro_model.metrics import score
from dipro_model.vocabulary import SPLITS
from federation.agreement import Agreement
from federation.code_digest import code_digest
from federation.codecs import codec_of
from federation.duplicates import hash_patients
from federation.messages import EvaluateReply, Instruction, JoinReply, TrainReply
from federation.pooled import ScoreCounts, summarise
from federation.results import SplitResult
from federation.secure.errors import SecureError
from federation.secure.terms import terms_digest
from federation.secure.update_form import UpdateForm
from federation.selection import ModelEntries, model_entries
from federation.settings import RunSettings
from federation.site_statistics import AgreementError, SiteStatistics
from federation.weights import flatten_weights, layout_digest, unflatten_weights


@dataclass(frozen=True, kw_only=True)
class Site:
    """One hospital in one run."""

    records: SiteRecords
    """With the values that the sites agreed on, once they have."""
    settings: RunSettings
    device: torch.device
    agreement: Agreement | None = None
    """None until the sites have agreed, which they have when they train."""
    withhold: tuple[str, ...] = ()
    """What the site refuses to disclose of its training part, as `federation.site_statistics.items_of` names it."""
    folder: Path | None = None
    """Where the site keeps its own patients' predictions, round by round; None keeps none."""
    budget: Budget | None = None
    """What all private runs on its patients may spend together; None is any."""
    masked: MaskedUpdate | None = None
    """What masks the update of this round; None where it travels in the clear."""

    @property
    def name(self) -> str:
        return self.records.name

    @property
    def num_patients(self) -> int:
        """Patients of the training part."""
        return len(self._training_patients)

    @property
    def _training_patients(self) -> set[int]:
        return {stay.subject_id for stay in self.records.stays.values() if stay.split == SPLITS[0]}

    def samples(self, split: str, model: DiPro | None = None) -> SampleSet:
        """The samples of a split; for counting them no model is needed."""
        inputs = None if model is None else inputs_of([self.records], model, self.settings)
        return SampleSet([self.records], self.settings.task, split, inputs)

    def join(self, instruction: Instruction, *, since: float) -> JoinReply:
        """Check that this site can take part, count its samples and sum up its training part; forget other runs.

        `since` is when the question was read, by the monotonic clock. With a salt the patients' hashed identifiers go
        along. Raises DataError where a split has no sample or training
        has a single class.
        """
        state = self._state(instruction)
        state.begin()
        if self.settings.secure_aggregation.enabled:
            Attempts(state=state).forget()  # a server that begins, or goes on, knows none of them
        require_every_split([self.records], self.settings.task, SPLITS)
        require_trainable(self.samples("train"))
        minimum = self.settings.federation.minimum_cell
        statistics = site_statistics(self.records, self.settings.task, minimum_cell=minimum, withheld=self.withhold)
        told = self.settings.patient_privacy.told_statistics
        if told == "noised":
            statistics = self._noised(statistics, instruction)
        elif told == "start":
            statistics = untold_statistics(statistics, source=hidden_source(self.records, state))
        patients = {stay.subject_id for stay in self.records.stays.values()}
        return JoinReply(
            site=self.name,
            num_samples={split: len(self.samples(split)) for split in SPLITS},
            statistics=statistics,
            clock=time.time(),
            seconds=time.monotonic() - since,
            patients=hash_patients(patients, instruction.salt) if instruction.salt else (),
            runs_on=runs_on(self.device),
        )

    def train(self, model: DiPro, instruction: Instruction) -> TrainReply:
        """A round's local work from the given weights, which replace the model's own, with a fresh optimizer.

        FedProx and SCAFFOLD add to the gradients; a personal model is made beside, and stays here.
        """
        self._require_masked()
        require_trainable(self.samples("train"))
        model, entries = place(model, self.device, self.settings), model_entries(model)
        codec, state = codec_of(self.settings.communication, lambda: entries), self._state(instruction)
        received = received_weights(instruction, state, codec)
        scored = self._score_last_round(model, instruction, received) if instruction.splits else None
        _held.pop(model, None)  # the work changes it
        personal = Personal(settings=self.settings, state=state)
        start = time.monotonic()
        begin = personal.start(model, received, instruction.server_round)
        unflatten_weights(model, begin)
        samples = self.samples("train", model)
        correction = self._correction(instruction)
        before_step = correction.before_step(model, entries, received)
        if self.settings.patient_privacy.enabled:
            self._work_privately(model, samples, instruction, before_step)
            work, losses = None, {}  # losses are of the patients whom the noise hides
        else:
            work, losses = self._work(model, samples, instruction, before_step)
        trained = flatten_weights(model)
        control_change = np.zeros(0, np.float32)
        if work is not None:
            control_change = correction.end(entries.parameters, begin, trained, sum_of_rates=work.sum_of_rates)
            if work.norm_gradients is not None:
                control_change = self._norm_change(instruction, work.norm_gradients)
        personal.keep(model, instruction, received, samples, self._class_weights())
        if self.masked is None:
            sent = sent_weights(trained, received, state, codec, instruction.server_round)
        else:
            sent = self._masked_update(self.masked, entries, trained, received, control_change, instruction)
            control_change = control_change[:0]
        return TrainReply(
            site=self.name,
            num_samples=len(samples),
            weights=sent,
            losses=losses,
            seconds=time.monotonic() - start,
            server_round=instruction.server_round,
            code_digest=code_digest(),
            layout_digest=layout_digest(model),
            agreement_digest=self._agreed().digest,
            control_change=control_change,
            scored=scored,
            private_steps=self._ledger().steps_of(instruction.run) if self.settings.patient_privacy.enabled else 0,
        )

    def _work(
        self, model: DiPro, samples: SampleSet, instruction: Instruction, before_step: Callable[[], None]
    ) -> tuple[LocalWork, dict[str, float]]:
        """Train the model; the work that was done, and its mean training losses."""
        settings = of_common_batch(self.settings, len(samples), instruction.total_samples)
        of_norms = instruction.control if settings.training.batch_norm == "received" else None
        work = LocalWork(settings=settings, server_round=instruction.server_round, norm_gradients=of_norms)
        losses = work.run(
            model, samples, make_optimizer(model, settings), self._class_weights(), before_step=before_step
        )
        return work, losses

    def _work_privately(
        self, model: DiPro, samples: SampleSet, instruction: Instruction, before_step: Callable[[], None]
    ) -> None:
        """Train the model by DP-SGD."""
        PrivateWork(settings=self.settings, server_round=instruction.server_round).run(
            model,
            samples,
            make_optimizer(model, self.settings),
            self._class_weights(),
            spend=lambda num_steps: self._spend(instruction, STEPS, num_steps),
            before_step=before_step,
        )

    def _noised(self, statistics: SiteStatistics, instruction: Instruction) -> SiteStatistics:
        """What the site tells of its training part in a private run; the same whenever it is asked in this run."""
        state = self._state(instruction)
        if (kept := kept_statistics(state)) is not None:
            return kept
        self._spend(instruction, STATISTICS)
        noised = private_statistics(
            self.records,
            self.settings.task,
            statistics,
            noise=self.settings.patient_privacy.statistics_noise,
            source=hidden_source(self.records, state),
        )
        keep_statistics(state, noised)
        return noised

    def _ledger(self) -> PrivacyLedger:
        if self.folder is None:
            raise LedgerError(
                f"{self.name}: expected a folder for the ledger of what is spent of its patients' privacy, found none; "
                "start the SuperNode with --node-config 'folder=\"FOLDER\"'"
            )
        return PrivacyLedger(folder=self.folder, patients=patients_digest(self._training_patients))

    def _correction(self, instruction: Instruction) -> Correction:
        return Correction(
            settings=self.settings,
            state=self._state(instruction),
            control=instruction.control,
            server_round=instruction.server_round,
        )

    def _spend(self, instruction: Instruction, what: str, num_steps: int = 1) -> None:
        """Write into the site's ledger what is about to be spent. Raises LedgerError where it must not be."""
        privacy, federation = self.settings.patient_privacy, self.settings.federation
        steps = what == STEPS
        answers = [privacy.answers(privacy.noise(federation), num_steps)] if steps else privacy.statistics_answers()
        self._ledger().spend(
            run=instruction.run,
            server_round=instruction.server_round,
            what=what,
            answers=answers,
            budget=self.budget,
        )

    def _require_masked(self) -> None:
        """Where the settings say so, nothing leaves in the clear, whatever the server sends."""
        if self.settings.secure_aggregation.enabled and self.masked is None:
            raise SecureError(f"{self.name}: expected what its update is masked with, found an instruction without")

    def _masked_update(
        self,
        masked: MaskedUpdate,
        entries: ModelEntries,
        trained: np.ndarray,
        received: np.ndarray,
        control_change: np.ndarray,
        instruction: Instruction,
    ) -> np.ndarray:
        form = UpdateForm(
            entries=entries,
            control_size=instruction.control.size,
            pools_moments=self.settings.strategy.recalibrate,
            largest_change=self.settings.secure_aggregation.largest_change,
        )
        return masked.write(
            form,
            trained,
            received,
            control_change,
            num_samples=len(self.samples("train")),
            total_samples=instruction.total_samples,
            terms=terms_digest(self.settings, instruction.total_samples, received, instruction.control),
        )

    def _norm_change(self, instruction: Instruction, gradients: np.ndarray) -> np.ndarray:
        """What a round's gradients of batch norm change of those that the server keeps.

        Of the first round nothing: it normalises with a new model's zeros and ones, and its gradients are of that.
        """
        before = instruction.server_round - 1
        share = self.settings.strategy.statistics_share(before) if before else 0.0
        return np.float32(share) * (gradients - instruction.control)

    def _state(self, instruction: Instruction) -> SiteState:
        return SiteState(site=self.name, folder=self.folder, run=instruction.run)

    def _agreed(self) -> Agreement:
        if self.agreement is None:
            raise AgreementError(f"{self.name}: expected an agreement of the sites, found none; they join first")
        return self.agreement

    def _class_weights(self) -> ClassWeights:
        """Those of all sites' labels together."""
        return self._agreed().class_weights(self.settings.training.class_weights).to(self.device)

    def evaluate(self, model: DiPro, instruction: Instruction) -> EvaluateReply:
        """Losses and metrics on the asked splits of the given weights, or of the site's personal model.

        The predictions themselves stay in `folder`.
        """
        model = place(model, self.device, self.settings)
        codec = codec_of(self.settings.communication, lambda: model_entries(model))
        return self._score(model, instruction, received_weights(instruction, self._state(instruction), codec))

    def _score_last_round(self, model: DiPro, instruction: Instruction, received: np.ndarray) -> EvaluateReply:
        """What the model that a round begins with is worth: that of the round before."""
        return self._score(model, replace(instruction, server_round=instruction.server_round - 1), received)

    def _score(self, model: DiPro, instruction: Instruction, received: np.ndarray) -> EvaluateReply:
        start = time.monotonic()
        factors = self._class_weights()
        personal = Personal(settings=self.settings, state=self._state(instruction))
        version = (instruction.run, instruction.version)
        if not instruction.run or _held.pop(model, None) != version:
            unflatten_weights(model, received)
        samples = self.samples("train", model)
        scored = personal.scored(model, instruction, received, samples, factors)
        if scored is not received:
            unflatten_weights(model, scored)
        elif personal.method == "none":
            _held[model] = version
        results = score_splits(model, [self.records], self.settings, factors, self._scored_splits(instruction.splits))
        counted = [] if instruction.final else results
        if self.folder is not None:
            step = CHOSEN if instruction.final else round_folder(instruction.server_round)
            write_predictions(self.folder / step, self.name, to_predictions(results))
        return EvaluateReply(
            site=self.name,
            splits={samples.split: self._told(samples, split_result(samples, scores)) for samples, scores in results},
            seconds=time.monotonic() - start,
            counts={samples.split: self._counts(samples, scores) for samples, scores in counted},
        )

    def _scored_splits(self, splits: tuple[str, ...]) -> tuple[str, ...]:
        """Of a private run no scores of training patients leave: the noise would hide them in vain."""
        if not self.settings.patient_privacy.enabled:
            return splits
        return tuple(split for split in splits if split != SPLITS[0])

    def _told(self, samples: SampleSet, result: SplitResult) -> SplitResult:
        """What leaves of a split; of a private run no losses and metrics of fewer patients than the minimum cell."""
        few = len(set(samples.patients)) < self.settings.federation.minimum_cell
        if not (self.settings.patient_privacy.enabled and few):
            return result
        return replace(result, losses={}, metrics=dict.fromkeys(result.metrics))

    def _counts(self, samples: SampleSet, scores: Scores) -> ScoreCounts:
        """What this site discloses of a split's scores, for metrics of all sites' patients as one set."""
        minimum = self.settings.federation.minimum_cell
        patients = np.array([subject for _, subject in samples.patients])
        return summarise(samples.task, scores.labels, scores.probabilities, patients=patients, minimum_cell=minimum)


_held: WeakKeyDictionary[DiPro, tuple[str, int]] = WeakKeyDictionary()
"""Run and version of the common model that a network holds, so that sites of one process that score it one after the
other do not each fill it again; whoever changes the network takes it out."""

CHOSEN = "chosen"
"""Folder, in a site's folder, of its own predictions of the model that the run ends with."""


def round_folder(server_round: int) -> str:
    """Folder, in a site's folder, of its own predictions of one round."""
    return f"round_{server_round:04d}"


Scored = tuple[SampleSet, Scores]


def score_splits(
    model: DiPro,
    sites: Sequence[SiteRecords],
    settings: RunSettings,
    weights: ClassWeights,
    splits: Sequence[str] = SPLITS,
) -> list[Scored]:
    """Samples and scores of each of these splits that has samples."""
    inputs = inputs_of(sites, model, settings)
    sets = [SampleSet(sites, settings.task, split, inputs) for split in splits]
    return [(samples, predict(model, samples, settings, weights)) for samples in sets if len(samples)]


def split_result(samples: SampleSet, scores: Scores) -> SplitResult:
    """Losses and metrics of a split, without any patient's value."""
    metrics = score(samples.task, scores.labels, scores.probabilities)
    return SplitResult(
        num_samples=len(samples),
        losses=scores.losses,
        metrics={name: metric.value for name, metric in metrics.items()},
    )


def to_predictions(results: Sequence[Scored]) -> Predictions:
    """The table of predictions of some splits, one below the other."""
    first, *others = [_one_split(samples, scores) for samples, scores in results]
    return first.join(others)


def _one_split(samples: SampleSet, scores: Scores) -> Predictions:
    rows = samples.samples
    return Predictions(
        task=samples.task,
        site=np.array([row.site for row in rows], dtype=object),
        subject_id=np.array([row.stay.subject_id for row in rows], np.int64),
        stay_id=np.array([row.stay.stay_id for row in rows], np.int64),
        sample_id=np.array([row.sample_id for row in rows], dtype=object),
        split=np.array([samples.split] * len(rows), dtype=object),
        labels=scores.labels.astype(np.int8),
        probabilities=scores.probabilities,
        attention=scores.attention,
    )


def runs_on(device: torch.device) -> tuple[str, ...]:
    """The versions that a site works with and the device that trains, in words."""
    try:
        own = version("dipro-fed")
    except PackageNotFoundError:  # from a folder that nobody installed
        own = "not installed"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"dipro-fed {own}", f"torch {torch.__version__}", name
