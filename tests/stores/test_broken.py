"""The conformance suite catches a store that breaks a promise: one broken store for each."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from stores import MemoryStore
from stores.agenda import Agenda
from tests.shadow import Shadow, ShadowStore
from workflow.clock import utcnow
from workflow.record import (
    QUEUE,
    Answer,
    Change,
    Commit,
    Committed,
    Due,
    Gone,
    Head,
    Lease,
    Line,
    Loaded,
    Lost,
    Page,
    Query,
    Renewed,
    Wake,
)
from workflow.store import Store, Transaction, enter
from workflow.testing.conformance import StoreConformance
from workflow.testing.conformance.suite import Suite as Base

BROKEN: dict[str, tuple[type[MemoryStore], str]] = {}


def caught_by(test: str):
    """Registers a broken store under the rule it breaks, with the test that must notice."""

    def register(store: type[MemoryStore]) -> type[MemoryStore]:
        BROKEN[store.__name__] = store, test
        return store

    return register


def suite(store: type[MemoryStore]) -> StoreConformance:
    class Suite(StoreConformance):
        lacks = frozenset({"processes"} if issubclass(store, ShadowStore) else {"processes", "transaction"})

        async def make(self) -> Store:
            return store()

        async def reopen(self, store: Store) -> Store:
            return store

    return Suite()


TESTS = [name for name, _ in inspect.getmembers(StoreConformance, inspect.isfunction) if name.startswith("test_")]


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("store", [MemoryStore, ShadowStore])
async def test_a_whole_store_passes(store, name):
    await getattr(suite(store), name)()


# --- append -----------------------------------------------------------------------------------------


@caught_by("test_a_key_is_used_once")
class ForgetsKeys(MemoryStore):
    def _write(self, instance, head, lines, stamp):
        super()._write(instance, head, lines, stamp)
        instance.keys.clear()


@caught_by("test_a_key_is_found_behind_a_stale_seq")
class LooksForKeysTooLate(MemoryStore):
    def _refusal(self, commit_id, change):
        instance = self._instances.get((change.workflow, change.id))
        stale = instance is not None and instance.seq != change.seq
        return super()._refusal(commit_id, replace(change, lines=()) if stale else change)


@caught_by("test_a_stale_seq_is_refused")
class IgnoresSeq(MemoryStore):
    def _refusal(self, commit_id, change):
        instance = self._instances.get((change.workflow, change.id))
        return super()._refusal(commit_id, replace(change, seq=instance.seq) if instance else change)


@caught_by("test_an_id_is_started_once")
class StartsTwice(MemoryStore):
    def _refusal(self, commit_id, change):
        return super()._refusal(commit_id, change) if change.seq else None


@caught_by("test_a_change_without_lines_compares_too")
class ComparesOnlyLines(MemoryStore):
    def _refusal(self, commit_id, change):
        return super()._refusal(commit_id, change) if change.lines else None


@caught_by("test_eight_starts_of_one_key_make_one_run")
class LooksThenWrites(MemoryStore):
    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        refusals = [self._refusal(commit.id, commit.changes[0]) for commit in commits]
        await asyncio.sleep(0)
        return [refusal or self._blindly(commit) for commit, refusal in zip(commits, refusals, strict=True)]

    def _blindly(self, commit: Commit) -> Answer:
        return Committed(self._apply(commit.changes[0], commit.now or utcnow()))


@caught_by("test_what_cannot_be_written_leaves_nothing")
class WritesOneByOne(MemoryStore):
    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        return [(await MemoryStore.append(self, [commit]))[0] for commit in commits]


@caught_by("test_labels_are_replaced_not_merged")
class MergesLabels(MemoryStore):
    def _write(self, instance, head, lines, stamp):
        old = instance.head.labels[:-1] if instance.head is not None else "{"
        merged = f"{old},{head.labels[1:]}".replace("{,", "{").replace(",}", "}")
        super()._write(instance, replace(head, labels=merged), lines, stamp)


@caught_by("test_no_field_of_the_old_head_survives")
class KeepsReasons(MemoryStore):
    def _write(self, instance, head, lines, stamp):
        reason = head.reason or (instance.head.reason if instance.head else None)
        super()._write(instance, replace(head, reason=reason), lines, stamp)


@caught_by("test_time_never_goes_back_within_an_instance")
class LetsTimeGoBack(MemoryStore):
    def _write(self, instance, head, lines, stamp):
        super()._write(instance, head, lines, self.time)

    def _apply(self, change: Change, now: datetime) -> datetime:
        self.time = now
        return super()._apply(change, now)


@caught_by("test_the_time_of_a_commit_is_its_argument")
class FollowsItsOwnClock(MemoryStore):
    def _apply(self, change: Change, now: datetime) -> datetime:
        return super()._apply(change, utcnow())


@caught_by("test_a_commit_without_a_time_takes_the_store_s")
class HasTwoClocks(MemoryStore):
    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        wake = await super().next_due(workflows, now)
        return wake if now else replace(wake, now=wake.now + timedelta(minutes=3))


@caught_by("test_a_commit_over_several_instances_leaves_nothing_when_refused")
class CommitsByHalves(MemoryStore):
    def _commit(self, commit: Commit) -> Answer:
        answers = [MemoryStore._commit(self, replace(commit, changes=(c,))) for c in commit.changes]
        return next((answer for answer in answers if not isinstance(answer, Committed)), answers[0])


@caught_by("test_each_commit_has_its_own_answer")
class AnswersInAnotherOrder(MemoryStore):
    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        return sorted(await super().append(commits), key=lambda answer: type(answer).__name__)


@caught_by("test_of_two_commits_on_one_instance_the_earlier_goes_first")
class DoesTheLastFirst(MemoryStore):
    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        return list(await super().append(commits[::-1]))[::-1]


# --- appended again -----------------------------------------------------------------------------------


@caught_by("test_a_commit_that_landed_is_committed")
class ForgetsCommits(MemoryStore):
    def _landed(self, commit: Commit) -> None:
        return None


@caught_by("test_it_is_recognised_behind_later_lines")
class LooksOnlyAtTheLastLine(MemoryStore):
    def _landed(self, commit: Commit) -> Committed | None:
        last = self._instances[commit.changes[0].workflow, commit.changes[0].id].lines[-1:]
        return super()._landed(commit) if last and last[0].commit_id == commit.id else None


@caught_by("test_only_the_commit_s_own_id_is_recognised")
class TakesAnyTwinForItself(MemoryStore):
    def _landed(self, commit: Commit) -> Committed | None:
        found = self._instances[commit.changes[0].workflow, commit.changes[0].id].lines
        return Committed(found[0].at) if found else None


@caught_by("test_a_repeat_touches_no_due_row")
class RepeatsPuts(MemoryStore):
    def _landed(self, commit: Commit) -> Committed | None:
        landed = super()._landed(commit)
        if landed:
            for change in commit.changes:
                self._apply(replace(change, lines=(), head=None), landed.at)
        return landed


@caught_by("test_a_commit_over_several_instances_is_recognised")
class KnowsOnlyTheFirstChange(MemoryStore):
    def _landed(self, commit: Commit) -> Committed | None:
        return super()._landed(replace(commit, changes=commit.changes[:1]))


@caught_by("test_a_repeat_tells_whether_the_row_is_still_mine")
class ForgetsTheOwnerOnRepeat(MemoryStore):
    def _landed(self, commit: Commit) -> Committed | None:
        landed = super()._landed(commit)
        return replace(landed, leased=self._queue(commit.changes[0])) if landed else None


# --- leases -----------------------------------------------------------------------------------------


class _Compares(MemoryStore):
    """Compares leases in a way of its own."""

    def same(self, row: Due | None, lease: Lease) -> Answer | None:
        raise NotImplementedError

    def _refusal(self, commit_id, change):
        free = super()._refusal(commit_id, replace(change, lease=None))
        if free is not None or change.lease is None:
            return free
        return self.same(self._queue(change), change.lease)


@caught_by("test_another_attempt_is_lost")
class SettlesByTokenAlone(_Compares):
    def same(self, row: Due | None, lease: Lease) -> Answer | None:
        return Gone() if row is None else None if row.token == lease.token else Lost()


@caught_by("test_a_row_at_an_earlier_place_is_lost")
class IgnoresThePlace(_Compares):
    def same(self, row: Due | None, lease: Lease) -> Answer | None:
        same = row and (row.token, row.attempt) == (lease.token, lease.attempt)
        return Gone() if row is None or row.seq > lease.seq else None if same else Lost()


@caught_by("test_a_settle_that_landed_hears_gone")
class CallsGoneLost(_Compares):
    def same(self, row: Due | None, lease: Lease) -> Answer | None:
        same = row and (row.token, row.attempt, row.seq, row.number) == (
            lease.token,
            lease.attempt,
            lease.seq,
            lease.number,
        )
        return None if same else Lost()


@caught_by("test_a_foreign_token_is_lost")
class SettlesForAnybody(_Compares):
    def same(self, row: Due | None, lease: Lease) -> Answer | None:
        return Gone() if row is None or (row.seq, row.number) > (lease.seq, lease.number) else None


@caught_by("test_leased_is_only_what_this_commit_left_mine")
class TellsForeignLeases(MemoryStore):
    def _commit(self, commit: Commit) -> Answer:
        answer = super()._commit(commit)
        return replace(answer, leased=self._queue(commit.changes[0])) if isinstance(answer, Committed) else answer


@caught_by("test_what_is_no_longer_mine_is_lost_and_untouched")
class RenewsForeignRows(MemoryStore):
    async def renew(self, token, rows, lease, now=None) -> Renewed:
        for workflow, id, name in rows:
            instance = self._instances.get((workflow, id))
            if instance and name in instance.due:
                self._put(instance, replace(instance.due[name], token=token))
        return await super().renew(token, rows, lease, now)


@caught_by("test_renewing_pushes_the_end_of_the_lease")
class RenewsNothing(MemoryStore):
    async def renew(self, token, rows, lease, now=None) -> Renewed:
        return Renewed(frozenset(), now or utcnow())


@caught_by("test_a_late_renewal_shortens_nothing")
class RenewsBackwards(MemoryStore):
    def _renewed(self, place, token, until) -> bool:
        workflow, id, name = place
        mine = super()._renewed(place, token, until)
        instance = self._instances.get((workflow, id))
        if mine and instance:
            self._put(instance, replace(instance.due[name], at=until))
        return mine


# --- due rows ---------------------------------------------------------------------------------------


@caught_by("test_many_rows_of_one_time_are_paged")
class LosesARow(MemoryStore):
    def _put(self, instance, row):
        if not row.name.endswith("39"):
            super()._put(instance, row)


@caught_by("test_a_put_replaces_the_row_of_its_name")
class KeepsSupersededRows(MemoryStore):
    def _put(self, instance, row):
        if row.token is not None or row.name not in instance.due:
            super()._put(instance, row)


@caught_by("test_an_absent_put_leaves_the_row")
class IgnoresAbsent(MemoryStore):
    def _apply(self, change: Change, now: datetime) -> datetime:
        return super()._apply(replace(change, puts=tuple(replace(put, absent=False) for put in change.puts)), now)


@caught_by("test_drops_go_before_puts")
class DropsAfterPuts(MemoryStore):
    def _apply(self, change: Change, now: datetime) -> datetime:
        stamp = super()._apply(replace(change, drops=()), now)
        super()._apply(replace(change, lines=(), head=None, puts=(), held=None), now)
        return stamp


@caught_by("test_holding_an_instance_holds_all_its_rows")
class HoldsOnlyOldRows(MemoryStore):
    def _apply(self, change: Change, now: datetime) -> datetime:
        super()._apply(replace(change, lines=(), head=None, puts=(), drops=()), now)
        return super()._apply(replace(change, held=None), now)


@caught_by("test_held_rows_are_never_claimed")
class ClaimsHeldRows(MemoryStore):
    def _put(self, instance, row):
        super()._put(instance, replace(row, held=False))


@caught_by("test_concurrent_claims_share_the_rows")
class ClaimsTwice(MemoryStore):
    def _lease(self, row: Due, token: str, until: datetime) -> Due:
        return replace(row, token=token, attempt=row.attempt + 1, at=until)


@caught_by("test_a_claimed_row_is_owned")
class CountsNoAttempts(MemoryStore):
    def _lease(self, row: Due, token: str, until: datetime) -> Due:
        return super()._lease(replace(row, attempt=row.attempt - 1), token, until)


@caught_by("test_newer_versions_are_left_alone")
class IgnoresVersions(MemoryStore):
    def _known(self, workflows: Mapping[str, int]) -> list[Agenda]:
        return super()._known(dict.fromkeys(workflows, 99))


@caught_by("test_only_the_named_workflows_are_claimed")
class ClaimsForAll(MemoryStore):
    def _known(self, workflows: Mapping[str, int]) -> list[Agenda]:
        return super()._known(dict.fromkeys(self._agendas, 99))


class _Claims(MemoryStore):
    """Claims in a way of its own."""

    async def claim(
        self,
        workflows: Mapping[str, int],
        token: str,
        lease: timedelta,
        limit: int,
        dead: Collection[str] = (),
        now: datetime | None = None,
    ) -> Sequence[Due]:
        return await self.changed(workflows, token, lease, limit, dead, now)

    async def changed(self, workflows, token, lease, limit, dead, now) -> Sequence[Due]:
        raise NotImplementedError


@caught_by("test_the_earliest_come_first")
class ClaimsInAnyOrder(_Claims):
    async def changed(self, workflows, token, lease, limit, dead, now) -> Sequence[Due]:
        rows = await super(_Claims, self).claim(workflows, token, lease, limit, dead, now)
        return sorted(rows, key=lambda row: row.id)


@caught_by("test_many_rows_of_one_time_are_paged")
class ClaimsMoreThanAsked(_Claims):
    async def changed(self, workflows, token, lease, limit, dead, now) -> Sequence[Due]:
        return await super(_Claims, self).claim(workflows, token, lease, 2 * limit, dead, now)


@caught_by("test_rows_of_the_dead_are_claimed_at_once")
class WaitsForTheDead(_Claims):
    async def changed(self, workflows, token, lease, limit, dead, now) -> Sequence[Due]:
        return await super(_Claims, self).claim(workflows, token, lease, limit, (), now)


@caught_by("test_a_claimed_row_is_owned")
class ClaimsFromTheLiving(_Claims):
    async def changed(self, workflows, token, lease, limit, dead, now) -> Sequence[Due]:
        living = {token for agenda in self._known(workflows) for token in agenda.owners()}
        return await super(_Claims, self).claim(workflows, token, lease, limit, living, now)


@caught_by("test_only_what_is_due_is_claimed")
class ClaimsTooEarly(_Claims):
    async def changed(self, workflows, token, lease, limit, dead, now) -> Sequence[Due]:
        early = (now or utcnow()) + timedelta(seconds=1)
        return await super(_Claims, self).claim(workflows, token, lease, limit, dead, early)


@caught_by("test_held_rows_and_newer_versions_do_not_count")
class WakesForHeldRows(MemoryStore):
    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        rows = [row for instance in self._instances.values() for row in instance.due.values()]
        wake = await super().next_due(workflows, now)
        return replace(wake, at=min((row.at for row in rows), default=None))


@caught_by("test_the_owners_of_leases_are_told")
class ForgetsOwners(MemoryStore):
    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        return replace(await super().next_due(workflows, now), tokens=frozenset())


@caught_by("test_rows_past_due_count")
class WakesOnlyInTheFuture(MemoryStore):
    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        wake = await super().next_due(workflows, now)
        return replace(wake, at=wake.at if wake.at and wake.at > wake.now else None)


def _owing(lines: list[Line]) -> tuple[Line, ...]:
    return tuple(line for line in lines if line.owes)[:2]


# --- reading ----------------------------------------------------------------------------------------


@caught_by("test_heads_come_in_the_order_asked")
class LoadsInAnyOrder(MemoryStore):
    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        return await super().load(workflow, sorted(ids), rows=rows)


@caught_by("test_heads_come_in_the_order_asked")
class LeavesOutTheAbsent(MemoryStore):
    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        return [found for found in await super().load(workflow, ids, rows=rows) if found]


@caught_by("test_the_queue_is_the_first_two_owing_lines")
class QueuesFromTheBeginning(MemoryStore):
    def _loaded(self, instance):
        loaded = super()._loaded(instance)
        return replace(loaded, queue=_owing(instance.lines)) if instance and loaded else None


@caught_by("test_an_instance_at_rest_owes_nothing")
class QueuesWithoutARow(MemoryStore):
    def _loaded(self, instance):
        loaded = super()._loaded(instance)
        return replace(loaded, queue=_owing(instance.lines)) if instance and loaded and not loaded.effects else loaded


@caught_by("test_history_is_in_order_and_can_be_paged")
class ShufflesHistory(MemoryStore):
    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        return sorted(await super().history(workflow, id, after, limit), key=lambda line: str(line.seq))


@caught_by("test_history_is_in_order_and_can_be_paged")
class IgnoresTheLimit(MemoryStore):
    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        return await super().history(workflow, id, after)


@caught_by("test_what_is_handed_out_is_the_caller_s")
class HandsOutItsOwnList(MemoryStore):
    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        self._check()
        return self._instances[workflow, id].lines


@caught_by("test_a_mebibyte_comes_back")
class CutsLongTexts(MemoryStore):
    def _write(self, instance, head, lines, stamp):
        cut = [replace(line, payload=line.payload and line.payload[:65535]) for line in lines]
        super()._write(instance, head, cut, stamp)


@caught_by("test_recall_finds_only_this_key_of_this_instance")
class RecallsFromAnywhere(MemoryStore):
    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        return next((line for line in self._feed if line.key == key), None)


@caught_by("test_pages_go_on_after_an_id")
class FindsFromTheBeginning(MemoryStore):
    async def find(self, query: Query) -> Sequence[Head]:
        return await super().find(replace(query, after=None))


@caught_by("test_an_empty_set_matches_nothing")
class TakesAnEmptySetForNone(MemoryStore):
    async def find(self, query: Query) -> Sequence[Head]:
        return await super().find(replace(query, status=query.status or None, state=query.state or None))


@caught_by("test_labels_are_compared_as_text")
class SplitsLabels(MemoryStore):
    async def find(self, query: Query) -> Sequence[Head]:
        heads = await super().find(replace(query, labels=()))
        return [head for head in heads if all(f'"{n}"' in head.labels and v in head.labels for n, v in query.labels)]


@caught_by("test_heads_of_one_workflow_in_order_of_id")
class FindsInAnyOrder(MemoryStore):
    async def find(self, query: Query) -> Sequence[Head]:
        return sorted(await super().find(query), key=lambda head: head.id.lower())


@caught_by("test_the_feed_holds_every_line_once")
class FeedsBackwards(MemoryStore):
    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        page = await super().read(cursor, limit)
        return replace(page, transitions=page.transitions[::-1])


@caught_by("test_a_tailing_reader_misses_nothing")
class SkipsLateCommitters(MemoryStore):
    """The last line of every page is not seen yet, but the cursor is past it."""

    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        page = await super().read(cursor, limit)
        return replace(page, transitions=page.transitions[: max(1, len(page.transitions) - 1)])


@caught_by("test_a_tailing_reader_misses_nothing")
class OrdersTheFeedByName(MemoryStore):
    def _apply(self, change: Change, now: datetime) -> datetime:
        stamp = super()._apply(change, now)
        self._feed.sort(key=lambda line: line.id)
        return stamp


@caught_by("test_a_strange_cursor_is_refused")
class TakesAnyCursor(MemoryStore):
    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        self._check()
        return Page(tuple(self._feed[:limit]), cursor or "memory:0")


# --- timers, whole instances --------------------------------------------------------------------------


@caught_by("test_a_named_row_is_compared_and_dropped")
class ComparesTheQueueAlone(MemoryStore):
    def _refusal(self, commit_id, change):
        lease = None if change.lease is None else replace(change.lease, name=QUEUE)
        return super()._refusal(commit_id, replace(change, lease=lease))


@caught_by("test_a_foreign_token_on_a_named_row_is_lost")
class FiresForAnybody(MemoryStore):
    def _refusal(self, commit_id, change):
        named = change.lease is not None and change.lease.name != QUEUE
        return super()._refusal(commit_id, replace(change, lease=None) if named else change)


@caught_by("test_leased_is_of_the_effects_row_only")
class TellsOfTimers(MemoryStore):
    def _commit(self, commit: Commit) -> Answer:
        answer, change = super()._commit(commit), commit.changes[0]
        row = self._instances[change.workflow, change.id].due.get(change.lease.name) if change.lease else None
        told = isinstance(answer, Committed) and row is not None and row.token == commit.token
        return replace(answer, leased=row) if told else answer


@caught_by("test_leased_is_of_the_effects_row_only")
class TellsOfWhatIsThere(MemoryStore):
    def _commit(self, commit: Commit) -> Answer:
        answer, row = super()._commit(commit), self._queue(commit.changes[0])
        mine = isinstance(answer, Committed) and row is not None and row.token == commit.token
        return replace(answer, leased=row) if mine and commit.changes[0].lease is not None else answer


@caught_by("test_a_timer_put_again_begins_anew")
class KeepsOldAttempts(MemoryStore):
    def _put(self, instance, row):
        old = instance.due.get(row.name)
        super()._put(instance, replace(row, attempt=old.attempt) if old is not None and row.token is None else row)


@caught_by("test_a_lease_on_one_row_is_renewed_alone")
class RenewsWholeInstances(MemoryStore):
    async def renew(self, token, rows, lease, now=None) -> Renewed:
        names = [(workflow, id, name) for workflow, id, _ in rows for name in self._instances[workflow, id].due]
        await super().renew(token, names, lease, now)
        return await super().renew(token, rows, lease, now)


class _Gathers(MemoryStore):
    """Gathers rows in a way of its own."""

    def gathered(self, loaded: Loaded) -> tuple[Due, ...]:
        raise NotImplementedError

    def _with_rows(self, loaded: Loaded) -> Loaded:
        whole = super()._with_rows(loaded)
        return replace(whole, rows=self.gathered(whole))


@caught_by("test_all_due_rows_come_with_the_head")
class HidesHeldRows(_Gathers):
    def gathered(self, loaded: Loaded) -> tuple[Due, ...]:
        return tuple(row for row in loaded.rows if not row.held)


@caught_by("test_all_due_rows_come_with_the_head")
class GathersByTime(_Gathers):
    def gathered(self, loaded: Loaded) -> tuple[Due, ...]:
        return tuple(sorted(loaded.rows, key=lambda row: row.at))


@caught_by("test_all_due_rows_come_with_the_head")
class GathersTimersOnly(_Gathers):
    def gathered(self, loaded: Loaded) -> tuple[Due, ...]:
        return tuple(row for row in loaded.rows if row.name != QUEUE)


@caught_by("test_rows_can_be_many")
class GathersAPage(_Gathers):
    def gathered(self, loaded: Loaded) -> tuple[Due, ...]:
        return loaded.rows[:1000]


@caught_by("test_rows_are_those_of_their_instance")
class GathersOverWorkflows(_Gathers):
    def gathered(self, loaded: Loaded) -> tuple[Due, ...]:
        id = loaded.head.id
        found = [each.due for (_, other), each in self._instances.items() if other == id]
        return tuple(row for due in found for row in due.values())


@caught_by("test_rows_come_only_if_they_are_asked_for")
class GathersAlways(MemoryStore):
    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        return await super().load(workflow, ids, rows=True)


@caught_by("test_erasing_empties_the_earlier_lines")
class ErasesNothing(MemoryStore):
    def _erase(self, change, instance):
        pass


@caught_by("test_erasing_empties_the_earlier_lines")
class ErasesHistoryOnly(MemoryStore):
    def _erase(self, change, instance):
        feed, self._feed = self._feed, list(self._feed)
        super()._erase(change, instance)
        self._feed = feed


@caught_by("test_erasing_empties_the_earlier_lines")
class ErasesItselfToo(MemoryStore):
    def _apply(self, change: Change, now: datetime) -> datetime:
        stamp = super()._apply(change, now)
        if change.erase:
            self._erase(change, self._instances[change.workflow, change.id])
        return stamp


@caught_by("test_erasing_reaches_no_other_instance")
class ErasesNeighbours(MemoryStore):
    def _erase(self, change, instance):
        for (workflow, id), each in self._instances.items():
            super()._erase(replace(change, workflow=workflow, id=id), each)


@caught_by("test_an_erasing_commit_does_all_else_too")
class ForgetsKeysWhenErasing(MemoryStore):
    def _erase(self, change, instance):
        super()._erase(change, instance)
        instance.keys.clear()


@caught_by("test_erasing_that_is_refused_erases_nothing")
class ErasesFirst(MemoryStore):
    def _refusal(self, commit_id, change):
        instance = self._instances.get((change.workflow, change.id))
        if change.erase and instance is not None:
            self._erase(change, instance)
        return super()._refusal(commit_id, change)


class _Plain(Shadow):
    """Does not gather."""

    async def load(self, workflow, ids, *, rows=False) -> Sequence[Loaded | None]:
        return await super().load(workflow, ids)


@caught_by("test_rows_are_seen_inside_a_transaction")
class GathersNothingInside(ShadowStore):
    shadow = _Plain


# --- life -------------------------------------------------------------------------------------------


@caught_by("test_a_store_must_be_open")
class WorksUnopened(MemoryStore):
    def _check(self) -> None:
        pass


@caught_by("test_openings_are_counted")
class ClosesAtTheFirst(MemoryStore):
    async def __aexit__(self, *_: object) -> None:
        self._opened = 0


@caught_by("test_what_was_written_is_there_when_opened_again")
class ForgetsWhenClosed(MemoryStore):
    async def __aexit__(self, *_: object) -> None:
        vars(self).update(vars(type(self)()))


@caught_by("test_a_commit_wakes_all_who_wait")
class NeverHints(MemoryStore):
    async def wait(self, timeout: float) -> bool:
        self._check()
        await asyncio.sleep(timeout)
        return False


@caught_by("test_a_commit_wakes_all_who_wait")
class WakesOnlyOne(MemoryStore):
    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        waiting, self._hint._waiting = self._hint._waiting, dict(list(self._hint._waiting.items())[:1])
        try:
            return await super().append(commits)
        finally:
            self._hint._waiting = waiting


@caught_by("test_a_wait_ends_at_its_ceiling")
class SaysAlwaysYes(MemoryStore):
    async def wait(self, timeout: float) -> bool:
        return True


@caught_by("test_a_wait_ends_at_its_ceiling")
class WaitsForEver(MemoryStore):
    async def wait(self, timeout: float) -> bool:
        await asyncio.sleep(1000)
        return True


# --- transactions -----------------------------------------------------------------------------------


class _Blind(Shadow):
    """Reads what was committed, not what was written here."""

    async def load(self, workflow, ids, *, rows=False) -> Sequence[Loaded | None]:
        return await self.store.load(workflow, ids, rows=rows)


@caught_by("test_what_is_written_inside_is_seen_inside")
class ReadsPastItself(ShadowStore):
    shadow = _Blind


class _Hasty(Shadow):
    """Writes where everybody sees it."""

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        assert isinstance(self._store, MemoryStore)
        await MemoryStore.append(self._store, commits)
        return await super().append(commits)


@caught_by("test_nothing_is_seen_outside_before_the_commit")
class WritesAtOnce(ShadowStore):
    shadow = _Hasty


@caught_by("test_nothing_is_seen_outside_before_the_commit")
class ForgetsTheBlock(ShadowStore):
    def keep(self, shadow: Shadow) -> None:
        self._hint.ring()


@caught_by("test_an_error_in_the_block_leaves_no_trace")
class CommitsInAnyCase(ShadowStore):
    def drop(self, shadow: Shadow) -> None:
        self.keep(shadow)


@caught_by("test_an_error_in_the_block_leaves_no_trace")
class SwallowsErrors(ShadowStore):
    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        with suppress(KeyError):
            async with super().transaction() as tx:
                yield tx


@caught_by("test_an_error_in_the_block_leaves_no_trace")
class KeepsKeysOfTheDropped(ShadowStore):
    def drop(self, shadow: Shadow) -> None:
        for place, instance in shadow.copy._instances.items():
            self._instances[place].keys = instance.keys


class _Single(Shadow):
    """Each append is a transaction of its own."""

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        answers = await super().append(commits)
        assert isinstance(self._store, ShadowStore)
        self._store.keep(self)
        return answers


@caught_by("test_several_appends_are_one_with_the_transaction")
class CommitsEachAppend(ShadowStore):
    shadow = _Single


class _Dying(Shadow):
    """Ends at the first refusal."""

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        answers = await super().append(commits)
        if not all(isinstance(answer, Committed) for answer in answers):
            self.copy = Shadow(self._store).copy
        return answers


@caught_by("test_a_refusal_inside_leaves_the_transaction_usable")
class RollsBackWhenRefused(ShadowStore):
    shadow = _Dying


class _Halving(Shadow):
    """Writes the changes of a commit one by one."""

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        halves = [await self.copy.append([replace(each, changes=(c,)) for c in each.changes]) for each in commits]
        return [next((a for a in answers if not isinstance(a, Committed)), answers[0]) for answers in halves]


@caught_by("test_a_refusal_inside_leaves_the_transaction_usable")
class LeavesHalvesInside(ShadowStore):
    shadow = _Halving


class _Repeating(Shadow):
    """Takes the identical commit for another's."""

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        return await super().append([replace(each, id=f"{each.id}{id(commits)}") for each in commits])


