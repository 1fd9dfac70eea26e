"""Money between accounts: two moves and a row of one's own in one transaction, or none of the three.

`python -m examples.transfer [COUNT] [FILE or postgresql://...]`: random transfers side by side, some of them broken off
half-way; then the sum, and the histories held against the rows.
"""

import asyncio
import random
import sys
from collections import Counter
from enum import StrEnum
from tempfile import TemporaryDirectory

from attrs import frozen

from stores import PostgresStore, SQLiteStore
from workflow import STAY, Deny, Edge, GuardRejected, Manager, Move, Spec, Transactional

TABLE = "CREATE TABLE IF NOT EXISTS transfer (number integer PRIMARY KEY, source text, target text, amount integer)"
State = StrEnum("State", ["OPEN", "CLOSED"])
Event = StrEnum("Event", ["BOOK", "CLOSE"])


@frozen
class Account:
    """The context: what each account carries along."""

    balance: int


AccountMove = Move[State, Event, Account]
AccountEdge = Edge[State, Event, Account]


def covered(m: AccountMove) -> bool | Deny:
    """No account is overdrawn."""
    return m.context.balance + m.payload >= 0 or Deny(f"there are only {m.context.balance}")


def booked(m: AccountMove) -> Account:
    """What is paid out has a minus."""
    return Account(m.context.balance + m.payload)


account = Spec[State, Event, Account](
    "account",
    initial=State.OPEN,
    final={State.CLOSED},
    context=Account,
    payloads={Event.BOOK: int},
    edges=[
        AccountEdge(State.OPEN, Event.BOOK, STAY, guard=covered, assign=booked),
        AccountEdge(State.OPEN, Event.CLOSE, State.CLOSED, guard=lambda m: m.context.balance == 0),
    ],
)


class Bank:
    """Ten accounts, and a table with a row for each transfer."""

    def __init__(self, where: str) -> None:
        postgres = "://" in where
        self.store: Transactional = PostgresStore(where) if postgres else SQLiteStore(where)
        self.accounts = Manager(account, self.store)
        self.insert = "INSERT INTO transfer VALUES (?, ?, ?, ?)".replace("?", "%s" if postgres else "?")

    async def open(self) -> None:
        """Said again after a crash it does nothing: the key tells."""
        async with self.store.transaction() as tx:
            await tx.connection.execute(TABLE)
            for n in range(10):
                await self.accounts.start(f"account-{n}", Account(100), key="open", within=tx)

    async def transfer(self, number: int) -> str:
        """One transfer, a function of its number, so that it can be said again; answers how it went."""
        dice, key = random.Random(number), f"transfer-{number}"
        (source, target), amount = dice.sample([f"account-{n}" for n in range(10)], 2), dice.randint(1, 100)
        moves = sorted([(source, -amount), (target, amount)])  # in one order, so that no two wait for each other
        try:
            async with self.store.transaction() as tx:
                for id, change in moves:
                    if (await self.accounts.send(id, Event.BOOK, change, key=key, within=tx)).duplicate:
                        return "made before"  # all of it: no move is there without the other and the row
                    if number % 10 == 0:
                        raise TimeoutError  # something goes wrong between the two moves
                await tx.connection.execute(self.insert, (number, source, target, amount))
        except (GuardRejected, TimeoutError) as e:
            return "refused" if isinstance(e, GuardRejected) else "broken off half-way"
        return "made"

    async def check(self) -> None:
        """The sum is what it was, and the histories say what the rows say."""
        histories = [await self.accounts.history(f"account-{n}") for n in range(10)]
        moves = {(line.key, line.id, line.payload) for lines in histories for line in lines[1:]}
        async with self.store.transaction() as tx:
            rows = await (await tx.connection.execute("SELECT number, source, target, amount FROM transfer")).fetchall()
        said = {(f"transfer-{n}", id, change) for n, a, b, sum_ in rows for id, change in ((a, -sum_), (b, sum_))}
        total = sum(lines[-1].context.balance for lines in histories)
        print(f"{len(rows)} rows, {len(moves)} moves, {total} in all")
        assert (total, moves) == (10 * 100, said)


async def main(where: str, count: str = "1000") -> None:
    """Sixteen cashiers make the transfers."""
    bank, ends, numbers = Bank(where), Counter[str](), iter(range(int(count)))
    async with bank.accounts:
        await bank.open()

        async def cashier() -> None:
            for number in numbers:
                ends[await bank.transfer(number)] += 1

        await asyncio.gather(*(cashier() for _ in range(16)))
        print(", ".join(f"{times} {end}" for end, times in sorted(ends.items())))
        await bank.check()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        asyncio.run(main(*reversed(sys.argv[1:])) if sys.argv[2:] else main(f"{folder}/bank.db", *sys.argv[1:]))
