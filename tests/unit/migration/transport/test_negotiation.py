"""How memory travels between two given QEMUs: every pair of the versions that are tested, and every wish."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.transport.negotiation import ALWAYS, LEAST_CACHE, Abilities, Profile, cache_bytes, negotiate

MIB = 1 << 20
GIB = 1 << 30

OF_ALL = frozenset(
    {
        *("events", "return-path", "pause-before-switchover", "late-block-activate", "validate-uuid", "auto-converge"),
        *("multifd", "xbzrle", "postcopy-ram", "postcopy-preempt", "dirty-bitmaps"),
    }
)
PARAMETERS_OF_ALL = frozenset(
    {
        *("max-bandwidth", "downtime-limit", "max-postcopy-bandwidth", "tls-creds", "tls-hostname"),
        *("multifd-channels", "multifd-compression", "xbzrle-cache-size"),
    }
)
METHODS = frozenset({"none", "zlib", "zstd"})


def qemu(version: str, host: str, **changes: Any) -> Abilities:
    """Return what the QEMUs of the three generations said they can do, as far as it is looked at."""
    newer = version != "7.2.22"
    usual = Abilities(
        host=host,
        version=version,
        capabilities=OF_ALL | ({"mapped-ram", "switchover-ack"} if newer else set()),
        parameters=PARAMETERS_OF_ALL | ({"zero-page-detection", "mode"} if newer else set()),
        compressions=METHODS,
    )
    return replace(usual, **changes)


VERSIONS = ("7.2.22", "10.0.2", "11.1.3")
PAIRS = list(itertools.product(VERSIONS, VERSIONS))


def asked(**fields: Any) -> MigrationRequest:
    return MigrationRequest("web1", "b", "a", **fields)


def agree(source: str = "11.1.3", destination: str = "11.1.3", *, turn: bool = False, **fields: Any) -> Profile:
    ends = qemu(source, "a"), qemu(destination, "b")
    profile = negotiate(asked(**fields), *ends, memory_bytes=4 * GIB, may_turn=turn)
    sound(profile)
    assert not (profile.postcopy and profile.multifd), "without KVM guests are lost"
    return profile


def sound(profile: Profile) -> None:
    """What holds of every profile."""
    source, destination = profile.source, profile.destination
    assert set(ALWAYS) <= source.capabilities & destination.capabilities
    for name in ("multifd", "xbzrle", "postcopy-ram", "postcopy-preempt"):
        assert (name in source.capabilities) == (name in destination.capabilities), name
    assert not {"multifd", "xbzrle"} <= source.capabilities
    assert ("multifd" in source.capabilities) == profile.multifd
    assert ("postcopy-ram" in source.capabilities) == profile.postcopy
    assert not profile.preempt or profile.postcopy
    assert not (profile.preempt and profile.multifd)
    for name in ("multifd-channels", "multifd-compression", "xbzrle-cache-size"):
        assert source.parameters.get(name) == destination.parameters.get(name), name
    if profile.compression in {"zlib", "zstd"} and not profile.refusals:
        assert profile.multifd
        assert source.parameters["multifd-compression"] == profile.compression
    for each in profile.refusals:
        assert each.hint, f"no way out: {each.text}"


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_one_channel_asks_for_nothing_that_a_pair_may_lack(source: str, destination: str) -> None:
    profile = agree(source, destination)
    assert not profile.refusals
    assert not profile.warnings
    assert (profile.channels, profile.compression, profile.postcopy) == (1, None, False)
    assert profile.source.capabilities == {"events", "return-path", "late-block-activate", "validate-uuid"}
    assert str(profile) == "one channel"


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_channels_are_equal_and_zero_pages_are_looked_for_as_the_pair_can(source: str, destination: str) -> None:
    profile = agree(source, destination, channels=4)
    assert not profile.refusals
    assert profile.channels == 4
    for side in (profile.source, profile.destination):
        assert side.parameters["multifd-channels"] == 4
        assert side.parameters["multifd-compression"] == "none"
    both_new = "7.2.22" not in {source, destination}
    if source == "7.2.22":
        assert "zero-page-detection" not in profile.source.parameters
    else:
        assert profile.source.parameters["zero-page-detection"] == ("multifd" if both_new else "legacy")
    assert any("zero pages" in reason for reason in profile.reasons)
    if not both_new:
        assert any("7.2.22" in reason for reason in profile.reasons)


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_compression_by_threads_implies_channels(method: Any) -> None:
    profile = agree("7.2.22", "11.1.3", compress=method)
    assert not profile.refusals
    assert profile.channels == 2
    assert profile.destination.parameters["multifd-compression"] == method
    assert any(f"{method} is done by" in reason for reason in profile.reasons)
    assert agree(compress=method, channels=8).channels == 8


def test_a_method_that_one_binary_lacks_is_refused_with_what_both_have() -> None:
    without = qemu("10.0.2", "b", compressions=frozenset({"none", "zlib"}))
    profile = negotiate(asked(compress="zstd"), qemu("11.1.3", "a"), without, memory_bytes=GIB)
    (refusal,) = profile.refusals
    assert refusal.text == "QEMU 10.0.2 on b cannot compress with zstd"
    assert refusal.hint == "both have zlib"
    assert refusal.host == "b"
    bare = qemu("10.0.2", "b", compressions=frozenset({"none"}))
    (refusal,) = negotiate(asked(compress="zlib"), qemu("11.1.3", "a"), bare, memory_bytes=GIB).refusals
    assert "leave --compress out" in refusal.hint


def test_without_multifd_there_is_one_channel() -> None:
    without = qemu("10.0.2", "b", capabilities=OF_ALL - {"multifd"})
    profile = negotiate(asked(channels=4), qemu("11.1.3", "a"), without, memory_bytes=GIB)
    (refusal,) = profile.refusals
    assert "several channels" in refusal.text
    assert refusal.host == "b"
    assert profile.channels == 1
    assert "multifd" not in profile.source.capabilities


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_xbzrle_has_one_channel_and_a_cache_of_a_size_that_qemu_takes(source: str, destination: str) -> None:
    profile = agree(source, destination, compress="xbzrle")
    assert not profile.refusals
    assert profile.channels == 1
    size = profile.source.parameters["xbzrle-cache-size"]
    assert size == 2 * GIB
    (refusal,) = agree(source, destination, compress="xbzrle", channels=2).refusals
    assert "one channel only" in refusal.text
    assert "zstd" in refusal.hint


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45))
def test_a_cache_is_a_power_of_two_and_leaves_memory(memory: int, free: int) -> None:
    size = cache_bytes(memory, free)
    assert size & (size - 1) == 0
    assert size >= LEAST_CACHE
    if size > LEAST_CACHE:
        assert size <= memory // 2
        assert not free or size <= free // 2


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_postcopy_is_set_on_both_with_its_own_connection(source: str, destination: str) -> None:
    profile = agree(source, destination, mode="postcopy", bandwidth_bytes_per_s=10 * MIB)
    assert not profile.refusals
    assert profile.postcopy
    assert profile.preempt
    assert profile.source.parameters["max-postcopy-bandwidth"] == 10 * MIB
    assert "max-postcopy-bandwidth" not in profile.destination.parameters


@pytest.mark.parametrize(("source", "destination"), PAIRS)
@pytest.mark.parametrize("wish", [{"channels": 4}, {"compress": "zstd"}, {"compress": "zlib"}], ids=str)
def test_postcopy_goes_over_one_channel_only(source: str, destination: str, wish: dict[str, Any]) -> None:
    """7.2 takes both without a word, 11.1 on purpose, and both were seen to lose guests."""
    (refusal,) = agree(source, destination, mode="postcopy", **wish).refusals
    assert "one channel only" in refusal.text
    assert ("--channels" if "channels" in wish else "--compress") in refusal.hint
    # The policy only may turn to it: it is not refused, but the policy cannot.
    profile = agree(source, destination, turn=True, **wish)
    assert not profile.refusals
    assert not profile.postcopy
    (warning,) = profile.warnings
    assert "the policy may not turn" in warning.text


def test_postcopy_that_the_destination_may_not_receive() -> None:
    why = "Postcopy is not supported: userfaultfd not available"
    unable = qemu("11.1.3", "b", no_postcopy=why)
    profile = negotiate(asked(mode="postcopy"), qemu("11.1.3", "a"), unable, memory_bytes=GIB)
    (refusal,) = profile.refusals
    assert why in refusal.text
    assert "vm.unprivileged_userfaultfd=1" in refusal.hint
    assert refusal.host == "b"
    # the source needs no such right
    able = negotiate(asked(mode="postcopy"), unable, qemu("11.1.3", "b"), memory_bytes=GIB)
    assert able.postcopy


def test_a_live_migration_is_ready_for_postcopy_only_where_the_policy_may_turn_to_it() -> None:
    assert not agree(turn=False).postcopy
    assert agree(turn=True).postcopy
    assert "postcopy-ram" in agree(turn=True).destination.capabilities


def test_what_needs_the_pause_gets_it_at_the_source_only() -> None:
    for fields in ({"guarded": True}, {"copy_storage": "full"}):
        profile = agree(**fields)
        assert "pause-before-switchover" in profile.source.capabilities
        assert "pause-before-switchover" not in profile.destination.capabilities


def test_what_the_link_carries_in_the_blackout_is_told_where_qemu_can_be_told() -> None:
    name, wanted = "avail-switchover-bandwidth", asked(switchover_bandwidth_bytes_per_s=125_000_000)
    old, there = qemu("7.2.22", "a"), qemu("11.1.3", "b")
    knows = replace(there, host="a", parameters=there.parameters | {name})
    profile = negotiate(wanted, knows, there, memory_bytes=4 * GIB)
    assert (profile.source.parameters[name], profile.warnings) == (125_000_000, ())
    assert name not in profile.destination.parameters
    profile = negotiate(wanted, old, there, memory_bytes=4 * GIB)
    assert name not in profile.source.parameters
    assert "takes the rate limit" in profile.warnings[0].text


def test_throttling_has_to_be_known_beforehand() -> None:
    ends = qemu("7.2.22", "a"), qemu("11.1.3", "b")
    profile = negotiate(asked(), *ends, memory_bytes=GIB, may_throttle=True)
    assert "auto-converge" in profile.source.capabilities
    assert "auto-converge" not in profile.destination.capabilities
    without = replace(ends[0], capabilities=OF_ALL - {"auto-converge"})
    profile = negotiate(asked(), without, ends[1], memory_bytes=GIB, may_throttle=True)
    assert not profile.refusals
    assert "cannot slow the guest down" in profile.warnings[0].text


@pytest.mark.parametrize(
    ("here", "there", "limits", "ring", "says"),
    [
        ({"kvm": True, "dirty_ring": 4096}, {"dirty_ring": 4096}, True, 4096, "only the vCPUs that write"),
        ({"kvm": True}, {}, True, 0, "all its vCPUs are: it runs without a dirty ring"),
        ({}, {}, True, 0, "all its vCPUs are: it runs without KVM"),
        ({"kvm": True, "dirty_ring": 4096}, {}, True, 0, "on b cannot start with a dirty ring"),
        (
            {"kvm": True, "dirty_ring": 4096, "no_dirty_limit": "why"},
            {"dirty_ring": 4096},
            True,
            0,
            "all its vCPUs are: why",
        ),
        ({"kvm": True, "dirty_ring": 4096}, {"dirty_ring": 4096}, False, 0, "all its vCPUs are: so does the policy"),
    ],
)
def test_only_with_dirty_rings_on_both_sides_the_vcpus_that_write_are_slowed_down_alone(
    here: dict[str, Any], there: dict[str, Any], limits: bool, ring: int, says: str
) -> None:
    ends = qemu("7.2.22", "a", **here), qemu("11.1.3", "b", **there)
    profile = negotiate(asked(), *ends, memory_bytes=GIB, may_throttle=True, may_limit=limits)
    assert profile.dirty_ring == ring
    assert profile.throttling is not None
    assert says in profile.throttling.text
    assert ("dirty_ring = 4096" in profile.throttling.hint) == ("without a dirty ring" in says)
    assert "auto-converge" in profile.source.capabilities  # a limit may turn out not to do
    assert "dirty-limit" not in profile.source.capabilities
    assert Profile.again(profile.written).dirty_ring == ring


def test_who_may_not_slow_it_down_is_told_nothing_of_it() -> None:
    ends = qemu("7.2.22", "a", kvm=True, dirty_ring=4096), qemu("11.1.3", "b", dirty_ring=4096)
    profile = negotiate(asked(), *ends, memory_bytes=GIB, may_limit=True)
    assert (profile.dirty_ring, profile.throttling) == (0, None)


@pytest.mark.parametrize(
    ("source", "destination", "kvm", "allowed"),
    [
        ("11.1.3", "11.1.3", True, True),
        ("11.1.3", "11.1.3", False, False),
        ("11.1.3", "10.0.2", True, False),
        ("10.0.2", "11.1.3", True, False),
        ("7.2.22", "7.2.22", True, False),
        ("11.0.1", "11.1.3", True, False),
    ],
)
@pytest.mark.parametrize("fields", [{"channels": 4}, {"compress": "zstd"}])
def test_post_copy_follows_several_channels_where_that_was_seen_to_be_safe(
    source: str, destination: str, kvm: bool, allowed: bool, fields: dict[str, Any]
) -> None:
    ends = qemu(source, "a", kvm=kvm), qemu(destination, "b")
    profile = negotiate(asked(mode="postcopy", **fields), *ends, memory_bytes=GIB)
    sound(profile)
    assert (profile.postcopy, profile.multifd, not profile.refusals) == (allowed, True, allowed)
    assert not profile.preempt  # with older machine types multifd takes its channel for one of its own
    turning = negotiate(asked(**fields), *ends, memory_bytes=GIB, may_turn=True)
    assert turning.postcopy is allowed
    assert bool(turning.warnings) is not allowed


def test_another_controller_reads_back_what_matters_to_it() -> None:
    profile = agree(mode="postcopy")
    again = Profile.again(profile.written)
    assert again.written == profile.written
    assert str(again) == "one channel, may turn to post-copy (preempt)"
    assert Profile.again({}) == Profile()


@given(
    source=st.sampled_from(VERSIONS),
    destination=st.sampled_from(VERSIONS),
    mode=st.sampled_from(["live", "postcopy", "offline"]),
    channels=st.integers(1, 8),
    compress=st.sampled_from([None, "zlib", "zstd", "xbzrle"]),
    guarded=st.booleans(),
    copies=st.sampled_from([None, "full", "top"]),
    turn=st.booleans(),
)
def test_whatever_is_asked_for_the_two_sides_agree(
    source: str, destination: str, mode: Any, channels: int, compress: Any, guarded: bool, copies: Any, turn: bool
) -> None:
    agree(
        source,
        destination,
        turn=turn,
        mode=mode,
        channels=channels,
        compress=compress,
        guarded=guarded,
        copy_storage=copies,
    )