@caught_by("test_what_was_written_inside_is_compared_with")
class ForgetsCommitsInside(ShadowStore):
    shadow = _Repeating


@caught_by("test_a_lock_keeps_others_from_moving")
class LocksNobodyOut(ShadowStore):
    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        return await MemoryStore.append(self, commits)


class _Queueing(Shadow):
    """Waits for a lock as long as it takes, or believes that it has it."""

    async def lock(self, workflow: str, id: str, timeout: float) -> bool:
        assert isinstance(self._store, _Together)
        return await self._store.lock(self, id)


class _Together(ShadowStore):
    """Lets several transactions be open at once."""

    shadow = _Queueing

    def __init__(self) -> None:
        super().__init__()
        self.holders: defaultdict[str, set[Shadow]] = defaultdict(set)

    async def lock(self, shadow: Shadow, id: str) -> bool:
        raise NotImplementedError

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        shadow = self.shadow(self)
        enter(shadow)
        yield shadow
        shadow.open = False
        self.keep(shadow)


@caught_by("test_a_lock_waits_no_longer_than_told")
class LocksInVain(_Together):
    async def lock(self, shadow: Shadow, id: str) -> bool:
        return True


@caught_by("test_a_lock_waits_no_longer_than_told")
class LocksForEver(_Together):
    async def lock(self, shadow: Shadow, id: str) -> bool:
        while any(other.open and other is not shadow for other in self.holders[id]):  # noqa: ASYNC110  # broken on purpose
            await asyncio.sleep(0.01)
        self.holders[id].add(shadow)
        return True


