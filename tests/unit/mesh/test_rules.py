"""The mesh's decisions, over made-up nodes and links."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.mesh import rules
from infra.mesh.config import endpoint, mesh_key, read_links, render
from infra.mesh.model import Link, MeshKey, Node, Peer, Role, Step
from infra.mesh.rules import awaited, candidates, forgettable, is_dead, next_step, peers_of, region_network
from tests.unit.mesh.world import key, links_of, node

NOW = 1_800_000_000_000
ENDPOINT = endpoint("198.51.100.1:51820")
keys = st.integers(0, 30).map(lambda n: key(f"k{n}"))
addresses = st.integers(1, 6).map(lambda n: IPv4Address("10.96.0.0") + n)
ages_ms = st.sampled_from([0, 1000, 119_000, 121_000, 3_599_000, 3_700_000])


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    return [
        own_keys_differ(Node(
            f"n{n}", Role.RELAY, draw(st.sampled_from(["eu", "us"])), draw(addresses), ENDPOINT,
            draw(st.sampled_from([None, endpoint("10.40.0.9:51820")])), draw(keys), draw(st.none() | keys),
            frozenset(), NOW - draw(ages_ms), draw(st.booleans()),
        ))
        for n in range(draw(st.integers(0, 6)))
    ]  # fmt: skip


def own_keys_differ(row: Node) -> Node:
    return replace(row, next_key=None) if row.next_key == row.key else row


@st.composite
def links(draw: st.DrawFn) -> dict[MeshKey, Link]:
    found = draw(
        st.dictionaries(keys, st.tuples(st.frozensets(addresses, max_size=2), st.sampled_from([0, 5, 300])))
    )
    return {k: Link(k, a, ENDPOINT, 0 if age == 0 else NOW // 1000 - age) for k, (a, age) in found.items()}


@given(nodes(), links())
def test_no_two_peers_share_a_key_or_an_address(rows: list[Node], held: dict[MeshKey, Link]) -> None:
    peers = peers_of("eu", rows, held, NOW)
    assert len({p.key for p in peers}) == len(peers)
    given = [p.address for p in peers if p.address is not None]
    assert len(set(given)) == len(given)


@given(nodes(), links())
def test_what_was_applied_needs_no_change(rows: list[Node], held: dict[MeshKey, Link]) -> None:
    once = peers_of("eu", rows, held, NOW)
    applied = links_of(once, {k: link.handshake_s for k, link in held.items()})
    again = peers_of("eu", rows, applied, NOW)
    assert {(p.key, p.address) for p in again} <= {(p.key, p.address) for p in once}
    settled = links_of(again, {k: link.handshake_s for k, link in held.items()})
    assert peers_of("eu", rows, settled, NOW) == again


@given(nodes(), links(), st.randoms())
def test_the_order_of_rows_does_not_matter(
    rows: list[Node], held: dict[MeshKey, Link], random: object
) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert peers_of("eu", shuffled, held, NOW) == peers_of("eu", rows, held, NOW)


@given(nodes(), links())
def test_a_live_link_that_nobody_removed_is_never_cut(rows: list[Node], held: dict[MeshKey, Link]) -> None:
    """Whatever the table says or lacks: only a removal, or another's claim to the address, ends a link that works."""
    peers = {p.key: p for p in peers_of("eu", rows, held, NOW)}
    spoken_for = {k for n in rows for k in (n.key, n.next_key)}
    given = {p.address for p in peers.values()}
    for link in held.values():
        if rules.is_fresh(link, NOW) and link.key not in spoken_for and len(link.addresses) == 1:
            assert link.key in peers or link.addresses <= given


@given(st.text(min_size=1, max_size=30), st.integers(0, rules.REGIONS_MAX - 1))
def test_candidates_are_distinct_and_of_the_region(node_id: str, number: int) -> None:
    network = region_network(number)
    found = list(candidates(node_id, network))
    assert len(set(found)) == len(found) == rules.ADDRESS_TRIES_MAX
    assert all(a in network and a not in {network[0], network[-1]} for a in found)
    assert found == list(candidates(node_id, network))


def test_regions_do_not_overlap_and_fill_the_mesh() -> None:
    found = [region_network(n) for n in range(rules.REGIONS_MAX)]
    assert all(a.broadcast_address + 1 == b.network_address for a, b in pairwise(found))
    assert found[0][0] == rules.MESH[0]
    assert found[-1][-1] == rules.MESH[-1]
    with pytest.raises(ValueError, match="0 to 255"):
        region_network(rules.REGIONS_MAX)


def test_a_tiny_region_offers_each_address_once() -> None:
    assert len(set(islice(candidates("n", ip_network("10.96.0.0/29")), 10))) == 6  # type: ignore[arg-type]


