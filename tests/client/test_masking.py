"""What a site refuses in secure aggregation: each with the reason, naming who or what is wrong."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.secure.errors import SecureError
from federation.secure.identity import Identity
from federation.secure.steps import ConfirmStep, KeysStep, MaskStep, SharesStep, SiteKeys, UnmaskStep, read, sign_keys
from federation.secure_settings import SecureAggregationSettings
from server.ceremony import Ceremony
from simulation.identities import make_identities
from tests.masking_world import RUN, World

NORTH, SOUTH, WEST = "north", "south", "west"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def world(keys: Path, tmp_path: Path) -> World:
    return World(keys, tmp_path / "sites", [NORTH, SOUTH, WEST], SecureAggregationSettings(enabled=True))


def _begun(world: World) -> tuple[Ceremony, SharesStep]:
    ceremony = world.ceremony()
    world.ask(ceremony, "keys", world.sites)
    asked = ceremony.ask("shares")
    assert isinstance(asked, SharesStep)
    return ceremony, asked


def _trained(world: World, server_round: int = 1, sites: list[str] | None = None) -> Ceremony:
    ceremony = world.ceremony(server_round)
    world.ask(ceremony, "keys", world.sites)
    world.ask(ceremony, "shares", world.sites)
    for site in sites or world.sites:
        ceremony.take_masked(site, world.masked(site, ceremony.ask_mask(site)))
    return ceremony


def _with(step: SharesStep, site: str, changed: SiteKeys) -> SharesStep:
    return step.model_copy(update={"keys": tuple(changed if each.site == site else each for each in step.keys)})


def _others(world: World, step: SharesStep, tmp_path: Path) -> Iterator[tuple[SharesStep, str]]:
    """Lists of keys that are not what they must be, with the reason."""
    south = next(each for each in step.keys if each.site == SOUTH)
    stolen = world.masking(WEST).identity
    yield _with(step, SOUTH, south.model_copy(update={"mask_key": "ab" * 32})), "south: .*found another signature"
    yield _with(step, SOUTH, sign_keys(stolen, south)), "south: expected its own certificate, found the one of west"
    make_identities(tmp_path / "false", {SOUTH: tmp_path / "rogue"})
    rogue = sign_keys(Identity.load(tmp_path / "rogue"), south)
    yield _with(step, SOUTH, rogue), "south: expected a certificate of this project's authority"
    signer = world.masking(SOUTH).identity
    for name, value in (("round", 2), ("attempt", "0" * 32), ("run", "run0")):
        replayed = sign_keys(signer, south.model_copy(update={name: value}))
        yield _with(step, SOUTH, replayed), f"south: expected keys of run {RUN}, round 1, attempt .*, found those of"
    west = next(each for each in step.keys if each.site == WEST)
    same = sign_keys(signer, south.model_copy(update={"mask_key": west.mask_key}))
    yield _with(step, SOUTH, same), "north: expected different keys of every site"
    yield step.model_copy(update={"keys": step.keys[:2]}), "north: expected keys of 3 to 3 different sites, found 2"
    yield step.model_copy(update={"keys": (*step.keys, west)}), "found 3 in 4 keys"
    own = sign_keys(world.masking(NORTH).identity, step.keys[0].model_copy(update={"mask_key": "cd" * 32}))
    yield _with(step, NORTH, own), "north: expected its own keys among those of the round"


def test_keys_that_are_not_the_sites_own_are_refused_and_named(world: World, tmp_path: Path) -> None:
    _, step = _begun(world)
    for changed, words in _others(world, step, tmp_path):
        with pytest.raises(SecureError, match=words):
            world.answer(NORTH, changed)
    world.answer(NORTH, step)


def test_a_site_gives_shares_to_one_set_of_sites(world: World) -> None:
    """With another key of one of them, though it is signed, the same secrets would be shared twice."""
    _, step = _begun(world)
    given = world.answer(NORTH, step)
    assert world.answer(NORTH, step) == given, "asked again, it says the same"
    south = next(each for each in step.keys if each.site == SOUTH)
    other = sign_keys(world.masking(SOUTH).identity, south.model_copy(update={"share_key": "12" * 32}))
    with pytest.raises(SecureError, match="north: expected the sites that it gave shares to before, found others"):
        world.answer(NORTH, _with(step, SOUTH, other))


def test_an_attempt_that_a_site_does_not_know_is_refused(world: World) -> None:
    ceremony = _trained(world)
    words = "north: expected an attempt that it made keys for, found round 1, attempt 00000000"
    for step in (
        ConfirmStep(round=1, attempt="0" * 32, survivors=tuple(world.sites)),
        UnmaskStep(round=1, attempt="0" * 32, signatures={}),
        SharesStep(round=1, attempt="0" * 32, keys=()),
    ):
        with pytest.raises(SecureError, match=words):
            world.answer(NORTH, step)
    # A new attempt at the round ends the one before it.
    world.answer(NORTH, KeysStep(round=1, attempt="1" * 32))
    with pytest.raises(SecureError, match=f"attempt {ceremony.attempt[:8]}"):
        world.answer(NORTH, ceremony.ask("confirm"))


def test_shares_that_were_sealed_for_another_site_or_changed_are_refused(world: World) -> None:
    ceremony = world.ceremony()
    world.ask(ceremony, "keys", world.sites)
    world.ask(ceremony, "shares", world.sites)
    step, other = ceremony.ask_mask(NORTH), ceremony.ask_mask(WEST)
    for parcel in (other.parcels[SOUTH], step.parcels[SOUTH][:-2] + "00", step.parcels[WEST], ""):
        changed = step.model_copy(update={"parcels": {**step.parcels, SOUTH: parcel}})
        with pytest.raises(SecureError, match="south: expected shares that it sealed for north in this round"):
            world.masked(NORTH, changed)
    with pytest.raises(SecureError, match="north: expected shares of south, which masks too, found none"):
        world.masked(NORTH, step.model_copy(update={"parcels": {WEST: step.parcels[WEST]}}))
    with pytest.raises(SecureError, match="north: expected 3 or more of the round's sites to mask"):
        world.masked(NORTH, step.model_copy(update={"members": (NORTH, SOUTH)}))


def test_one_mask_never_covers_two_updates(world: World) -> None:
    """Whoever asks again gets the bytes that left, whatever the second work would have given."""
    ceremony = world.ceremony()
    world.ask(ceremony, "keys", world.sites)
    world.ask(ceremony, "shares", world.sites)
    step = ceremony.ask_mask(NORTH)
    first = world.masked(NORTH, step)
    kept = world.masking(NORTH).find_reply(step)
    assert kept is not None
    assert kept.array_records["arrays"]["0"].data == first.content.tobytes()
    with pytest.raises(SecureError, match="expected an update that is masked after shares were given, once"):
        world.masked(NORTH, step)


def test_a_large_update_is_kept_as_it_left_until_it_is_unmasked(keys: Path, tmp_path: Path) -> None:
    world = World(keys, tmp_path / "sites", [NORTH, SOUTH, WEST], SecureAggregationSettings(enabled=True), size=50_000)
    ceremony = _trained(world)
    step = ceremony.ask_mask(NORTH)
    folder = tmp_path / "sites" / NORTH
    assert sum(path.stat().st_size for path in folder.rglob("1-*") if path.is_file()) > 200_000
    kept = world.masking(NORTH).find_reply(step)
    assert kept is not None
    masked, plain = kept.array_records["arrays"]["0"].numpy(), world.words(NORTH).content
    assert masked.shape == plain.shape
    assert (masked != plain).mean() > 0.9
    world.ask(ceremony, "confirm", world.sites)
    world.ask(ceremony, "unmask", world.sites)
    assert [path.suffix for path in folder.rglob("1-*")] == [".json"]


def test_a_process_that_ended_while_it_masked_can_mask_again_because_nothing_left(world: World) -> None:
    ceremony = world.ceremony()
    world.ask(ceremony, "keys", world.sites)
    world.ask(ceremony, "shares", world.sites)
    step = ceremony.ask_mask(NORTH)
    world.masking(NORTH).mask(step, world.words(NORTH), "")
    assert world.masking(NORTH).find_reply(step) is None
    world.masked(NORTH, step)


def test_a_site_signs_for_one_set_of_survivors(keys: Path, tmp_path: Path) -> None:
    names = [NORTH, SOUTH, WEST, "east"]
    world = World(keys, tmp_path / "sites", names, SecureAggregationSettings(enabled=True))
    ceremony = _trained(world)
    asked = ceremony.ask("confirm")
    assert isinstance(asked, ConfirmStep)
    world.answer(NORTH, asked)
    for fewer in ((NORTH, SOUTH, WEST), (NORTH, SOUTH, "east")):
        with pytest.raises(SecureError, match="north: expected the survivors that it signed for before, found others"):
            world.answer(NORTH, asked.model_copy(update={"survivors": fewer}))
    for wrong in ((SOUTH, WEST, "east"), (NORTH, SOUTH), (NORTH, SOUTH, SOUTH), (NORTH, SOUTH, "far")):
        with pytest.raises(SecureError, match="3 or more of those that masked, itself among them, as survivors"):
            world.answer(NORTH, asked.model_copy(update={"survivors": wrong}))


def test_nothing_is_revealed_before_enough_have_signed_for_the_same_set(world: World) -> None:
    ceremony = _trained(world)
    unsigned = UnmaskStep(round=1, attempt=ceremony.attempt, signatures={})
    with pytest.raises(SecureError, match="north: expected to be asked for shares after it signed"):
        world.answer(NORTH, unsigned)
    world.ask(ceremony, "confirm", world.sites)
    asked = ceremony.ask("unmask")
    assert isinstance(asked, UnmaskStep)
    signatures = asked.signatures
    for wrong, words in (
        ({NORTH: signatures[NORTH], SOUTH: signatures[SOUTH]}, "north: expected signatures of 3 or more survivors"),
        ({**signatures, WEST: signatures[SOUTH]}, "west: expected a statement signed with its key"),
        ({**signatures, "far": signatures[SOUTH]}, "or of others than survivors"),
    ):
        with pytest.raises(SecureError, match=words):
            world.answer(NORTH, asked.model_copy(update={"signatures": wrong}))
    revealed = world.answer(NORTH, asked)
    assert world.answer(NORTH, asked) == revealed, "asked again, it says the same"


def test_signatures_of_another_round_reveal_nothing(world: World) -> None:
    """Replayed, or from sites that signed in another attempt: the statement names the keys of this one alone."""
    old = _trained(world)
    world.ask(old, "confirm", world.sites)
    replayed = old.ask("unmask")
    assert isinstance(replayed, UnmaskStep)
    for server_round, words in ((1, "attempt"), (2, "round 2, attempt")):
        new = _trained(world, server_round)
        world.ask(new, "confirm", world.sites)
        again = UnmaskStep(round=server_round, attempt=new.attempt, signatures=replayed.signatures)
        with pytest.raises(SecureError, match="expected a statement signed with its key, found another signature"):
            world.answer(NORTH, again)
        stale = replayed.model_copy(update={"round": server_round})
        with pytest.raises(SecureError, match=f"north: expected an attempt that it made keys for, found .*{words}"):
            world.answer(NORTH, stale)


def test_sites_that_worked_on_different_things_unmask_nothing(world: World) -> None:
    """Another model, share or setting at one of them: its signature is of other terms, and the others refuse."""
    ceremony = world.ceremony()
    world.ask(ceremony, "keys", world.sites)
    world.ask(ceremony, "shares", world.sites)
    for site, terms in ((NORTH, "model"), (SOUTH, "model"), (WEST, "other")):
        ceremony.take_masked(site, world.masked(site, ceremony.ask_mask(site), terms))
    ceremony.terms = "model"
    world.ask(ceremony, "confirm", [NORTH, SOUTH])
    with pytest.raises(SecureError, match="west: expected a statement signed with its key"):
        world.ask(ceremony, "confirm", [WEST])
    asked = ceremony.ask("confirm")
    signed = world.answer(WEST, asked).model_dump()["signature"]
    signatures = {**ceremony._signatures, WEST: signed}
    step = UnmaskStep(round=1, attempt=ceremony.attempt, signatures=signatures)
    with pytest.raises(SecureError, match="west: expected a statement signed with its key"):
        world.answer(NORTH, step)


def test_never_both_shares_of_one_site(keys: Path, tmp_path: Path) -> None:
    names = [NORTH, SOUTH, WEST, "east"]
    world = World(keys, tmp_path / "sites", names, SecureAggregationSettings(enabled=True))
    ceremony = _trained(world, sites=[NORTH, SOUTH, "east"])
    world.ask(ceremony, "confirm", [NORTH, SOUTH, "east"])
    answer = world.answer(NORTH, ceremony.ask("unmask")).model_dump()
    assert set(answer["self_masks"]) == {NORTH, SOUTH, "east"}
    assert set(answer["mask_keys"]) == {WEST}
    kept = "".join(path.read_text() for path in (tmp_path / "sites" / NORTH).rglob("1-*.json"))
    assert '"held":{}' in kept
    assert '"secrets":null' in kept
    assert not list((tmp_path / "sites" / NORTH).rglob("*.reply"))


def test_a_round_that_is_tried_again_is_unmasked_of_the_same_sites_alone(keys: Path, tmp_path: Path) -> None:
    """Two sums that differ by one site tell its update: a server that crashed after a round gets the same one again."""
    names = [NORTH, SOUTH, WEST, "east"]
    world = World(keys, tmp_path / "sites", names, SecureAggregationSettings(enabled=True))
    world.run()
    again = _trained(world, sites=[NORTH, SOUTH, "east"])
    with pytest.raises(
        SecureError, match="north: expected the sites that round 1 was unmasked of before, found others"
    ):
        world.ask(again, "confirm", [NORTH])
    total = world.run()
    assert (total.narrow == world.sum(world.sites)[1]).all()


def test_secrets_are_for_their_owner_alone_and_end_with_the_round(world: World) -> None:
    _trained(world)
    files = [path for path in world.folder.rglob("*") if path.is_file() and path.name != "lock"]
    assert len(files) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    world.run(server_round=2)
    world.run(server_round=3)
    left = sorted(path.name.partition("-")[0] for path in (world.folder / NORTH).rglob("*.json"))
    assert left == ["2", "3", "unmasked.json"]
    contents = [path.read_text() for path in world.folder.rglob("*-*.json")]
    assert all('"secrets":null' in each and '"held":{}' in each and '"own_share":""' in each for each in contents)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (SharesStep, "{", "the server: the message: Invalid JSON"),
        (SharesStep, '{"step":"shares","round":1,"attempt":"ab","keys":[]}', "attempt: String should match pattern"),
        (
            MaskStep,
            '{"round":0,"attempt":"%s","members":[],"parcels":{}}' % ("0" * 32),
            "round: .*greater than or equal",
        ),
        (MaskStep, '{"round":1,"attempt":"%s","members":[],"parcels":{"a":"xyz"}}' % ("0" * 32), "parcels.a: "),
        (UnmaskStep, '{"round":1,"attempt":"%s","signatures":[]}' % ("0" * 32), "signatures: "),
        (KeysStep, '{"step":"keys","round":1,"attempt":"%s","more":1}' % ("0" * 32), "more: Extra inputs"),
    ],
)
def test_a_malformed_message_is_refused(kind, text: str, words: str) -> None:
    with pytest.raises(SecureError, match=words):
        read(kind, text, "the server")


def test_a_signing_key_that_others_may_read_is_refused(keys: Path, tmp_path: Path) -> None:
    make_identities(tmp_path / "authority", {NORTH: tmp_path / NORTH, SOUTH: tmp_path / SOUTH})
    Identity.load(tmp_path / NORTH)
    (tmp_path / NORTH / "client.pem").write_bytes((tmp_path / SOUTH / "client.pem").read_bytes())
    with pytest.raises(SecureError, match=r"expected the certificate of client.key, found another key's"):
        Identity.load(tmp_path / NORTH)
    (tmp_path / SOUTH / "client.key").chmod(0o640)
    with pytest.raises(SecureError, match="expected mode 0600, found 0640"):
        Identity.load(tmp_path / SOUTH)
