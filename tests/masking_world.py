"""Sites and a server of secure aggregation without Flower: who is lost at which step is the test's to say."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from client.attempts import Attempts
from client.masking import Masking
from client.site_state import SiteState
from federation.messages import raw_record
from federation.secure.identity import Identity
from federation.secure.steps import MaskStep, Said, Step, Steps, read
from federation.secure.words import Words
from federation.secure_settings import SecureAggregationSettings
from server.ceremony import ANSWERS, Ceremony
from simulation.identities import make_identities

RUN = "run1"


class World:
    """Some sites, each with its own folder and keys, and the updates that they would send."""

    def __init__(
        self, keys: Path, folder: Path, names: Collection[str], settings: SecureAggregationSettings, size: int = 50
    ) -> None:
        """`keys` may hold the keys of sites of earlier worlds: making them takes longest."""
        make_identities(keys / "authority", {name: keys / name for name in names})
        self.folder, self.keys, self.settings = folder, keys, settings
        self.sites = sorted(names)
        numbers = np.random.default_rng(len(names))
        self.updates = {
            site: (numbers.integers(0, 1 << 63, 3, np.uint64), numbers.integers(0, 1 << 32, size, np.uint32))
            for site in self.sites
        }

    def ceremony(self, server_round: int = 1) -> Ceremony:
        return Ceremony(self.settings, RUN, server_round, len(self.sites))

    def masking(self, site: str) -> Masking:
        """A site as a new process has it: it knows what is on its disk."""
        state = SiteState(site=site, folder=self.folder / site, run=RUN)
        return Masking(
            site=site,
            attempts=Attempts(state=state),
            identity=Identity.load(self.keys / site),
            settings=self.settings,
            num_asked=len(self.sites),
        )

    def words(self, site: str) -> Words:
        """A site's update, unmasked."""
        wide, narrow = self.updates[site]
        words = Words(len(wide), len(narrow))
        words.wide[:], words.narrow[:] = wide, narrow
        return words

    def masked(self, site: str, step: MaskStep, terms: str = "") -> Words:
        """The update as it leaves the site."""
        words, masking = self.words(site), self.masking(site)
        masking.mask(read(MaskStep, step.model_dump_json(), "the server"), words, terms)
        masking.keep_reply(step, RecordDict({"arrays": raw_record({"0": words.content.copy()})}))
        return words

    def sum(self, sites: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of the updates of these sites, by numpy's own addition."""
        wides, narrows = zip(*(self.updates[site] for site in sites), strict=True)
        return np.sum(wides, axis=0, dtype=np.uint64), np.sum(narrows, axis=0, dtype=np.uint32)

    def ask(self, ceremony: Ceremony, step: str, sites: Collection[str]) -> None:
        """One step at these sites, over JSON as over a network."""
        asked = ceremony.ask(step)
        for site in sites:
            ceremony.take(site, read(ANSWERS[step], self.answer(site, asked).model_dump_json(), site))

    def answer(self, site: str, step: Step) -> Said:
        """What a site says to one step."""
        (asked,) = read(Steps, Steps(steps=(step,)).model_dump_json(), "the server").steps
        return self.masking(site).answer(asked)

    def run(self, lost: Mapping[str, Collection[str]] | None = None, server_round: int = 1) -> Words:
        """A whole round; `lost` names, by step, who does not answer it, nor any later one."""
        ceremony, left = self.ceremony(server_round), list(self.sites)
        for step in ("keys", "shares", "train", "confirm", "unmask"):
            left = [site for site in left if site not in (lost or {}).get(step, ())]
            if step != "train":
                self.ask(ceremony, step, left)
                continue
            for site in left:
                ceremony.take_masked(site, self.masked(site, ceremony.ask_mask(site)))
        return ceremony.sum()