@caught_by("test_rows_are_claimed_after_the_commit_only")
class ClaimsWhatIsNotCommitted(ShadowStore):
    async def claim(
        self,
        workflows: Mapping[str, int],
        token: str,
        lease: timedelta,
        limit: int,
        dead: Collection[str] = (),
        now: datetime | None = None,
    ) -> Sequence[Due]:
        if self._open is not None:
            return await self._open.copy.claim(workflows, token, lease, limit, dead, now)
        return await super().claim(workflows, token, lease, limit, dead, now)


@caught_by("test_the_end_of_a_block_wakes_all_who_wait")
class CommitsInSilence(ShadowStore):
    def keep(self, shadow: Shadow) -> None:
        waiting, self._hint._waiting = self._hint._waiting, {}
        super().keep(shadow)
        self._hint._waiting = waiting


@caught_by("test_a_cancelled_block_is_rolled_back")
class CommitsWhenCancelled(ShadowStore):
    def drop(self, shadow: Shadow) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            self.keep(shadow)


class _Shut(asyncio.Lock):
    """Nobody comes in any more."""

    async def acquire(self):
        await asyncio.sleep(1000)
        return True


@caught_by("test_a_cancelled_block_is_rolled_back")
class StaysOpenWhenCancelled(ShadowStore):
    def drop(self, shadow: Shadow) -> None:
        self._turn = _Shut()