def test_silence_alone_or_a_cut_alone_is_no_death() -> None:
    old = node("a", heartbeat_ms=NOW - (rules.DEAD_AFTER_S + 1) * 1000)
    alive = links_of([Peer(old.key, old.address, ENDPOINT)], {old.key: NOW // 1000 - 100})
    stale = links_of([Peer(old.key, old.address, ENDPOINT)], {old.key: NOW // 1000 - rules.HANDSHAKE_FRESH_S})
    assert not is_dead(old, alive, NOW)
    assert is_dead(old, stale, NOW)
    assert not is_dead(replace(old, heartbeat_ms=NOW), {}, NOW)


def test_a_dead_node_is_left_out_first_and_forgotten_later() -> None:
    gone = node("a", heartbeat_ms=NOW - 200_000)
    assert peers_of("eu", [gone], {}, NOW) == ()
    assert forgettable([gone], {}, NOW) == ()
    long_gone = replace(gone, heartbeat_ms=NOW - (rules.FORGET_AFTER_S + 1) * 1000)
    assert forgettable([long_gone], {}, NOW) == (long_gone,)


def test_a_removed_node_is_dropped_though_its_link_lives() -> None:
    removed = node("a", heartbeat_ms=NOW, removed=True)
    alive = links_of([Peer(removed.key, removed.address, ENDPOINT)], {removed.key: NOW // 1000})
    assert peers_of("eu", [removed], alive, NOW) == ()


def test_a_new_owner_of_an_address_gets_it_from_a_link_that_has_no_row_any_more() -> None:
    heir = node("b", heartbeat_ms=NOW)
    left = links_of([Peer(key("gone"), heir.address, ENDPOINT)], {key("gone"): NOW // 1000})
    assert [(p.key, p.address) for p in peers_of("eu", [heir], left, NOW)] == [(heir.key, heir.address)]


def test_an_announced_key_is_known_first_and_gets_the_address_when_it_shakes_hands() -> None:
    turning = node("a", heartbeat_ms=NOW, next_key=key("next"))
    before = peers_of("eu", [turning], {}, NOW)
    assert {(p.key, p.address) for p in before} == {(turning.key, turning.address), (key("next"), None)}
    assert awaited(before) == {key("next")}
    after = peers_of("eu", [turning], links_of(before, {key("next"): NOW // 1000}), NOW)
    assert [(p.key, p.address) for p in after] == [(key("next"), turning.address)]
    assert awaited(after) == frozenset()


def test_nodes_of_one_region_meet_inside() -> None:
    inner = endpoint("10.40.0.9:51820")
    there = node("a", heartbeat_ms=NOW, region="eu", inner=inner)
    assert [p.endpoint for p in peers_of("eu", [there], {}, NOW)] == [inner]
    assert [p.endpoint for p in peers_of("us", [there], {}, NOW)] == [there.endpoint]


def step(me: Node, others: list[Node], *, wanted: bool = True, announced_ms: int | None = NOW) -> Step:
    return next_step(me, others, {}, NOW, wanted=wanted, announced_ms=announced_ms)


def test_a_key_changes_only_when_every_live_peer_took_it_up() -> None:
    me = node("m", heartbeat_ms=NOW, next_key=key("next"))
    slow = node("p", heartbeat_ms=NOW)
    ready = replace(slow, awaits=frozenset({key("next")}))
    dead = replace(slow, heartbeat_ms=NOW - 1_000_000)
    assert step(me, [slow]) is Step.WAIT
    assert step(me, [ready]) is Step.SWITCH
    assert step(me, [ready, dead]) is Step.SWITCH
    assert step(me, []) is Step.SWITCH


def test_a_change_that_a_live_peer_holds_up_is_given_up() -> None:
    me = node("m", heartbeat_ms=NOW, next_key=key("next"))
    late = NOW - (rules.ROTATION_MAX_S + 1) * 1000
    assert step(me, [node("p", heartbeat_ms=NOW)], announced_ms=late) is Step.ABANDON


def test_two_ends_of_a_link_never_change_at_once() -> None:
    a = node("a", heartbeat_ms=NOW, next_key=key("a2"), awaits=frozenset({key("b2")}))
    b = node("b", heartbeat_ms=NOW, next_key=key("b2"), awaits=frozenset({key("a2")}))
    assert step(a, [b]) is Step.SWITCH
    assert step(b, [a]) is Step.WAIT
    assert step(node("c", heartbeat_ms=NOW), [a]) is Step.NOTHING
    assert step(node("c", heartbeat_ms=NOW), []) is Step.ANNOUNCE
    assert step(node("c", heartbeat_ms=NOW), [], wanted=False) is Step.NOTHING


@given(st.text())
def test_what_is_no_key_never_reaches_a_configuration(text: str) -> None:
    try:
        assert mesh_key(text) == text
        assert len(text) == 44
        assert "\n" not in text
    except ValueError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host.example:1",
        "1.2.3.4",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:1\nPublicKey = x",
        "fe80::1%eth0:1",
        "[fe80::1%a]:1",
    ],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - ipaddress has words of its own
        endpoint(text)


def test_an_endpoint_has_one_spelling() -> None:
    assert endpoint("[2001:DB8:0::1]:51820") == "[2001:db8::1]:51820"
    assert endpoint("198.51.100.1:51820") == "198.51.100.1:51820"


def test_the_configuration_is_what_syncconf_takes() -> None:
    peers = [Peer(key("a"), IPv4Address("10.96.0.7"), ENDPOINT), Peer(key("b"), None, None)]
    assert render("secret", 51820, peers) == (
        "[Interface]\nPrivateKey = secret\nListenPort = 51820\n"
        f"\n[Peer]\nPublicKey = {key('a')}\nAllowedIPs = 10.96.0.7/32\nPersistentKeepalive = 25\nEndpoint = {ENDPOINT}\n"
        f"\n[Peer]\nPublicKey = {key('b')}\n"
    )


def test_links_are_read_from_what_wg_shows() -> None:
    a, b = key("a"), key("b")
    found = read_links(
        f"{a}\t1800000000\n{b}\t0\n",
        f"{a}\t10.96.0.7/32\n{b}\t(none)\n",
        f"{a}\t198.51.100.1:51820\n{b}\t(none)\n",
    )
    assert found == {
        a: Link(a, frozenset({IPv4Address("10.96.0.7")}), ENDPOINT, 1_800_000_000),
        b: Link(b, frozenset(), None, 0),
    }
