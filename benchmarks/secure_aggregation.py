"""What masking costs a site and the server, by number of sites, neighbours and sites that are lost.

    python benchmarks/secure_aggregation.py [--parameters 31000000] [--sites 5 20 50]

One process and thread, no network. All sites make keys, give shares, sign and reveal for real; one of them writes and
masks an update of so many parameters, which is what every site does, and the others' places in the sum are taken by
random numbers: the server adds as many and takes as many masks away as in a real round. What it then holds is no sum,
so that sums are right is for the tests. A tenth of the sites, at least one, is lost after it gave shares, which is the
costliest moment: the server makes all its pair masks anew. CPU-seconds, and bytes of what the messages say.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from flwr.app import RecordDict
from measure import RESULTS, conditions, in_new_process, show, write_results

from federation.messages import num_bytes, raw_record
from federation.secure.messages import MasksQuestion, MasksReply, with_masks
from federation.secure.update_form import UpdateForm
from federation.secure_settings import SecureAggregationSettings
from federation.selection import Entries, ModelEntries
from server.ceremony import Ceremony
from tests.masking_world import RUN, World

STATISTICS = 0.0017
"""Share of running means and variances in the published model."""


class Costs:
    """CPU-seconds of one site and of the server, and a site's bytes, summed up by what they were for."""

    def __init__(self, world: World, ceremony: Ceremony) -> None:
        self.world, self.ceremony, self.first = world, ceremony, world.sites[0]
        self.site_seconds: dict[str, float] = {}
        self.server_seconds: dict[str, float] = {}
        self.down = self.up = 0

    def of_site(self, what: str, work: Callable[[], Any]) -> Any:
        return _timed(self.site_seconds, what, work)

    def of_server(self, what: str, work: Callable[[], Any]) -> Any:
        return _timed(self.server_seconds, what, work)

    def visit(self, step: str, sites: list[str]) -> None:
        """A light step at these sites; the first one's work and bytes count."""
        asked = self.of_server("messages", lambda: self.ceremony.ask(step))
        for site in sites:
            if site == self.first:
                answer = self.of_site("messages", lambda: self.world.masking(self.first).answer(asked))
                reply = MasksReply(site=site, answers=(answer.model_dump_json(),))
                self.down += num_bytes(MasksQuestion(run=RUN, steps=(asked,)).record())
                self.up += num_bytes(reply.record())
            else:
                answer = self.world.masking(site).answer(asked)
            self.of_server("messages", lambda site=site, answer=answer: self.ceremony.take(site, answer))


def _timed(seconds: dict[str, float], what: str, work: Callable[[], Any]) -> Any:
    start = time.process_time()
    done = work()
    seconds[what] = seconds.get(what, 0.0) + time.process_time() - start
    return done


def _form(parameters: int) -> UpdateForm:
    """Of a model with so many parameters, and running statistics behind them."""
    half = int(parameters * STATISTICS / 2)
    total = parameters + 2 * half
    means = Entries(total=total, runs=((parameters, parameters + half),))
    variances = Entries(total=total, runs=((parameters + half, total),))
    everything = Entries(total=total, runs=((0, total),))
    entries = ModelEntries(
        trained=everything,
        parameters=Entries(total=total, runs=((0, parameters),)),
        means=means,
        variances=variances,
        batch_norm=means.either(variances),
    )
    return UpdateForm(entries=entries, control_size=0, pools_moments=False, largest_change=4.0)


