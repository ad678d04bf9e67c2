"""The rounds of a federated run: train, aggregate, evaluate, keep.

The loop is the project's own, over Flower's grid; Flower's strategies do the arithmetic on replies that were checked.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from dipro_model import DiPro
from dipro_model.vocabulary import SPLITS
from federation.accounting import BudgetError
from federation.code_digest import code_digest
from federation.codecs import Payload, codec_of
from federation.coders import CodecError
from federation.messages import EVALUATE, TRAIN, EvaluateReply, Instruction, TrainReply
from federation.secure.messages import with_masks
from federation.secure.steps import MaskStep
from federation.secure.terms import terms_digest
from federation.secure.update_form import UpdateForm
from federation.seeds import derive_seed
from federation.selection import Entries, ModelEntries, model_entries, module_entries
from federation.settings import RunSettings
from federation.weights import flatten_weights, layout_digest, unflatten_weights
from server.aggregation import Replies
from server.aggregator import Aggregator
from server.broadcast import Broadcast
from server.exchange import Refusals, Reply
from server.guards import Guard, norm_groups
from server.joining import Federation
from server.masked_replies import MaskedReplies
from server.masked_rounds import MaskedRounds
from server.site_privacy import SitePrivacy
from server.strategies import StrategyError


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round brought; the weights are in the model."""

    number: int
    trained: list[TrainReply]
    """A reply of each site that took part, in the order of the sites' names, without their weights."""
    evaluated: list[EvaluateReply]
    """A reply of each site that evaluated the aggregated model; none of a round that is not scored."""
    refused: Mapping[str, str]
    """By site, why its reply was not used: late, failed, or not what it must be."""
    state: "ServerState"
    """What the server must remember beside the model."""

    def plain(self) -> dict[str, Any]:
        """What a checkpoint keeps of a round that was not scored yet."""
        trained = [
            {
                "site": each.site,
                "num_samples": each.num_samples,
                "losses": dict(each.losses),
                "seconds": each.seconds,
                "private_steps": each.private_steps,
            }
            for each in self.trained
        ]
        return {"number": self.number, "trained": trained, "refused": dict(self.refused)}

    @classmethod
    def of_plain(cls, kept: Mapping[str, Any], state: "ServerState") -> "Round":
        """From what `plain` gave."""
        nothing = {"weights": np.zeros(0, np.float32), "code_digest": "", "layout_digest": "", "agreement_digest": ""}
        trained = [TrainReply(**each, server_round=kept["number"], **nothing) for each in kept["trained"]]
        return cls(number=kept["number"], trained=trained, evaluated=[], refused=kept["refused"], state=state)


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """What the server must know, beside the model, to go on after a round as if nothing had happened."""

    run: str
    """Name under which the sites keep what they remember between rounds."""
    finished: int = 0
    """Rounds that are over."""
    best_round: int = 0
    """The round with the best model so far; 0 where there is none."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Of the strategy, the codec and SCAFFOLD, by name."""
    unscored: Mapping[str, Any] | None = None
    """A round after the finished ones whose aggregate the model is already, as `Round.plain` gives it."""

    @classmethod
    def fresh(cls) -> "ServerState":
        """Of a run that begins."""
        return cls(run=secrets.token_hex(8))

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays under a name, by what follows it."""
        return {key.removeprefix(f"{name}/"): each for key, each in self.arrays.items() if key.startswith(f"{name}/")}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is made of a round."""

    best_round: int
    """The round with the best model so far; 0 where there is none."""
    is_last: bool = False
    """Whether further rounds are not worth it."""
    together: str = ""
    """What `Instruction.together` tells the sites of it; empty for a round that was not scored."""


