"""Topics: what we build is what we read, and nothing else is ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.bus.messages.topics import Address, Kind, Topics
from qmp_migrate.errors import ConfigError, InvalidName

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)


@given(owner=names, vm=names, root=st.sampled_from(["qmp-migrate/v1", "lab", "a/b/c/d"]))
def test_every_topic_reads_back_as_what_it_was_built_from(owner: str, vm: str, root: str) -> None:
    topics = Topics(root)
    built = {
        topics.host_status(owner): Address(Kind.HOST_STATUS, owner),
        topics.host_info(owner): Address(Kind.HOST_INFO, owner),
        topics.host_load(owner): Address(Kind.HOST_LOAD, owner),
        topics.host_event(owner): Address(Kind.HOST_EVENT, owner),
        topics.host_token(owner, vm): Address(Kind.HOST_TOKEN, owner, migration=vm),
        topics.host_vm(owner, vm): Address(Kind.HOST_VM, owner, vm),
        topics.migration_state(owner): Address(Kind.MIGRATION_STATE, owner),
        topics.migration_progress(owner): Address(Kind.MIGRATION_PROGRESS, owner),
        topics.migration_event(owner): Address(Kind.MIGRATION_EVENT, owner),
        topics.controller_status(owner): Address(Kind.CONTROLLER_STATUS, owner),
    }
    assert len(built) == len(Kind)
    for topic, address in built.items():
        assert topic.startswith(f"{root}/")
        assert topics.parse(topic) == address
        assert Topics("other").parse(topic) is None


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a+", "A", "../x", "a b", "a\n", "$(id)", "x" * 64, "ä"])
def test_a_name_cannot_change_the_shape_of_a_topic(name: str) -> None:
    topics = Topics()
    builders = [
        topics.host_status,
        topics.host_event,
        topics.migration_state,
        topics.controller_status,
        topics.vms_of,
        lambda vm: topics.host_vm("a", vm),
    ]
    for build in builders:
        with pytest.raises(InvalidName):
            build(name)


@given(st.text(max_size=80) | st.lists(st.sampled_from(["qmp-migrate", "v1", "host", "a", "vm", "+", "#", "", ".."])))
def test_a_hostile_topic_is_no_address_of_ours(hostile: str | list[str]) -> None:
    topic = hostile if isinstance(hostile, str) else "/".join(hostile)
    address = Topics().parse(topic)
    if address is not None:
        rebuilt = Topics().host_vm(address.owner, address.vm) if address.vm else None
        assert topic in (rebuilt, f"qmp-migrate/v1/{address.kind.replace('.', f'/{address.owner}/')}")


@pytest.mark.parametrize("root", ["", "/a", "a/", "a//b", "a/+/b", "#", "a/b/c/d/e", "$SYS", "a b", "a\n"])
def test_a_root_that_is_no_prefix_is_refused(root: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Topics(root)
    assert refused.value.hint


def test_only_events_and_progress_are_not_retained() -> None:
    passing = {kind for kind in Kind if not kind.retained}
    assert passing == {Kind.HOST_EVENT, Kind.HOST_TOKEN, Kind.MIGRATION_EVENT, Kind.MIGRATION_PROGRESS}