def measure(parameters: int, num_sites: int, neighbours: int | str, is_lossy: bool) -> dict[str, Any]:
    """One round."""
    settings = SecureAggregationSettings.model_validate({"enabled": True, "neighbours": neighbours})
    with TemporaryDirectory() as scratch:
        names = [f"site-{number:02d}" for number in range(num_sites)]
        world = World(Path(scratch) / "keys", Path(scratch) / "sites", names, settings)
        costs = Costs(world, world.ceremony())
        costs.visit("keys", world.sites)
        costs.visit("shares", world.sites)
        left = world.sites[: num_sites - max(1, num_sites // 10)] if is_lossy else world.sites
        sent = _train(costs, _form(parameters), left)
        costs.visit("confirm", left)
        costs.visit("unmask", left)
        costs.of_server("taking masks away", costs.ceremony.sum)
    return {
        "site_seconds": costs.site_seconds,
        "server_seconds": costs.server_seconds,
        "light_bytes_down": costs.down,
        "light_bytes_up": costs.up,
        "update_bytes": sent,
        "plain_bytes": 4 * _form(parameters).entries.trained.total,
    }


def _train(costs: Costs, form: UpdateForm, left: list[str]) -> int:
    """The first site masks an update, others send as many random bytes; the bytes of an update."""
    numbers = np.random.default_rng(0)
    reference = numbers.standard_normal(form.entries.trained.total, np.float32)
    weights = reference + np.float32(1e-3) * numbers.standard_normal(reference.size, np.float32)
    masking, sent, nothing = costs.world.masking(costs.first), 0, np.zeros(0, np.float32)
    for site in left:
        step = costs.ceremony.ask_mask(site)
        costs.down += num_bytes(with_masks(RecordDict(), step)) if site == costs.first else 0
        if site == costs.first:
            words = costs.of_site(
                "whole numbers", lambda: form.write(weights, reference, nothing, num_samples=50, share=1 / len(left))
            )
            costs.of_site("masks", lambda step=step, words=words: masking.mask(step, words, ""))
            content = RecordDict({"arrays": raw_record({"weights": words.content})})
            costs.of_site("keeping the reply", lambda step=step, c=content: masking.keep_reply(step, c))
            sent = words.content.size
        else:
            costs.world.masked(site, step)
            words = form.blank(numbers.integers(0, 256, sent, np.uint8))
        costs.of_server("adding", lambda site=site, words=words: costs.ceremony.take_masked(site, words))
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=31_000_000)
    parser.add_argument("--sites", type=int, nargs="+", default=[5, 20, 50])
    parser.add_argument("--neighbours", type=int, default=20, help="of the sparse case, at the most sites")
    parser.add_argument("--out", type=Path, default=RESULTS / "secure_aggregation.json")
    arguments = parser.parse_args()
    pairs = [(sites, "all") for sites in arguments.sites] + [(max(arguments.sites), arguments.neighbours)]
    results, rows = [], []
    for sites, neighbours in pairs:
        for is_lossy in (False, True):
            found = in_new_process(measure, arguments.parameters, sites, neighbours, is_lossy, threads=1)
            lost = max(1, sites // 10) if is_lossy else 0
            results.append({"sites": sites, "neighbours": neighbours, "lost": lost, **found})
            rows.append(_row(results[-1]))
            show("Secure aggregation of one round", COLUMNS, rows[-1:])
    write_results(arguments.out, {"conditions": conditions(1) | {"parameters": arguments.parameters}, "cases": results})
    show("Secure aggregation of one round", COLUMNS, rows)


COLUMNS = (
    *("sites", "neighbours", "lost", "site: numbers, s", "masks, s", "reply kept, s", "messages, s"),
    *("server: adding, s", "unmasking, s", "messages, s", "update, MB", "light down, kB", "light up, kB", "peak, GB"),
)


def _row(found: dict[str, Any]) -> tuple[object, ...]:
    site, server = found["site_seconds"], found["server_seconds"]
    seconds = (site["whole numbers"], site["masks"], site["keeping the reply"], site["messages"])
    of_server = (server["adding"], server["taking masks away"], server["messages"])
    return (
        *(found["sites"], found["neighbours"], found["lost"]),
        *(f"{each:.2f}" for each in (*seconds, *of_server)),
        f"{found['update_bytes'] / 1e6:.1f}",
        f"{found['light_bytes_down'] / 1e3:.1f}",
        f"{found['light_bytes_up'] / 1e3:.1f}",
        found["peak_gb"],
    )


if __name__ == "__main__":
    main()