class Rounds:
    """A federation at work on one model."""

    def __init__(
        self,
        federation: Federation,
        model: DiPro,
        folder: Path,
        state: ServerState,
        together: str = "",
        privacy: SitePrivacy | None = None,
    ) -> None:
        """Begin with this model, or go on with it where `state` says; replies may wait in `folder`.

        `together` is what `Instruction.together` says until a further round was scored. With `privacy` the mean of the
        updates is clipped, noised and charged.

        Raises StrategyError for a strategy that these sites cannot serve, and for the state of another one; RunError
        where what was spent of the sites' privacy is not known any more.
        """
        self._federation, self._model, self._folder = federation, model, folder
        self._settings = federation.settings
        self._entries, self._layout = model_entries(model), layout_digest(model)
        self._aggregator = make_aggregator(self._settings, self._entries, module_entries(model, "static_fusion"))
        self._broadcast = Broadcast(codec=codec_of(self._settings.communication, lambda: self._entries))
        self._broadcast.publish(flatten_weights(model))
        self._control = np.zeros(control_size(self._settings, self._entries), np.float32)
        self._run, self._best_round, self._finished = state.run, state.best_round, state.finished
        self._privacy = privacy
        self._together = together
        self._masked = MaskedRounds(federation, state.run) if self._settings.secure_aggregation.enabled else None
        self._unscored = None if state.unscored is None else Round.of_plain(state.unscored, state)
        if state.finished or state.unscored:
            self._restore(state)

    def run(self, on_round: Callable[[Round], Verdict], on_aggregate: Callable[[Round], None]) -> int:
        """All rounds; after each the model holds the aggregate, and `on_round` says whether to go on.

        `on_aggregate` is told of a round whose aggregate the sites will score when they are visited next.
        Returns the number of the last round. A site that is late, fails or sends what it must not is left out of its
        round, with the reason in `Round.refused`. Raises MessageError with all reasons where fewer sites than the
        quorum are left; the model is then that of the round before. Raises BudgetError where the budget of the sites'
        privacy is spent and there is no round to end with.
        """
        federation, unscored = self._settings.federation, self._unscored
        first = self._finished + 1 if unscored is None else unscored.number + 1
        last = self._last_round(first)
        for number in range(first, last + 1):
            refusals = Refusals(what=f"round {number}, {TRAIN}")
            with self._replies(number) as replies:
                scores = unscored is not None and federation.is_scored(unscored.number)
                trained = self._train(replies, number, refusals, splits=("val",) if scores else ())
                if unscored and self._is_last(on_round, unscored, _scores(trained)):
                    return unscored.number  # the work of the sites since then is not used
                weights, self._control = replies.aggregate()
                self._note(number, trained, replies, refusals)
            self._publish(weights)
            finished = Round(
                number=number, trained=trained, evaluated=[], refused=refusals.reasons, state=self._state(number)
            )
            if federation.visits == "one":
                on_aggregate(finished)
                unscored = finished
            elif self._is_last(on_round, finished, self._validated(number, last)):
                return number
        if unscored:
            self._is_last(on_round, unscored, self.evaluate(unscored.number, splits=("val",)))
        if self._privacy is not None and last < federation.rounds:
            self._privacy.end(last, federation.rounds)
        return last

    def _last_round(self, first: int) -> int:
        """The last round that is made of those from `first` on: the run's, or what the sites' budget pays for."""
        rounds = self._settings.federation.rounds
        if self._privacy is None:
            return rounds
        last = first - 1 + self._privacy.affordable(rounds - first + 1)
        if not last:
            raise BudgetError(
                "the budget of the sites' privacy was spent by rounds that were lost before the first was kept; begin "
                "a new run in another folder"
            )
        return last

    def _note(
        self, number: int, trained: list[TrainReply], replies: Replies | MaskedReplies, refusals: Refusals
    ) -> None:
        """Tell the audit log how long the updates of a round were and how alike, never their values; who has none."""
        note, similarity = self._federation.exchange.note, replies.similarity
        # The run's own words about these follow when the round is scored, which may take hours.
        left_out = {site: said.removeprefix(": ").strip() for site, said in sorted(refusals.reasons.items())}
        said = {"norms": replies.norms, "with_others": similarity.with_others(), "left_out": left_out}
        if self._privacy is not None and isinstance(replies, Replies):
            note("charged", round=number, **self._privacy.last_charge(), far_longer=replies.far_longer)
        note("aggregated", round=number, sites=len(trained), **said)
        sites, cosines = similarity.matrix()
        if sites:
            note("compared", round=number, sites=sites, cosines=cosines)

    def _validated(self, number: int, last: int) -> list[EvaluateReply]:
        is_scored = self._settings.federation.is_scored(number) or number == last
        return self.evaluate(number, splits=("val",)) if is_scored else []

    def _is_last(self, on_round: Callable[[Round], Verdict], finished: Round, evaluated: list[EvaluateReply]) -> bool:
        verdict = on_round(replace(finished, evaluated=evaluated))
        self._best_round, self._together = verdict.best_round, verdict.together or self._together
        return verdict.is_last

    def evaluate(self, number: int, *, splits: tuple[str, ...]) -> list[EvaluateReply]:
        """What each site says of the model on its own patients of these splits, in the order of the names.

        Raises MessageError where fewer than the quorum answered.
        """
        return self._evaluate(number, splits, final=False)

    def evaluate_finally(self, model: DiPro, number: int) -> list[EvaluateReply]:
        """What each site says of the model that the run ends with, that of round `number`, on all its splits.

        Raises MessageError where a site did not answer: the scores of the run are wanted of every site.
        """
        self._broadcast.publish_whole(flatten_weights(model))
        return self._evaluate(number, SPLITS, final=True)

    def _publish(self, weights: np.ndarray) -> None:
        """Write an aggregate into the model, as the sites will read it."""
        unflatten_weights(self._model, weights, keep_frozen=True)
        whole = flatten_weights(self._model)
        read = self._broadcast.publish(whole)
        if read is not whole:
            unflatten_weights(self._model, read, keep_frozen=True)

    def _evaluate(self, number: int, splits: tuple[str, ...], *, final: bool) -> list[EvaluateReply]:
        federation, refusals = self._federation, Refusals(what=f"round {number}, {EVALUATE}")
        enough = len(federation.nodes) if final else self._quorum(federation.nodes)
        replies = self._ask(
            number, EVALUATE, federation.nodes, EvaluateReply, refusals, enough, splits=splits, final=final
        )
        evaluated = [reply for reply, _ in replies]
        for site, reason in sorted(refusals.reasons.items()):
            said = reason.removeprefix(": ").strip()
            self._federation.exchange.note("not scored", round=number, site=site, reason=said)
        refusals.require(enough, len(evaluated))
        return evaluated

    def _train(
        self, replies: Replies | MaskedReplies, number: int, refusals: Refusals, *, splits: tuple[str, ...]
    ) -> list[TrainReply]:
        """Let the sites of a round train and take their replies in; what each says comes back, without its weights.

        With `splits` each scores the model that it begins with in the same visit.
        """
        asked, trained = participants(self._federation.nodes, self._settings, number), {}
        able, masks = dict(asked), None
        if self._masked is not None:
            able, masks = self._masked.prepare(number, asked, refusals, self._quorum(asked)), self._masked.mask_step
        # They come in the order of the sites' names, so that sums do not depend on who answered first.
        for reply, _ in self._ask(
            number, TRAIN, able, TrainReply, refusals, self._quorum(asked), splits=splits, masks=masks
        ):
            try:
                problem = replies.add(self._decoded(reply))
            except CodecError as error:
                problem = str(error)
            if problem is None:
                nothing = np.zeros(0, np.float32)
                trained[reply.site] = replace(reply, weights=nothing, control_change=nothing)
            else:
                refusals.reasons[reply.site] = f": {problem}"
        for site, problem in replies.refuse_outliers().items():
            del trained[site]
            refusals.reasons[site] = f": {problem}"
        refusals.require(self._quorum(asked), len(trained))
        return list(trained.values())

    def _decoded(self, reply: TrainReply) -> TrainReply:
        """The reply with its weights as they are. Raises CodecError for a payload that cannot be read."""
        codec = self._broadcast.codec
        if codec is None or self._masked is not None:
            return reply
        return replace(reply, weights=codec.decode(Payload.from_array(reply.weights), self._broadcast.weights))

    def _replies(self, number: int) -> Replies | MaskedReplies:
        federation = self._federation
        guard = Guard(
            server_round=number,
            code_digest=code_digest(),
            layout_digest=self._layout,
            agreement_digest=federation.agreement.digest,
            num_samples={site: joined.num_samples[SPLITS[0]] for site, joined in federation.joined.items()},
            reference=self._broadcast.weights,
            groups=norm_groups(self._entries),
            variances=self._entries.variances,
        )
        if self._masked is not None:
            return self._masked_replies(self._masked, guard)
        return Replies(
            guard,
            self._aggregator,
            self._settings.strategy,
            self._entries,
            self._control,
            self._folder,
            self._settings.federation.sites_a_round,
            self._privacy,
        )

    def _masked_replies(self, masked: MaskedRounds, guard: Guard) -> MaskedReplies:
        strategy, number = self._settings.strategy, guard.server_round
        form = UpdateForm(
            entries=self._entries,
            control_size=self._control.size,
            pools_moments=strategy.recalibrate,
            largest_change=self._settings.secure_aggregation.largest_change,
        )
        is_last = number == self._settings.federation.rounds
        following = {} if is_last else participants(self._federation.nodes, self._settings, number + 1)

        def terms(total_samples: int) -> str:
            return terms_digest(self._settings, total_samples, guard.reference, self._control)

        return MaskedReplies(guard, self._aggregator, strategy, form, self._control, masked, terms, following)

    def _ask(
        self,
        number: int,
        what: str,
        nodes: Mapping[int, str],
        kind: type[Reply],
        refusals: Refusals,
        enough: int,
        *,
        splits: tuple[str, ...] = (),
        final: bool = False,
        masks: Callable[[str], MaskStep] | None = None,
    ) -> Iterator[tuple[Reply, Message]]:
        """Replies to an instruction about the last version of the model, with what each site lacks of it.

        `masks` gives what each masks its update with.
        """
        records: dict[int, RecordDict] = {}

        def content(site: str) -> RecordDict:
            parcel = self._broadcast.parcel(site)
            if parcel.base not in records:  # sites that hold the same share one
                instruction = Instruction(
                    server_round=number,
                    code_digest=code_digest(),
                    layout_digest=self._layout,
                    weights=parcel.weights,
                    version=parcel.version,
                    base=parcel.base,
                    control=self._control if what == TRAIN else np.zeros(0, np.float32),
                    run=self._run,
                    best_round=self._best_round,
                    splits=splits,
                    final=final,
                    agreement=self._federation.agreement.to_json(),
                    together=self._together,
                    total_samples=sum(each.num_samples[SPLITS[0]] for each in self._federation.joined.values()),
                )
                records[parcel.base] = instruction.record()
            return records[parcel.base] if masks is None else with_masks(records[parcel.base], masks(site))

        for reply, message in self._federation.exchange.replies(content, what, nodes, kind, refusals, enough=enough):
            records.clear()  # what was sent must not outlive the exchange
            self._broadcast.is_held_by(reply.site)
            yield reply, message
        for site in refusals.reasons:
            self._broadcast.is_lost_by(site)

    def _state(self, finished: int) -> ServerState:
        named = {f"strategy/{name}": values for name, values in self._aggregator.state().items()}
        named |= {f"broadcast/{name}": values for name, values in self._broadcast.state().items()}
        named |= {"control": self._control} if self._control.size else {}
        if self._privacy is not None:
            named |= {f"privacy/{name}": values for name, values in self._privacy.state().items()}
        return ServerState(run=self._run, finished=finished, best_round=self._best_round, arrays=named)

    def _restore(self, state: ServerState) -> None:
        self._aggregator.restore(state.part("strategy"))
        self._broadcast.restore(self._broadcast.weights, state.part("broadcast"))
        self._control = state.arrays.get("control", self._control)
        if self._privacy is not None:
            self._privacy.restore(state.part("privacy"))

    def _quorum(self, asked: Mapping[int, str]) -> int:
        quorum = self._settings.federation.quorum
        return len(asked) if quorum == "all" else quorum