@caught_by("test_a_task_is_inside_until_the_block_ends")
class EntersNobody(ShadowStore):
    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        async with self._turn:
            yield self.shadow(self)


class _Endless(Shadow):
    """Never says that it has ended."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, True if name == "open" else value)


@caught_by("test_a_task_is_inside_until_the_block_ends")
class NeverEnds(ShadowStore):
    shadow = _Endless


class _Reused(Shadow):
    """Takes the state of its connection for its own."""

    @property
    def open(self) -> bool:
        assert isinstance(self._store, ShadowStore)
        return self._store._open is not None

    @open.setter
    def open(self, value: bool) -> None:
        pass


@caught_by("test_what_has_ended_stays_ended")
class AsksTheConnection(ShadowStore):
    shadow = _Reused


@caught_by("test_what_is_no_connection_cannot_be_joined")
class JoinsAnything(ShadowStore):
    def joined(self, connection: object) -> Transaction:
        return self.shadow(self)


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_store_is_caught(name, monkeypatch):
    for part in ("life", "together"):
        monkeypatch.setattr(f"workflow.testing.conformance.{part}.CEILING", 0.5)  # nothing in memory takes longer
    store, test = BROKEN[name]
    assert test in TESTS
    with pytest.raises((AssertionError, LookupError, ValueError, TypeError, TimeoutError, RuntimeError)):
        await getattr(suite(store), test)()


def test_no_rule_hides_behind_another_of_its_name():
    """The suite is put together from parts: a name used in two of them would be run once."""
    parts = [part for part in StoreConformance.__mro__ if part not in {StoreConformance, object}]
    named = [name for part in parts if part is not Base for name, value in vars(part).items() if callable(value)]
    assert len(named) == len(set(named))
    assert {name for name in named if name.startswith("test_")} == set(TESTS)
