"""Secure aggregation by itself: the exact sum of whoever is left, whoever is lost when; below the threshold nothing."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.secure.errors import SecureError
from federation.secure.steps import SharesAnswer, SiteKeys, UnmaskAnswer, sign_keys
from federation.secure_settings import SecureAggregationSettings
from server.ceremony import Ceremony
from tests.masking_world import World

STEPS = ("keys", "shares", "train", "confirm", "unmask")
NAMES = [f"site-{number:02d}" for number in range(12)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def _world(keys: Path, folder: Path, num_sites: int, **chosen) -> World:
    return World(keys, folder, NAMES[:num_sites], SecureAggregationSettings(enabled=True, **chosen))


@given(num_sites=st.integers(2, 7), data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_loss_down_to_the_threshold_gives_the_exact_sum(keys: Path, num_sites: int, data: st.DataObject) -> None:
    """Each site is lost before one of the steps, or never; who is left at the end decides."""
    ends = data.draw(st.lists(st.sampled_from([*STEPS, None]), min_size=num_sites, max_size=num_sites))
    with TemporaryDirectory() as folder:
        world = _world(keys, Path(folder), num_sites)
        lost = {step: [site for site, end in zip(world.sites, ends, strict=True) if end == step] for step in STEPS}
        survivors = [site for site, end in zip(world.sites, ends, strict=True) if end in (None, "confirm", "unmask")]
        left = ends.count(None)
        if left < world.settings.least_sites(num_sites):
            with pytest.raises(SecureError):
                world.run(lost)
            return
        total = world.run(lost)
        for found, expected in zip((total.wide, total.narrow), world.sum(survivors), strict=True):
            np.testing.assert_array_equal(found, expected)


@given(lost=st.sets(st.sampled_from(NAMES), max_size=2), step=st.sampled_from(STEPS[2:]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_with_some_neighbours_each_the_sum_is_the_same(keys: Path, lost: set[str], step: str) -> None:
    with TemporaryDirectory() as folder:
        world = _world(keys, Path(folder), 12, neighbours=6)
        total = world.run({step: lost})
        survivors = [site for site in world.sites if step != "train" or site not in lost]
        for found, expected in zip((total.wide, total.narrow), world.sum(survivors), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_below_the_threshold_nobody_reveals_anything(keys: Path, tmp_path: Path) -> None:
    """The server itself does not ask; and sites that are asked all the same refuse."""
    world = _world(keys, tmp_path, 4)
    ceremony = _trained(world, world.sites[:2])
    with pytest.raises(SecureError, match="expected masked updates of 3 sites or more, 2 came"):
        ceremony.ask("confirm")
    ceremony.least = 2  # a server that does not keep to it
    for site in world.sites[:2]:
        with pytest.raises(SecureError, match=f"{site}: expected 3 or more of those that masked"):
            world.answer(site, ceremony.ask("confirm"))
        held = next((tmp_path / site).rglob("1-*.json")).read_text()
        assert '"revealed":null' in held


def _trained(world: World, masking: list[str]) -> Ceremony:
    """A ceremony in which all gave shares and these sent masked updates."""
    ceremony = world.ceremony()
    world.ask(ceremony, "keys", world.sites)
    world.ask(ceremony, "shares", world.sites)
    for site in masking:
        ceremony.take_masked(site, world.masked(site, ceremony.ask_mask(site)))
    return ceremony


def test_a_malicious_share_is_found_and_its_round_ends(keys: Path, tmp_path: Path) -> None:
    world = _world(keys, tmp_path, 3)
    ceremony = _trained(world, world.sites)
    world.ask(ceremony, "confirm", world.sites)
    world.ask(ceremony, "unmask", world.sites[:2])
    third = world.answer(world.sites[2], ceremony.ask("unmask"))
    other = f"{int(third.self_masks[world.sites[0]], 16) ^ 1:0132x}"
    ceremony.take(world.sites[2], third.model_copy(update={"self_masks": {**third.self_masks, world.sites[0]: other}}))
    with pytest.raises(SecureError, match=r"the mask of site-00 cannot be taken away"):
        ceremony.sum()


def test_keys_that_are_replayed_or_of_others_are_refused_and_named(keys: Path, tmp_path: Path) -> None:
    """What a site said in another attempt, round or run, what another site said, and what another key signed."""
    world = _world(keys, tmp_path, 3)
    first, second = NAMES[:2]
    before, later, now = world.ceremony(), world.ceremony(server_round=2), world.ceremony()
    said = {each.attempt: world.answer(first, each.ask("keys")) for each in (before, later, now)}
    for other in (before, later):
        words = (
            f"{first}: expected keys of run run1, round 1, attempt {now.attempt[:8]}, found those of run run1, round "
        )
        with pytest.raises(SecureError, match=f"{words}{other.round}, attempt {other.attempt[:8]}"):
            now.take(first, said[other.attempt])
    with pytest.raises(SecureError, match=f"{second}: expected its own keys, found those of {first}"):
        now.take(second, said[now.attempt])
    own = said[now.attempt]
    assert isinstance(own, SiteKeys)
    with pytest.raises(SecureError, match="found those of run another, round 1"):
        now.take(first, sign_keys(world.masking(first).identity, own.model_copy(update={"run": "another"})))
    with pytest.raises(SecureError, match=f"{first}: expected its own certificate, found the one of {second}"):
        now.take(first, sign_keys(world.masking(second).identity, own))
    with pytest.raises(SecureError, match=f"{first}: expected a statement signed with its key"):
        now.take(first, own.model_copy(update={"mask_key": "ab" * 32}))
    now.take(first, own)


def test_answers_of_another_attempt_are_refused_and_named(keys: Path, tmp_path: Path) -> None:
    world = _world(keys, tmp_path, 3)
    third = world.sites[2]
    kept = []
    for number in (1, 2):
        ceremony = world.ceremony(server_round=number)
        world.ask(ceremony, "keys", world.sites)
        world.ask(ceremony, "shares", world.sites)
        for site in world.sites:
            ceremony.take_masked(site, world.masked(site, ceremony.ask_mask(site)))
        kept.append((ceremony, world.answer(third, ceremony.ask("confirm"))))
    (_, replayed), (ceremony, own) = kept
    with pytest.raises(SecureError, match=f"{third}: expected a statement signed with its key"):
        ceremony.take(third, replayed)
    ceremony.take(third, own)
    world.ask(ceremony, "confirm", world.sites[:2])
    shares = world.answer(third, ceremony.ask("unmask"))
    assert isinstance(shares, UnmaskAnswer)
    fewer = {site: share for site, share in shares.self_masks.items() if site != third}
    with pytest.raises(SecureError, match=f"{third}: expected a share of every neighbour that masked, found others"):
        ceremony.take(third, shares.model_copy(update={"self_masks": fewer}))


def test_shares_for_others_than_the_neighbours_are_refused_and_named(keys: Path, tmp_path: Path) -> None:
    world = _world(keys, tmp_path, 3)
    ceremony, third = world.ceremony(), world.sites[2]
    world.ask(ceremony, "keys", world.sites)
    given = world.answer(third, ceremony.ask("shares"))
    assert isinstance(given, SharesAnswer)
    for parcels in ({}, {**given.parcels, "far": "00"}, {**given.parcels, third: "00"}):
        with pytest.raises(SecureError, match=f"{third}: expected shares for its 2 neighbours, found others"):
            ceremony.take(third, given.model_copy(update={"parcels": parcels}))
