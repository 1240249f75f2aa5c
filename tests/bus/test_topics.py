"""Durable topics: what is accepted is delivered, again and again until it is done with or dead."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zenos.bus import topics as ev
from zenos.bus.topic import LATE, Delivery
from zenos.bus.topics import Accepted, Topics
from zenos.core import limits
from zenos.core.errors import BusyError, ConflictError, InvalidError, NotFoundError
from zenos.core.messages import Message, MessageChanges, TopicSettings

TOPIC = "work"


class Bench:
    """Topics under a clock of its own, with what a store would have kept."""

    def __init__(self, **settings: object) -> None:
        self.settings = TopicSettings(**settings)  # type: ignore[arg-type]
        self.settings.check()
        self.rows: dict[int, Message] = {}
        self.answers: dict[int, ev.Result] = {}
        self.now = 1000.0
        self.wake = math.inf
        self.requests = 0
        self.boots = 0
        self.restart()

    def restart(self) -> None:
        self.boots += 1
        self.topics = Topics(
            self.rows.values(), lambda _: self.settings, first_delivery=self.boots * 10**6
        )
        self.step()

    def step(self, *events: ev.Event) -> None:
        changes, answers, self.wake = self.topics.step(events, self.now)
        apply(self.rows, changes)
        for answer in answers:
            assert answer.request not in self.answers, "answered twice"
            self.answers[answer.request] = answer.result

    def later(self, seconds: float) -> None:
        """Time passes, and the topics are called when they asked to be."""
        end = self.now + seconds
        while self.wake <= end:
            self.now = self.wake
            self.step()
        self.now = end
        self.step()

    def ask(self, kind: type[ev.Event], **fields: object) -> int:
        self.requests += 1
        self.step(kind(request=self.requests, **fields))
        return self.requests

    def send(self, id_: str, **fields: object) -> int:
        return self.ask(ev.Send, message=message(id_, **fields))

    def receive(self, receiver: str = "r", **fields: object) -> int:
        return self.ask(ev.Receive, topic=TOPIC, receiver=receiver, **fields)

    def take(self, receiver: str = "r", **fields: object) -> list[Delivery]:
        """What there is to receive now."""
        request = self.receive(receiver, **fields)
        found = self.answers.get(request, [])
        if request not in self.answers:
            self.step(ev.Withdraw(request=request))
        assert isinstance(found, list)
        return found

    def ids(self, **fields: object) -> list[str]:
        return [delivery.message.id for delivery in self.take(count=100, **fields)]

    def result(self, request: int) -> ev.Result:
        return self.answers[request]

    def ack(self, delivery: Delivery) -> ev.Result:
        number = self.ask(ev.Ack, topic=TOPIC, delivery=delivery.number, id=delivery.message.id)
        return self.answers[number]

    def nack(self, delivery: Delivery, **fields: object) -> ev.Result:
        number = self.ask(
            ev.Nack, topic=TOPIC, delivery=delivery.number, id=delivery.message.id, **fields
        )
        return self.answers[number]

    @property
    def dead(self) -> dict[str, str | None]:
        topic = self.topics.topics.get(TOPIC)
        return {m.id: m.dead for m in topic.dead.values()} if topic else {}


def apply(rows: dict[int, Message], changes: MessageChanges) -> None:
    for number in changes.deleted:
        rows.pop(number, None)
    rows.update(changes.put)


def message(id_: str, **fields: object) -> Message:
    return Message(**{"number": 0, "topic": TOPIC, "id": id_, "body": b"x", **fields})  # type: ignore[arg-type]


def test_what_is_sent_is_received_once_and_gone_when_acknowledged() -> None:
    bench = Bench()
    assert bench.result(bench.send("a")) == Accepted("a")
    (delivery,) = bench.take()
    assert (delivery.message.body, delivery.message.sent) == (b"x", 1000.0)
    assert bench.take() == []
    assert bench.ack(delivery) == 1
    bench.restart()
    assert bench.take() == []


def test_a_receiver_waits_and_the_first_is_served_first() -> None:
    bench = Bench()
    first, second = bench.receive("one"), bench.receive("two")
    bench.send("a")
    assert first in bench.answers
    assert second not in bench.answers
    bench.step(ev.Withdraw(request=second))
    bench.send("b")
    assert second not in bench.answers
    assert bench.ids() == ["b"]


def test_order_is_by_priority_then_by_arrival() -> None:
    bench = Bench()
    for number, priority in enumerate([50, 10, 90, 50, 90]):
        bench.send(f"{number}", priority=priority)
    assert bench.ids() == ["2", "4", "0", "3", "1"]


def test_a_duplicate_is_dropped_also_after_the_message_is_done_and_after_a_restart() -> None:
    bench = Bench()
    bench.send("a")
    assert bench.result(bench.send("a", body=b"other")) == Accepted("a", duplicate=True)
    (delivery,) = bench.take(count=9)
    assert bench.result(bench.send("a")) == Accepted("a", duplicate=True)
    bench.ack(delivery)
    bench.restart()
    assert bench.result(bench.send("a")) == Accepted("a", duplicate=True)
    assert bench.take() == []
    bench.later(limits.DEDUPLICATION_S)
    assert bench.rows == {}, "ids are forgotten at last"
    assert bench.topics.topics == {}
    assert bench.result(bench.send("a")) == Accepted("a")


def test_a_lease_that_runs_out_is_a_failed_delivery() -> None:
    bench = Bench(lease_s=10)
    bench.send("a")
    (first,) = bench.take("one")
    bench.later(9.9)
    assert bench.take("two") == []
    bench.later(0.1)
    assert isinstance(bench.ack(first), ConflictError)
    (second,) = bench.take("two")
    assert second.message.failures == 1
    with pytest.raises(ConflictError, match="lease has ended"):
        raise_(bench.ack(first))
    assert bench.ack(second) == 1
    assert bench.ack(second) == 1, "said again it is still fine"
    assert bench.ack(first) == 1, "what is done is done"


def test_a_lease_can_be_extended_while_it_holds() -> None:
    bench = Bench(lease_s=10)
    bench.send("a")
    (delivery,) = bench.take(lease_s=5)
    bench.later(4)
    bench.ask(ev.Extend, topic=TOPIC, delivery=delivery.number, id="a", lease_s=20)
    bench.later(19)
    assert bench.take() == []
    bench.later(1)
    assert bench.ids() == ["a"]
    late = bench.ask(ev.Extend, topic=TOPIC, delivery=delivery.number, id="a", lease_s=20)
    assert isinstance(bench.result(late), ConflictError)


def test_a_message_given_back_waits_as_long_as_was_said() -> None:
    bench = Bench()
    bench.send("a")
    bench.nack(bench.take()[0], delay_s=30, reason="later")
    bench.send("b")
    assert bench.ids() == ["b"]
    bench.restart()  # "b" was not acknowledged, and "a" still waits
    assert bench.ids() == ["b"]
    waiting = bench.receive()
    bench.later(30)
    (delivery,) = bench.result(waiting)  # type: ignore[misc]
    assert (delivery.message.id, delivery.message.failures) == ("a", 1)


def test_a_delivery_that_reached_nobody_is_no_failure() -> None:
    bench = Bench(deliveries=1, backoff_s=60)
    bench.send("a")
    assert bench.nack(bench.take()[0], failed=False) == 1
    (delivery,) = bench.take()
    assert delivery.message.failures == 0


def test_waits_between_deliveries_double() -> None:
    bench = Bench(backoff_s=2, deliveries=10)
    bench.send("a")
    for wait_s in (2, 4, 8):
        bench.nack(bench.take()[0])
        bench.later(wait_s - 0.1)
        assert bench.take() == []
        bench.later(0.1)
    assert bench.ids() == ["a"]


def test_what_fails_too_often_is_dead_with_the_last_reason_and_can_be_replayed() -> None:
    bench = Bench(deliveries=2)
    bench.send("a")
    bench.send("b")
    for reason in ("first", "second"):
        bench.nack(bench.take()[0], reason=reason)
    assert bench.dead == {"a": "second"}
    assert bench.ids() == ["b"]
    bench.restart()
    assert bench.dead == {"a": "second"}
    assert isinstance(bench.result(bench.ask(ev.Replay, topic=TOPIC, ids=["b"])), NotFoundError)
    assert bench.result(bench.ask(ev.Replay, topic=TOPIC)) == 1
    assert bench.dead == {}
    assert sorted(bench.ids()) == ["a", "b"]


def test_what_a_receiver_had_goes_to_another_when_it_goes_away() -> None:
    bench = Bench()
    bench.send("a")
    bench.send("b")
    bench.take("one")
    waiting = bench.receive("one")
    assert waiting in bench.answers
    unanswered = bench.receive("one")
    bench.step(ev.Gone(request=0, receiver="one"))
    assert bench.ids(receiver="two") == ["a", "b"]
    assert unanswered not in bench.answers


def test_a_deadline_passes() -> None:
    bench = Bench()
    bench.send("a", deadline=10.0)
    bench.send("b", deadline=10.0)
    bench.send("c", due=20.0)
    (held,) = bench.take()
    bench.later(10)
    assert bench.dead == {"b": LATE}
    assert bench.ack(held) == 1, "what was delivered in time may be finished"
    assert bench.take() == []
    bench.later(10)
    assert bench.ids() == ["c"]


def test_a_number_of_another_delivery_is_refused() -> None:
    bench = Bench()
    bench.send("a")
    bench.send("b")
    a, b = bench.take(count=2)
    for kind in (ev.Ack, ev.Nack, ev.Extend):
        fields = {"lease_s": 1.0} if kind is ev.Extend else {}
        wrong = bench.ask(kind, topic=TOPIC, delivery=a.number, id="b", **fields)
        assert isinstance(bench.result(wrong), ConflictError)
    assert (bench.ack(a), bench.ack(b)) == (1, 1)


def test_after_a_restart_a_receiver_may_acknowledge_what_nobody_else_has() -> None:
    bench = Bench()
    bench.send("a")
    bench.send("b")
    old = bench.take(count=2)
    bench.restart()
    assert bench.ack(old[0]) == 1
    (again,) = bench.take(receiver="other")
    assert again.message.id == "b"
    assert isinstance(bench.ack(old[1]), ConflictError)
    assert bench.ack(again) == 1


@pytest.mark.parametrize("limit", [{"messages": 2}, {"bytes": 2}])
def test_a_full_topic_blocks_its_senders_in_order(limit: dict[str, int]) -> None:
    bench = Bench(**limit)
    for id_ in "ab":
        bench.send(id_)
    third, fourth = bench.send("c"), bench.send("d")
    same = bench.send("c")
    assert not {third, fourth, same} & bench.answers.keys()
    deliveries = bench.take(count=2)
    assert third not in bench.answers, "what is worked on counts"
    bench.ack(deliveries[0])
    assert bench.result(third) == Accepted("c")
    assert fourth not in bench.answers
    bench.step(ev.Withdraw(request=fourth))
    bench.ack(deliveries[1])
    assert bench.ids() == ["c"]
    assert bench.result(same) == Accepted("c", duplicate=True)


def test_a_small_message_does_not_overtake_one_that_waits_for_room() -> None:
    bench = Bench(bytes=3)
    bench.send("a", body=b"xx")
    large, small = bench.send("b", body=b"xx"), bench.send("c")
    assert not {large, small} & bench.answers.keys()
    bench.ack(bench.take()[0])
    assert bench.ids() == ["b", "c"]


def test_who_waits_for_room_hears_when_the_deadline_has_passed() -> None:
    bench = Bench(messages=1)
    bench.send("a")
    blocked = bench.send("b", deadline=5.0)
    bench.later(5)
    assert isinstance(bench.result(blocked), BusyError)


def test_a_full_topic_may_refuse_or_drop_its_oldest() -> None:
    bench = Bench(messages=2, when_full="refuse")
    for id_ in "ab":
        bench.send(id_)
    assert isinstance(bench.result(bench.send("c")), BusyError)

    bench = Bench(messages=2, when_full="drop_oldest")
    bench.send("a")
    bench.take()
    for id_ in "bc":
        bench.send(id_)
    assert bench.ids() == ["c"], "what is worked on stays"
    assert isinstance(bench.result(bench.send("d")), BusyError), "all of it is worked on"


def test_what_waits_or_is_dead_can_be_dropped() -> None:
    bench = Bench(deliveries=1)
    for id_ in "abc":
        bench.send(id_)
    bench.nack(bench.take()[0])
    (held,) = bench.take()
    assert bench.result(bench.ask(ev.Purge, topic=TOPIC)) == 1
    assert bench.result(bench.ask(ev.Purge, topic=TOPIC, select="dead")) == 1
    assert bench.ack(held) == 1
    assert [row.id for row in bench.rows.values()] == ["b"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"id": ""}, InvalidError),
        ({"id": "x" * 200}, InvalidError),
        ({"id": "a\n"}, InvalidError),
        ({"topic": "../x"}, InvalidError),
        ({"topic": "a/b/c/d/e"}, InvalidError),
        ({"topic": ""}, InvalidError),
        ({"priority": 101}, InvalidError),
        ({"deadline": math.inf}, InvalidError),
        ({"due": math.nan, "deadline": math.nan}, None),
        ({"body": bytes(limits.MESSAGE_BYTES_MAX + 1)}, InvalidError),
        ({"headers": {"a": "x" * limits.MESSAGE_BYTES_MAX}}, InvalidError),
    ],
)
def test_what_may_not_be_sent(fields: dict[str, object], error: type[Exception] | None) -> None:
    bench = Bench()
    result = bench.result(bench.send(**{"id_": "a", **{_renamed(k): v for k, v in fields.items()}}))
    if error is None:
        assert result == Accepted("a"), "no time at all is none"
    else:
        assert isinstance(result, error)
        assert str(result).startswith("cannot")
        assert bench.rows == {}


def _renamed(name: str) -> str:
    return "id_" if name == "id" else name


def test_topics_that_nobody_uses_are_none() -> None:
    bench = Bench()
    unknown = bench.ask(ev.Ack, topic="no", delivery=1, id="a")
    assert isinstance(bench.result(unknown), NotFoundError)
    bench.step(ev.Withdraw(request=bench.receive()))
    assert bench.topics.topics == {}


def test_old_dead_messages_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEAD_MESSAGES_KEPT", 2)
    bench = Bench(deliveries=1)
    for id_ in "abc":
        bench.send(id_)
        bench.nack(bench.take()[0])
    assert list(bench.dead) == ["b", "c"]
    assert sorted(row.id for row in bench.rows.values()) == ["b", "c"]


def raise_(result: ev.Result) -> None:
    if isinstance(result, Exception):
        raise result


IDS = st.sampled_from("abcdefgh")


class Machine(RuleBasedStateMachine):
    """Whatever happens: nothing accepted is lost, and nobody has what another one has."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(lease_s=10, deliveries=3, messages=4, backoff_s=1)
        self.accepted: set[str] = set()
        self.finished: set[str] = set()
        self.held: list[Delivery] = []
        self.asked: dict[int, str] = {}
        self.receiving: set[int] = set()
        self.replayed = False

    @rule(id_=IDS, priority=st.sampled_from([10, 50]), due=st.sampled_from([0.0, 5.0]))
    def send(self, id_: str, priority: int, due: float) -> None:
        self.asked[self.bench.send(id_, priority=priority, due=due)] = id_
        self.hear()

    @rule(receiver=st.sampled_from("xyz"), count=st.integers(1, 3))
    def receive(self, receiver: str, count: int) -> None:
        self.receiving.add(self.bench.receive(receiver, count=count))
        self.hear()

    @rule(ids=st.lists(IDS, max_size=4), priority=st.sampled_from([10, 50]))
    def send_several(self, ids: list[str], priority: int) -> None:
        request = self.bench.requests + 1
        self.bench.requests += 1 + len(ids)
        messages = [message(id_, priority=priority) for id_ in ids]
        self.bench.step(ev.SendSeveral(request=request, topic=TOPIC, messages=messages))
        result = self.bench.answers.pop(request)
        assert isinstance(result, ev.Several)
        assert not result.errors
        for place, id_ in enumerate(ids):
            if place in result.later:
                self.asked[request + place] = id_
            else:
                self.accepted.add(id_)
        self.hear()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), count=st.integers(1, 4))
    def acknowledge_several(self, data: st.DataObject, count: int) -> None:
        some = data.draw(st.lists(st.sampled_from(self.held), max_size=count, unique_by=id))
        self.held = [delivery for delivery in self.held if delivery not in some]
        settled = [(delivery.number, delivery.message.id) for delivery in some]
        result = self.bench.result(self.bench.ask(ev.AckSeveral, topic=TOPIC, settled=settled))
        if isinstance(result, NotFoundError):
            return  # nobody knows the topic any more
        assert isinstance(result, ev.Several)
        ids = enumerate(delivery.message.id for delivery in some)
        self.finished |= {id_ for place, id_ in ids if place not in result.errors}
        self.hear()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), acks=st.booleans())
    def finish(self, data: st.DataObject, acks: bool) -> None:
        delivery = data.draw(st.sampled_from(self.held))
        self.held.remove(delivery)
        result = self.bench.ack(delivery) if acks else self.bench.nack(delivery, delay_s=3)
        if result == 1 and acks:
            self.finished.add(delivery.message.id)
        self.hear()

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def later(self, seconds: float) -> None:
        self.bench.later(seconds)
        self.hear()

    @rule(receiver=st.sampled_from("xyz"))
    def gone(self, receiver: str) -> None:
        self.bench.step(ev.Gone(request=0, receiver=receiver))
        self.hear()

    @rule()
    def restart(self) -> None:
        self.bench.restart()
        self.asked.clear()
        self.receiving.clear()

    @rule()
    def replay(self) -> None:
        if TOPIC in self.bench.topics.topics:
            self.bench.ask(ev.Replay, topic=TOPIC)
            self.replayed = True  # what comes back stands beside what fills the topic already
        self.hear()

    def hear(self) -> None:
        for request in list(self.asked):
            if request in self.bench.answers:
                id_ = self.asked.pop(request)
                assert isinstance(self.bench.answers[request], Accepted)
                self.accepted.add(id_)
        for request in list(self.receiving):
            if request in self.bench.answers:
                self.receiving.discard(request)
                given = self.bench.answers[request]
                assert isinstance(given, list)
                assert given
                self.held += given
                for delivery in given:
                    assert delivery.message.id not in self.finished, "done with, yet delivered"

    @invariant()
    def nothing_is_lost(self) -> None:
        rows = {row.id: row for row in self.bench.rows.values()}
        assert len(rows) == len(self.bench.rows)
        assert rows.keys() == self.accepted
        assert {id_ for id_, row in rows.items() if row.is_done} == self.finished
        assert all(row.failures <= 3 for row in rows.values())

    @invariant()
    def the_books_are_right(self) -> None:
        topic = self.bench.topics.topics.get(TOPIC)
        if topic is None:
            return
        leased = [lease.message.number for lease in topic.leases.values()]
        assert len(leased) == len(set(leased)), "two have the same message"
        assert set(leased) <= topic.live.keys()
        assert topic.bytes == sum(m.size for m in topic.live.values())
        self.replayed &= len(topic.live) > 4
        assert len(topic.live) <= 4 or self.replayed or not topic.senders
        assert {**topic.live, **topic.dead}.items() <= self.bench.rows.items()
        ready = [m for m in topic.waiting() if m.due <= self.bench.now]
        assert not (ready and topic.receivers), "one waits to be received, and is not"
        assert self.bench.wake > self.bench.now


Machine.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestTopics = Machine.TestCase