def _scores(trained: list[TrainReply]) -> list[EvaluateReply]:
    return [reply.scored for reply in trained if reply.scored is not None]


def participants(nodes: Mapping[int, str], settings: RunSettings, server_round: int) -> dict[int, str]:
    """Nodes and sites that are asked to train in a round, in the order of the names; the run's seed decides."""
    seed = derive_seed(settings.seed, "participants", server_round)
    drawn = np.random.default_rng(seed).permutation(len(nodes))[: settings.federation.sites_a_round]
    chosen = set(drawn.tolist())
    return {node: site for place, (node, site) in enumerate(nodes.items()) if place in chosen}


def control_size(settings: RunSettings, entries: ModelEntries) -> int:
    """Numbers that go to the sites beside the model and whose changes come back.

    SCAFFOLD's control variate; with `training.batch_norm=received` the gradients of batch norm's own parameters, mean
    over all sites (client/received_norms.py); otherwise none.
    """
    if settings.strategy.name == "scaffold":
        return entries.parameters.size
    if settings.training.batch_norm == "received":
        return entries.batch_norm.both(entries.parameters).size
    return 0


def make_aggregator(settings: RunSettings, entries: ModelEntries, static_fusion: Entries) -> Aggregator:
    """The strategy of the settings; static fusion may have a rate of its own at the server too.

    Raises StrategyError where it makes no sense for the sites of a round.
    """
    strategy, federation = settings.strategy, settings.federation
    statistics = entries.trained.both(entries.statistics)
    aggregator = Aggregator(
        strategy.name,
        strategy.parameters(),
        num_sites=federation.sites_a_round,
        statistics=statistics if statistics.size else None,
        faster=(static_fusion, settings.training.static_fusion_rate),
        factor=lambda server_round: strategy.server_factor(server_round, federation.rounds),
    )
    if federation.quorum != "all" and federation.quorum < aggregator.least_replies:
        raise StrategyError(
            f"federation.quorum: expected {aggregator.least_replies} or more for {strategy.name}, which needs so many "
            f"replies, found {federation.quorum}"
        )
    return aggregator
